"""TOFU's aggregation: the official figures, hand-computed cases, and every log that is refused."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu, tofu_logs
from meow_ray.stages.evaluate.tofu import Results

OFFICIAL = (
    "eval_log.json",
    "eval_log_forget.json",
    "eval_real_author_wo_options.json",
    "eval_real_world_wo_options.json",
)


def close(found: dict[str, float], expected: dict[str, float]) -> bool:
    return found.keys() == expected.keys() and all(
        math.isclose(found[name], value, rel_tol=1e-9) for name, value in expected.items()
    )


@pytest.mark.parametrize("name", ["full vs retain90", "retain90 vs retain90"])
def test_official_logs_give_the_official_figures(shared_data: Callable[[str], Path], name: str):
    expected = json.loads(shared_data("tofu_eval_logs/expected.json").read_text())[name]
    paths = [str(shared_data(f"tofu_eval_logs/llama2_{part}.json")) for part in name.split(" vs ")]
    assert close(tofu.figures(*(tofu_logs.read_log(path) for path in paths)), expected)
    program = CliRunner().invoke(main.app, ["tofu", paths[0], "--reference", paths[1], "--json"])
    assert close(json.loads(program.output), expected)


def test_without_a_reference_there_is_no_forget_quality(shared_data: Callable[[str], Path]):
    log = str(shared_data("tofu_eval_logs/llama2_full.json"))
    program = CliRunner().invoke(main.app, ["tofu", log])
    assert "Model Utility" in program.output
    assert "No forget quality: it needs --reference" in program.output
    assert "KS Test" not in program.output


def test_a_reference_of_another_split_is_refused(shared_data: Callable[[str], Path]):
    paths = (shared_data(f"tofu_eval_logs/llama2_{name}.json") for name in ("full", "retain95"))
    full, other = (tofu_logs.read_log(str(path))["forget"] for path in paths)
    with pytest.raises(
        MeowError, match=r"x.json: its forget set has 200 rows, that of the model has 300"
    ):
        tofu.check_reference(len(full), full.answers, other, "x.json")


# --- by hand ------------------------------------------------------------------------------------


def test_the_truth_ratio_is_geometric_over_the_wrong_answers():
    half, quarter, sixteenth = (-math.log(p) for p in (1 / 2, 1 / 4, 1 / 16))
    # wrong answers of 1/4 and 1/16: geometric mean 1/8; the right one 1/2
    assert tofu.truth_ratio(np.array([half]), [[quarter, sixteenth]]) == pytest.approx([1 / 4])


def test_the_truth_ratio_counts_both_ways_on_the_forget_set_alone():
    ratios = np.array([0.25, 1.0, 4.0, 0.0, np.inf])
    assert tofu.truth_scores("forget", ratios).tolist() == [0.25, 1.0, 0.25, 0.0, 0.0]
    assert tofu.truth_scores("retain", ratios).tolist() == [0.75, 0.0, 0.0, 1.0, 0.0]


def test_a_probability_among_options_is_a_share_of_their_sum():
    losses = np.array([-math.log(0.5)])
    assert tofu.normalized_probability(losses, [[-math.log(0.25)] * 2]) == pytest.approx([0.5])


def results(
    truth: float, probability: float = 0.5, recall: float = 0.5, count: int = 2, **values: Any
) -> Results:
    return Results(
        np.full(count, truth), np.full(count, probability), np.full(count, recall), **values
    )


def test_model_utility_is_the_harmonic_mean_of_nine():
    log = {suite: results(0.5) for suite in tofu.UTILITY}
    assert tofu.model_utility(log) == pytest.approx(0.5)
    log["retain"] = results(0.5, probability=0.25)
    assert tofu.model_utility(log) == pytest.approx(9 / (8 / 0.5 + 1 / 0.25))
    log["retain"] = results(1.0)
    assert tofu.model_utility(log) == 0  # max(0, 1 - 1)
    assert tofu.model_utility({"retain": results(0.5)}) is None


def test_forget_quality_compares_distributions_not_pairs():
    one, other = Results(np.array([0.1, 0.2, 0.3])), Results(np.array([0.3, 0.1, 0.2]))
    assert tofu.forget_quality(one, other) == (1.0, 0.0)
    apart = Results(np.array([1.1, 1.2, 1.3]))
    pvalue, statistic = tofu.forget_quality(one, apart)
    assert statistic == 1.0
    assert pvalue == pytest.approx(0.1)  # 2 of the 20 ways to deal 3 of 6 are as far apart


def test_the_same_rows_are_known_by_their_answers():
    own = ("a", "b")
    tofu.check_reference(2, own, results(0.5), "x.json")
    tofu.check_reference(2, own, results(0.5, answers=("b ", "a")), "x.json")
    with pytest.raises(
        MeowError, match=r"x.json: another forget set; 1 of its 2 answers are not in the model's"
    ):
        tofu.check_reference(2, own, results(0.5, answers=("a", "c")), "x.json")


# --- logs ---------------------------------------------------------------------------------------


def official(count: int = 2) -> dict[str, Any]:
    part = {
        "avg_gt_loss": {str(i): 0.5 for i in range(count)},
        "avg_paraphrased_loss": {str(i): 0.5 for i in range(count)},
        "average_perturb_loss": {str(i): [0.5, 1.5] for i in range(count)},
        "rougeL_recall": {str(i): 0.25 for i in range(count)},
    }
    return {name: json.loads(json.dumps(part)) for name in OFFICIAL}


def write(folder: Path, data: Any) -> str:
    path = folder / "log.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_a_log_with_texts_knows_its_answers(tmp_path: Path):
    data = official()
    data["eval_log_forget.json"]["generated_text"] = {
        "0": ["q", "said", "true"],
        "1": ["q", "said", "too"],
    }
    assert tofu_logs.read_log(write(tmp_path, data))["forget"].answers == ("true", "too")


def test_open_unlearnings_results_are_read(tmp_path: Path):
    def rows(**values: float) -> dict[str, Any]:
        return {"agg_value": 0.0, "value_by_index": {str(i): values for i in range(3)}}

    data = {"model_utility": {"agg_value": 0.5}, "forget_quality": {"agg_value": None}}
    for suite, prob, truth in (
        ("forget", "Prob", "truth_ratio"),
        ("retain", "Prob", "Truth_Ratio"),
    ):
        data[f"{suite}_Q_A_{prob}"] = rows(prob=0.5, avg_loss=0.7)
        data[f"{suite}_Q_A_ROUGE"] = rows(rougeL_recall=0.5, rouge1_recall=0.9)
        data[f"{suite}_{truth}"] = rows(score=0.5)
    for suite in ("ra", "wf"):
        data[f"{suite}_Q_A_Prob"] = rows(prob=0.1)
        data[f"{suite}_Q_A_Prob_normalised"] = rows(prob=0.5)
        data[f"{suite}_Q_A_ROUGE"] = rows(rougeL_recall=0.5)
        data[f"{suite}_Truth_Ratio"] = rows(score=0.5)
    log = tofu_logs.read_log(write(tmp_path, data))
    assert list(log) == list(tofu.SUITES)
    assert tofu.model_utility(log) == pytest.approx(0.5)
    assert tofu.forget_quality(log["forget"], log["forget"])[0] == 1.0


def broken(key: str, column: str, row: str | None, value: Any) -> dict[str, Any]:
    data = official()
    if row is None:
        data[key][column] = value
    else:
        data[key][column][row] = value
    return data


FORGET = "eval_log_forget.json"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("", "malformed JSON"),
        ("[1, 2]", "neither an eval_log_aggregated.json"),
        ({}, "neither an eval_log_aggregated.json"),
        ("{\n\n'a'", "line 3: malformed JSON"),
        (broken(FORGET, "avg_gt_loss", None, {}), f"{FORGET}: avg_gt_loss is empty"),
        (broken(FORGET, "avg_gt_loss", None, [1.0]), f"{FORGET}: avg_gt_loss is missing"),
        (
            broken(FORGET, "rougeL_recall", None, {"0": 1.0}),
            "rougeL_recall has other rows than avg_gt_loss",
        ),
        (broken(FORGET, "avg_gt_loss", "1", math.nan), "avg_gt_loss of row 1 is nan, not a number"),
        (broken(FORGET, "avg_gt_loss", "1", "x"), "avg_gt_loss of row 1 is 'x', not a number"),
        (
            broken(FORGET, "average_perturb_loss", "0", []),
            "average_perturb_loss of row 0 is not a list",
        ),
        (
            broken(FORGET, "average_perturb_loss", "0", [1.0, math.inf]),
            "average_perturb_loss of row 0 is inf",
        ),
        (
            broken(FORGET, "generated_text", None, [["q", "said", "true"]]),
            "generated_text of row 0 is not a list of",
        ),
        (
            broken(FORGET, "generated_text", None, {"0": ["q", "s", "true"]}),
            "generated_text of row 1 is not a list of",
        ),
        (
            broken(FORGET, "generated_text", None, {"0": ["q", "s"], "1": ["q", "s"]}),
            "generated_text of row 0 is not a",
        ),
        (
            {"forget_Q_A_Prob": {"value_by_index": {"0": {"prob": 0.5}}}},
            "forget_truth_ratio is missing",
        ),
        ({"forget_truth_ratio": {"agg_value": 0.5}}, "value_by_index is missing"),
        ({"forget_truth_ratio": {"value_by_index": {}}}, "value_by_index is empty"),
        (
            {"forget_truth_ratio": {"value_by_index": {"0": {"score": None}}}},
            "score of row 0 is None",
        ),
        ({"forget_truth_ratio": {"value_by_index": {"0": 0.5}}}, "row 0 has no score"),
    ],
)
def test_a_log_that_lacks_something_is_refused_by_name(tmp_path: Path, data: Any, complaint: str):
    with pytest.raises(MeowError) as caught:
        tofu_logs.read_log(write(tmp_path, data))
    assert "log.json" in str(caught.value)
    assert complaint in str(caught.value)


def test_a_log_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(MeowError, match=r"nowhere\.json"):
        tofu_logs.read_log(str(tmp_path / "nowhere.json"))


def test_forget_quality_needs_a_forget_set_on_both_sides(tmp_path: Path):
    log = official()
    del log[FORGET]
    path = write(tmp_path, log)
    program = CliRunner().invoke(main.app, ["tofu", path, "--reference", path])
    assert isinstance(program.exception, MeowError)
    assert "has no forget set" in str(program.exception)
