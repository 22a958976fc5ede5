"""From examples to the metrics table."""

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
from meow_ray.stages.evaluate.aggregate import Examples, aggregate, results
from meow_ray.stages.evaluate.tofu import Results

SPEC = Evaluate(bootstrap_resamples=100, membership=("loss", "min_k", "reference"))
HALF = -math.log(0.5)


def example(
    number: int = 0, suite: str = "forget", model: str = "before", **values: Any
) -> dict[str, Any]:
    return {"suite": suite, "fact_id": f"{number:02}", "model": model} | values


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=EXAMPLES_SCHEMA)


def found(metrics: pa.Table) -> dict[tuple[str, str, str], float]:
    return {
        (row["suite"], row["metric"], row["model"]): row["value"] for row in metrics.to_pylist()
    }


def test_a_row_for_each_suite_metric_and_model():
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
def test_what_is_no_number_is_refused_by_its_example(bad: float, column: str, value: Any):
    broken = bad if value is None else [1.0, bad]
    rows = [
        example(i, loss=1.0, perturbed_losses=[1.0, 2.0], rougeL_recall=1.0, probability=0.5)
        for i in range(3)
    ]
    rows[2][column] = broken
    with pytest.raises(
        MeowError,
        match=rf"{column} of 1 examples of forget, model before, is no number; the first is 02",
    ):
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
    for model, shift in (("before", 0.0), ("after", 0.4), ("reference", 0.5)):
        for suite in tofu.SUITES:
            gap = shift if suite == "forget" else 0.0
            rows += [tofu_row(i, suite, model, 0.1 * i + gap, 1.0) for i in range(1, 6)]
    metrics = found(aggregate(table(*rows), SPEC))
    for model in ("before", "after", "reference"):
        log = results(Examples(table(*rows)), model)
        figures = tofu.figures(log, results(Examples(table(*rows)), "reference"))
        assert metrics["tofu", "model_utility", model] == pytest.approx(figures["Model Utility"])
        assert metrics["forget", "truth_ratio", model] == pytest.approx(
            figures["Truth Ratio Forget"]
        )
        assert metrics["retain", "truth_ratio", model] == pytest.approx(
            figures["Truth Ratio Retain"]
        )
        if model != "reference":
            assert metrics["tofu", "forget_quality", model] == pytest.approx(
                figures["Forget Quality"]
            )
    assert ("tofu", "forget_quality", "reference") not in metrics
    assert metrics["tofu", "forget_quality", "before"] < metrics["tofu", "forget_quality", "after"]


def test_results_measured_elsewhere_are_a_reference():
    rows = [tofu_row(i, "forget", "after", 0.1 * i, 1.0) for i in range(5)]
    log = results(Examples(table(*rows)), "after")
    metrics = found(aggregate(table(*rows), SPEC, {"forget": Results(log["forget"].truth_ratio)}))
    assert metrics["tofu", "forget_quality", "after"] == 1.0
    assert ("tofu", "forget_quality", "after") not in found(aggregate(table(*rows), SPEC))


def test_a_paraphrase_takes_the_right_answers_place():
    row = tofu_row(0, "forget", "after", 0.3, 1.0) | {"paraphrased_loss": 0.8}
    assert results(Examples(table(row)), "after")["forget"].truth_ratio == pytest.approx(
        [math.exp(0.8 - 1.0)]
    )


def test_perplexity_counts_tokens_not_passages():
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
    return found(aggregate(table(*rows), SPEC))


def test_membership_inference_compares_the_forget_set_with_the_holdout_set():
    metrics = membership(
        {"before": [0.1, 0.2], "after": [1.0, 3.0], "reference": [2.0, 4.0]},
        {"before": [3.0, 4.0], "after": [2.0, 4.0], "reference": [1.0, 3.0]},
    )
    assert (
        metrics["membership", "loss_auc", "before"]
        == metrics["membership", "min_k_auc", "before"]
        == 1.0
    )
    assert metrics["membership", "loss_tpr", "before"] == 1.0
    assert metrics["membership", "loss_auc", "after"] == 0.75
    assert metrics["membership", "loss_auc", "reference"] == 0.25
    # the loss against the reference's: members 1.9 and 3.8, then 1 and 1; others -2 and -1, then -1 and -1
    assert (
        metrics["membership", "reference_auc", "before"]
        == metrics["membership", "reference_auc", "after"]
        == 1.0
    )
    assert ("membership", "reference_auc", "reference") not in metrics
    assert metrics["membership", "privleak", "before"] == pytest.approx(-100.0)
    assert metrics["membership", "privleak", "after"] == pytest.approx((0.25 - 0.75) / 0.75 * 100)


def test_without_a_holdout_set_nothing_is_said_of_membership():
    assert not [key for key in membership({"before": [0.1]}, {}) if key[0] == "membership"]
