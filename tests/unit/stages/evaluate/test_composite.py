"""The composite score of open-unlearning, by hand."""

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Evaluate
from meow_ray.core.schema import EXAMPLES_SCHEMA
from meow_ray.stages.evaluate import composite, tofu
from meow_ray.stages.evaluate.aggregate import aggregate

SPEC = Evaluate(bootstrap_resamples=20, membership=("loss", "min_k"))


def test_memorisation_is_the_harmonic_mean_of_what_lacks_to_one():
    score = composite.memorization_score(
        extraction_strength=0.5,
        exact_memorization=0.75,
        paraphrased_probability=0.0,
        truth_share=0.5,
    )
    assert score == pytest.approx(4 / (2 + 4 + 1 + 2))
    assert composite.memorization_score(1.0, 0.5, 0.5, 0.5) == 0.0


@pytest.mark.parametrize(
    ("model_auc", "retain_auc", "expected"),
    [
        (0.4, 0.4, 1.0),
        (1.0, 0.4, 0.0),  # as far from 0.4 as an AUC can be
        (0.7, 0.4, 0.5),
        (0.0, 0.4, 1 - 0.4 / 0.6),
        (0.0, 0.75, 0.0),
        (1.0, 1.0, 1.0),
    ],
)
def test_an_attack_is_close_to_the_retain_model(
    model_auc: float, retain_auc: float, expected: float
):
    assert composite.closeness(model_auc, retain_auc) == pytest.approx(expected)


def test_privacy_is_the_harmonic_mean_over_the_attacks():
    assert composite.privacy_score([0.4, 0.7], [0.4, 0.4]) == pytest.approx(2 / (1 + 2))
    assert composite.privacy_score([1.0, 0.4], [0.4, 0.4]) == 0.0


share = st.floats(0, 1)


@given(share, share)
def test_closeness_is_a_share(model_auc: float, retain_auc: float):
    assert 0 <= composite.closeness(model_auc, retain_auc) <= 1


# --- from examples --------------------------------------------------------------------------------


def example(suite: str, model: str, number: int, loss: float, **values: Any) -> dict[str, Any]:
    return {
        "suite": suite,
        "model": model,
        "fact_id": f"{number:02}",
        "loss": loss,
        "min_k": -2 * loss,
        "probability": math.exp(-loss),
        "truth_ratio": 0.5,
        "rougeL_recall": 0.5,
        "exact_memorization": 0.75,
        "extraction_strength": 0.5,
    } | values


WRONG = math.log(4)
"""The loss of the wrong answers: a probability of a quarter."""
PARAPHRASED = math.log(2)
"""The loss of the paraphrased answers: a probability of a half."""


def rows_of(model: str, forget_losses: tuple[float, float], utility_loss: float) -> Any:
    """Returns examples of all sets; the losses of the holdout set are 2 and 4."""
    wrong = {"perturbed_losses": [WRONG, WRONG], "paraphrased_loss": PARAPHRASED}
    rows = [
        example("forget", model, number, loss, **wrong) for number, loss in enumerate(forget_losses)
    ]
    rows += [example("holdout", model, number, loss) for number, loss in enumerate((2.0, 4.0))]
    for suite in tofu.UTILITY:
        rows.append(example(suite, model, 0, utility_loss, perturbed_losses=[9.0, 9.0]))
    return rows


def scores(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Returns the scores of each model."""
    metrics = aggregate(pa.Table.from_pylist(rows, schema=EXAMPLES_SCHEMA), SPEC).to_pylist()
    by_model: dict[str, dict[str, float]] = {}
    for row in metrics:
        if row["suite"] == "composite":
            assert (row["low"], row["high"], row["num_examples"]) == (None, None, 2)
            by_model.setdefault(row["model"], {})[row["metric"]] = row["value"]
    return by_model


BEFORE = rows_of("before", (0.5, 1.0), utility_loss=0.1)
AFTER = rows_of("after", (1.0, 3.0), utility_loss=0.2)
RETAIN_MODEL = rows_of("retain_model", (3.0, 5.0), utility_loss=0.1)


def test_the_scores_of_each_model():
    found = scores([*BEFORE, *AFTER, *RETAIN_MODEL])
    assert set(found) == {"before", "after", "retain_model"}
    # extraction strength 1/2, exact memorisation 3/4, paraphrased probability 1/2, and the
    # truth ratio is 1/2, so the right answer has two thirds
    mem = 4 / (1 / 0.5 + 1 / 0.25 + 1 / 0.5 + 3)
    assert found["after"]["mem"] == pytest.approx(mem)
    # AUC of both attacks: 1 before, 0.75 after, 0.25 on the retain model
    assert found["before"]["priv"] == 0.0
    assert found["after"]["priv"] == pytest.approx(1 - 0.5 / 0.75)
    assert found["retain_model"]["priv"] == 1.0

    def utility(loss: float) -> float:
        truth = 1 - math.exp(loss - 9.0)
        return 3 / (1 / math.exp(-loss) + 1 / 0.5 + 1 / truth)

    util = utility(0.2) / utility(0.1)
    assert found["after"]["util"] == pytest.approx(util)
    assert found["before"]["util"] == pytest.approx(1.0)
    assert found["after"]["composite"] == pytest.approx(3 / (1 / mem + 3 + 1 / util))
    assert found["before"]["composite"] == 0.0


def without(rows: list[dict[str, Any]], suite: str = "", **values: None) -> list[dict[str, Any]]:
    return [row | values for row in rows if row["suite"] != suite]


def test_there_is_no_score_if_a_part_is_not_measured():
    rows = [*BEFORE, *AFTER, *RETAIN_MODEL]
    assert scores([*BEFORE, *AFTER]) == {}
    assert scores(without(rows, suite="holdout")) == {}
    assert scores(without(rows, suite="world_facts")) == {}
    assert scores(without(rows, paraphrased_loss=None)) == {}
