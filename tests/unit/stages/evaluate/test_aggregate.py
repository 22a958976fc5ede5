"""The table of metrics that is aggregated from examples."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from meow_ray.config import Evaluate
from meow_ray.core.checks import conform
from meow_ray.core.schema import EXAMPLES_SCHEMA
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu
from meow_ray.stages.evaluate.aggregate import Examples, aggregate, tofu_results
from meow_ray.stages.evaluate.tofu import MinKResult, ModelLog, Results

SPEC = Evaluate(bootstrap_resamples=100, membership=("loss", "min_k", "retain_model"))


def example(
    number: int = 0, suite: str = "forget", model: str = "before", **values: Any
) -> dict[str, Any]:
    return {"suite": suite, "fact_id": f"{number:02}", "model": model} | values


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=EXAMPLES_SCHEMA)


def values_by_key(metrics: pa.Table) -> dict[tuple[str, str, str], float]:
    return {
        (row["suite"], row["metric"], row["model"]): row["value"] for row in metrics.to_pylist()
    }


def test_each_suite_metric_and_model_has_a_row():
    metrics = aggregate(
        table(
            example(0, probability=0.0, leak=0.5, rep3=0.25),
            example(1, probability=1.0, rep3=0.25),
            example(0, model="after", probability=0.75),
            example(0, suite="retain", probability=0.5),
        ),
        Evaluate(),
    )
    conform(metrics, "metrics")
    assert [tuple(row.values()) for row in metrics.to_pylist()] == [
        ("forget", "probability", "after", 0.75, None, None, 1),
        ("forget", "probability", "before", 0.5, 0.0, 1.0, 2),
        ("forget", "leak", "before", 0.5, None, None, 1),
        ("forget", "rep3", "before", 0.25, 0.25, 0.25, 2),
        ("retain", "probability", "before", 0.5, None, None, 1),
    ]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("column", "value"), [("probability", None), ("perturbed_losses", [1.0, None])]
)
def test_a_value_that_is_not_finite_is_refused_by_its_example(bad: float, column: str, value: Any):
    broken = bad if value is None else [1.0, bad]
    rows = [
        example(i, loss=1.0, perturbed_losses=[1.0, 2.0], rougeL_recall=1.0, probability=0.5)
        for i in range(3)
    ]
    rows[2][column] = broken
    message = (
        rf"^evaluate: {column} is NaN or infinite in 1 examples of forget, model before "
        r"\(the first is 02\)\. Check the model"
    )
    with pytest.raises(MeowError, match=message):
        aggregate(table(*rows), SPEC)


def tofu_row(
    number: int, suite: str, model: str, loss: float, wrong: float, **values: Any
) -> dict[str, Any]:
    ratio = tofu.truth_ratio(np.array([loss]), [[wrong, wrong]])
    truth = float(tofu.truth_scores(suite, ratio)[0])
    base = {"loss": loss, "perturbed_losses": [wrong, wrong], "truth_ratio": truth}
    return example(
        number, suite, model, **base, probability=math.exp(-loss), rougeL_recall=0.5, **values
    )


def test_tofus_figures_are_those_of_its_aggregation():
    rows = []
    for model, shift in (("before", 0.0), ("after", 0.4), ("retain_model", 0.5)):
        for suite in tofu.SUITES:
            gap = shift if suite == "forget" else 0.0
            rows += [tofu_row(i, suite, model, 0.1 * i + gap, 1.0) for i in range(1, 6)]
    examples = Examples(table(*rows))
    metrics = values_by_key(aggregate(table(*rows), SPEC))
    for model in ("before", "after", "retain_model"):
        log = tofu_results(examples, model)
        figures = tofu.official_figures(log, tofu_results(examples, "retain_model"))
        assert metrics["tofu", "model_utility", model] == pytest.approx(figures["Model Utility"])
        assert metrics["forget", "truth_ratio", model] == pytest.approx(
            figures["Truth Ratio Forget"]
        )
        assert metrics["retain", "truth_ratio", model] == pytest.approx(
            figures["Truth Ratio Retain"]
        )
        if model != "retain_model":
            assert metrics["tofu", "forget_quality", model] == pytest.approx(
                figures["Forget Quality"]
            )
    assert ("tofu", "forget_quality", "retain_model") not in metrics
    assert metrics["tofu", "forget_quality", "before"] < metrics["tofu", "forget_quality", "after"]


def test_results_from_a_file_replace_the_retain_model():
    rows = [tofu_row(i, "forget", "after", 0.1 * i, 1.0) for i in range(5)]
    log = tofu_results(Examples(table(*rows)), "after")
    metrics = values_by_key(
        aggregate(table(*rows), SPEC, ModelLog({"forget": Results(log["forget"].truth_ratio)}))
    )
    assert metrics["tofu", "forget_quality", "after"] == 1.0
    assert ("tofu", "forget_quality", "after") not in values_by_key(aggregate(table(*rows), SPEC))


def test_a_paraphrase_replaces_the_right_answer():
    row = tofu_row(0, "forget", "after", 0.3, 1.0) | {"paraphrased_loss": 0.8}
    assert tofu_results(Examples(table(row)), "after")["forget"].truth_ratio == pytest.approx(
        [math.exp(0.8 - 1.0)]
    )


def test_perplexity_is_a_mean_over_tokens_not_passages():
    rows = [
        example(0, "text", loss=math.log(2), num_tokens=3),
        example(1, "text", loss=math.log(16), num_tokens=1),
    ]
    metrics = aggregate(table(*rows), SPEC).to_pylist()
    row = next(row for row in metrics if row["metric"] == "perplexity")
    assert row["value"] == pytest.approx(2 ** (7 / 4))
    assert 2 <= row["low"] <= row["value"] <= row["high"] <= 16 + 1e-9


def membership(
    forget: dict[str, list[float]], holdout: dict[str, list[float]]
) -> dict[tuple[str, str, str], float]:
    rows = [
        example(i, suite, model, loss=loss, min_k=-2 * loss)
        for suite, by_model in (("forget", forget), ("holdout", holdout))
        for model, losses in by_model.items()
        for i, loss in enumerate(losses)
    ]
    return values_by_key(aggregate(table(*rows), SPEC))


def test_membership_inference_compares_the_forget_set_with_the_holdout_set():
    metrics = membership(
        {"before": [0.1, 0.2], "after": [1.0, 3.0], "retain_model": [2.0, 4.0]},
        {"before": [3.0, 4.0], "after": [2.0, 4.0], "retain_model": [1.0, 3.0]},
    )
    assert (
        metrics["membership", "loss_auc", "before"]
        == metrics["membership", "min_k_auc", "before"]
        == 1.0
    )
    assert metrics["membership", "loss_tpr", "before"] == 1.0
    assert metrics["membership", "loss_auc", "after"] == 0.75
    assert metrics["membership", "loss_auc", "retain_model"] == 0.25
    # loss of the retain model minus the model's: members 1.9 and 3.8 before, 1 and 1 after;
    # others -2 and -1 before, -1 and -1 after
    assert (
        metrics["membership", "retain_model_auc", "before"]
        == metrics["membership", "retain_model_auc", "after"]
        == 1.0
    )
    assert ("membership", "retain_model_auc", "retain_model") not in metrics
    assert metrics["membership", "privleak", "before"] == pytest.approx(-100.0)
    assert metrics["membership", "privleak", "after"] == pytest.approx((0.25 - 0.75) / 0.75 * 100)


def test_without_a_holdout_set_there_is_no_membership_inference():
    suites = {suite for suite, _, _ in membership({"before": [0.1]}, {})}
    assert "membership" not in suites


@pytest.mark.parametrize("definitions", ["meow", "open_unlearning"])
def test_privleak_compares_with_the_auc_of_a_log(definitions: str):
    sign = -1 if definitions == "open_unlearning" else 1
    rows = [example(i, "forget", min_k=sign * float(i)) for i in range(4)]
    rows += [example(9, "holdout", min_k=sign * 0.5)]
    log = ModelLog({}, MinKResult(0.5))
    spec = Evaluate(definitions=definitions, bootstrap_resamples=20)
    metrics = values_by_key(aggregate(table(*rows), spec, log))
    assert metrics["membership", "min_k_auc", "before"] == 0.75
    assert metrics["membership", "privleak", "before"] == pytest.approx((0.5 - 0.75) / 0.5 * 100)
    assert ("membership", "privleak", "before") not in values_by_key(aggregate(table(*rows), spec))
