"""Logs of open-unlearning: two kinds of truth ratios under one key, and rows without a value."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu, tofu_logs
from meow_ray.stages.evaluate.tofu import ModelLog

KEYS = {
    "forget": ("forget_truth_ratio", "forget_Q_A_PARA_Prob", "forget_Q_A_PERT_Prob"),
    "retain": ("retain_Truth_Ratio", "retain_Q_A_PARA_Prob", "retain_Q_A_PERT_Prob"),
    "real_authors": ("ra_Truth_Ratio", "ra_Q_A_Prob", "ra_Q_A_PERT_Prob"),
    "world_facts": ("wf_Truth_Ratio", "wf_Q_A_Prob", "wf_Q_A_PERT_Prob"),
}
Losses = list[tuple[float, list[float]]]
"""For each example the loss of the right answer, and those of the wrong ones."""


def losses(count: int, right: float = 1.2, seed: int = 0) -> Losses:
    draw = random.Random(seed)
    return [
        (draw.gauss(right, 0.3), [draw.gauss(1.3, 0.3) for _ in range(5)]) for _ in range(count)
    ]


def ratios_of(rows: Losses) -> list[float]:
    return [
        math.exp(-sum(wrong) / len(wrong)) / (math.exp(-right) + 1e-10) for right, wrong in rows
    ]


def share(right: float, wrong: list[float]) -> float:
    probability = math.exp(-right)
    return probability / (probability + math.exp(-sum(wrong) / len(wrong)) + 1e-10)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def by_index(field: str, values: list[Any]) -> dict[str, Any]:
    return {str(index): {field: value} for index, value in enumerate(values)}


def truth_ratio(rows: Losses, suite: str, aggregator: str) -> dict[str, Any]:
    """Returns the section of a log that the aggregator of open-unlearning writes."""
    ratios = ratios_of(rows)
    if aggregator == "prob_mean":
        scores = [share(right, wrong) for right, wrong in rows]
        aggregate = mean(scores)
    else:
        scores = ratios
        aggregate = mean([min(r, 1 / r) if suite == "forget" else max(0.0, 1 - r) for r in ratios])
    return {"agg_value": aggregate, "value_by_index": by_index("score", scores)}


def evaluation(
    rows: Losses, aggregator: str, suite: str = "forget", with_losses: bool = True
) -> dict[str, Any]:
    ratio_key, right_key, wrong_key = KEYS[suite]
    log = {ratio_key: truth_ratio(rows, suite, aggregator)}
    if with_losses:
        log[right_key] = {"value_by_index": by_index("avg_loss", [right for right, _ in rows])}
        log[wrong_key] = {"value_by_index": by_index("avg_loss", [wrong for _, wrong in rows])}
    return log


def read(folder: Path, data: dict[str, Any]) -> ModelLog:
    path = folder / "TOFU_EVAL.json"
    path.write_text(json.dumps(data))
    return tofu_logs.read_log(str(path))


@pytest.mark.parametrize("suite", KEYS)
@pytest.mark.parametrize(
    "right", [0.1, 1.2, 2.5, 25.0], ids=["known", "alike", "unknown", "impossible"]
)
@pytest.mark.parametrize("count", [2, 40])
def test_losses_tell_the_kind_of_truth_ratios(tmp_path: Path, suite: str, right: float, count: int):
    rows = losses(count, right)
    for aggregator in ("prob_mean", "closer_to_1_better"):
        results = read(tmp_path, evaluation(rows, aggregator, suite)).suites[suite]
        assert results.truth_ratio == pytest.approx(ratios_of(rows))


@pytest.mark.parametrize("suite", KEYS)
def test_the_aggregate_tells_the_kind_where_a_log_has_no_losses(tmp_path: Path, suite: str):
    rows = losses(40)
    assert max(ratios_of(rows)) > 1
    for aggregator in ("prob_mean", "closer_to_1_better"):
        log = read(tmp_path, evaluation(rows, aggregator, suite, with_losses=False))
        assert log.suites[suite].truth_ratio == pytest.approx(ratios_of(rows))


def test_ratios_of_other_sets_are_told_by_their_aggregate(tmp_path: Path):
    rows = losses(5, right=0.1)
    assert max(ratios_of(rows)) < 1
    log = read(tmp_path, evaluation(rows, "true_better", "retain", with_losses=False))
    assert log.suites["retain"].truth_ratio == pytest.approx(ratios_of(rows))


@pytest.mark.parametrize(
    ("rows", "aggregator"),
    [
        (losses(40, right=0.1), "closer_to_1_better"),
        (losses(5, right=0.1), "closer_to_1_better"),
        (losses(5), "prob_mean"),
    ],
    ids=["memorised set", "few ratios", "few shares"],
)
def test_what_cannot_be_told_is_refused(tmp_path: Path, rows: Losses, aggregator: str):
    message = "cannot be told whether .* Give the whole log, with forget_Q_A_PARA_Prob and"
    with pytest.raises(MeowError, match=message):
        read(tmp_path, evaluation(rows, aggregator, with_losses=False))


@pytest.mark.parametrize("aggregate", [None, 0.2])
def test_scores_up_to_1_need_an_aggregate_that_fits(tmp_path: Path, aggregate: float | None):
    log = evaluation(losses(40), "prob_mean", with_losses=False)
    log["forget_truth_ratio"]["agg_value"] = aggregate
    with pytest.raises(MeowError, match="cannot be told"):
        read(tmp_path, log)


def test_scores_that_are_not_of_the_losses_are_refused(tmp_path: Path):
    log = evaluation(losses(5), "prob_mean")
    log |= {"forget_truth_ratio": truth_ratio(losses(5, seed=1), "forget", "prob_mean")}
    with pytest.raises(MeowError, match="scores do not follow from the losses in forget_Q_A_PARA"):
        read(tmp_path, log)


def test_both_kinds_give_the_same_figures(tmp_path: Path):
    model, retain = losses(40, right=1.0), losses(40, right=1.4, seed=1)
    figures = []
    for number, kinds in enumerate(
        [("closer_to_1_better",) * 2, ("closer_to_1_better", "prob_mean"), ("prob_mean",) * 2]
    ):
        paths = []
        for name, rows, kind in zip(("model", "retain"), (model, retain), kinds, strict=True):
            path = tmp_path / f"{name}{number}.json"
            path.write_text(json.dumps(evaluation(rows, kind, with_losses=number == 0)))
            paths.append(str(path))
        figures.append(tofu_logs.aggregate_logs(*paths))
    assert 0 < figures[0]["Forget Quality"] < 1
    assert figures[1] == pytest.approx(figures[0])
    assert figures[2] == pytest.approx(figures[0])


@pytest.mark.parametrize("aggregator", ["prob_mean", "closer_to_1_better"])
def test_model_utility_is_the_same_for_both_kinds(tmp_path: Path, aggregator: str):
    data: dict[str, Any] = {}
    rows = losses(5, right=0.4)
    for suite, prefix in (("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf")):
        normalised = "" if suite == "retain" else "_normalised"
        data |= evaluation(rows, aggregator, suite)
        data[f"{prefix}_Q_A_Prob{normalised}"] = {"value_by_index": by_index("prob", [0.5] * 5)}
        rouge = {"value_by_index": by_index("rougeL_recall", [0.5] * 5)}
        data[f"{prefix}_Q_A_ROUGE"] = rouge
    truth = mean([max(0.0, 1 - ratio) for ratio in ratios_of(rows)])
    utility = tofu.model_utility(read(tmp_path, data).suites)
    assert utility == pytest.approx(9 / (6 / 0.5 + 3 / truth))


def test_rows_without_a_value_are_left_out(tmp_path: Path):
    log = evaluation(losses(40), "prob_mean")
    # open-unlearning leaves the example out and shifts the scores after it
    log["forget_Q_A_PARA_Prob"]["value_by_index"]["3"] = None
    kept = [row for index, row in enumerate(losses(40)) if index != 3]
    log["forget_truth_ratio"] = truth_ratio(kept, "forget", "prob_mean")
    log["forget_Q_A_Prob"] = {"value_by_index": by_index("prob", [None, *[0.5] * 39])}
    results = read(tmp_path, log).suites["forget"]
    assert results.truth_ratio == pytest.approx(ratios_of(kept))
    assert results.probability is not None
    assert len(results.probability) == 39
    assert results.set_size == 40
    tofu.check_same_forget_set(40, None, results, "retain.json")


def test_min_k_of_a_log_is_read_without_truth_ratios(tmp_path: Path):
    rows = {"value_by_index": by_index("score", [0.1, 0.2])}
    log = read(tmp_path, {"mia_min_k": {"auc": 0.4, "agg_value": 0.4, "forget": rows}})
    assert log == ModelLog({}, tofu.MinKResult(0.4, num_forget=2, num_holdout=None))
    path = str(tmp_path / "TOFU_EVAL.json")
    with pytest.raises(MeowError, match="no results on TOFU's sets"):
        tofu_logs.aggregate_logs(path, None)
