"""The forget set against facts that no model has seen, from the table of twins to the metrics."""

import math
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Evaluate
from meow_ray.config.files import load_config
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import EXAMPLES_SCHEMA, SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.aggregate import aggregate
from meow_ray.stages.evaluate.preflight import check_twins
from meow_ray.stages.evaluate.stage import EVALUATE, EVALUATE_ALONE
from tests.support.sets import BORN, fact_rows, facts_query

SPEC = Evaluate(bootstrap_resamples=50, twins=True)


def twins_table(*halves: str) -> pa.Table:
    rows = [
        {"fact_id": "1f0c", "twin_id": i, "half": half, "question": f"Q{i}?", "answer": f"A{i}."}
        for i, half in enumerate(halves)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["twins"])


# --- the rows -------------------------------------------------------------------------------------


def test_only_the_stop_half_is_scored_and_nothing_of_it_is_generated():
    table = suites.rows_to_ask(
        facts_query(fact_rows(BORN)),
        {},
        [],
        Evaluate(attacks=()),
        twins_table("calibration", "stop", "stop"),
    )
    twins = [row for row in table.to_pylist() if row["suite"] == "twins"]
    assert [(row["row_id"], row["question"], row["answer"]) for row in twins] == [
        ("twins/1f0c-1", "Q1?", "A1."),
        ("twins/1f0c-2", "Q2?", "A2."),
    ]
    assert {(row["asked"], row["scored"], row["with_memo"]) for row in twins} == {
        (False, True, False)
    }
    assert [row["asked"] for row in table.to_pylist() if row["suite"] == "forget"] == [True]


def test_a_table_without_the_stop_half_is_refused_before_a_run():
    message = r"^`evaluate\.twins`: the table twins has no row of the half stop"
    with pytest.raises(MeowError, match=message):
        suites.stop_twins(twins_table("calibration"))
    config = load_config(None, ["evaluate.twins=true"])
    known = Artifact("twins", "", "digest", value=twins_table("calibration"))
    with pytest.raises(MeowError, match=message):
        list(check_twins(config, {"twins": known}))
    known = Artifact("twins", "", "digest", value=twins_table("stop"))
    assert list(check_twins(config, {"twins": known})) == []
    assert list(check_twins(config, {})) == []


def test_the_stage_reads_twins_only_if_asked_to():
    without = load_config(None, ["train.objective=meow"])
    config = load_config(None, ["train.objective=meow", "evaluate.twins=true"])
    assert "twins" not in EVALUATE.input_names(without)
    assert EVALUATE.input_names(config) == (*EVALUATE.input_names(without), "twins")
    assert "twins" not in EVALUATE_ALONE.input_names(config)


@pytest.mark.parametrize("name", ["twins", "never_seen", "composite"])
def test_a_set_cannot_have_the_name_of_one_of_these_suites(name: str):
    with pytest.raises(ValueError, match=f"the set name '{name}' is reserved"):
        Evaluate(sets={name: {"path": "a.jsonl"}})


# --- the metrics ----------------------------------------------------------------------------------


def examples(suite: str, model: str, *fact_log_probs: float, sign: int = 1) -> list[dict[str, Any]]:
    return [
        {
            "suite": suite,
            "fact_id": f"{number:02}",
            "model": model,
            "extraction_strength": 0.25,
            "min_k": sign * (value - 1),
            "fact_log_prob": value,
        }
        for number, value in enumerate(fact_log_probs)
    ]


def measured(rows: list[dict[str, Any]], spec: Evaluate = SPEC) -> dict[str, dict[str, Any]]:
    """Returns the rows of `metrics` by `suite/metric/model`."""
    table = pa.Table.from_pylist(rows, schema=EXAMPLES_SCHEMA)
    return {
        f"{row['suite']}/{row['metric']}/{row['model']}": row
        for row in aggregate(table, spec).to_pylist()
    }


def test_each_model_is_compared_with_the_target_on_the_twins():
    rows = [
        *examples("forget", "before", -1.0, -1.5, -2.0),
        *examples("forget", "after", -8.0, -7.0, -9.0),
        *examples("twins", "before", -7.0, -8.0, -9.0),
        *examples("twins", "after", -30.0, -31.0, -32.0),
    ]
    metrics = measured(rows)
    values = {name: row["value"] for name, row in metrics.items()}
    # of the 20 ways to choose three of six values, two separate them as well as these do
    separated = pytest.approx(2 / math.comb(6, 3))
    assert values["never_seen/fact_log_prob_p_value/before"] == separated
    assert values["never_seen/min_k_p_value/before"] == separated
    assert values["never_seen/extraction_strength_p_value/before"] == 1.0
    assert values["never_seen/reference_free_forget_quality/before"] == separated
    # the model after is compared with the target's figures, not with its own on the twins
    assert values["never_seen/reference_free_forget_quality/after"] == 1.0
    assert values["never_seen/fact_log_prob_difference/before"] == pytest.approx(-1.5 + 8.0)
    assert values["never_seen/fact_log_prob_difference/after"] == pytest.approx(0.0)

    difference = metrics["never_seen/fact_log_prob_difference/before"]
    assert 5.0 <= difference["low"] < 6.5 < difference["high"] <= 8.0
    assert difference["num_examples"] == 6
    quality = metrics["never_seen/reference_free_forget_quality/after"]
    assert (quality["low"], quality["high"], quality["num_examples"]) == (None, None, 6)


def test_the_means_of_the_figures_are_those_of_the_suites():
    rows = [
        *examples("forget", "before", -1.0, -2.0),
        *examples("twins", "before", -7.0, -9.0),
        *examples("retain", "before", -1.0),
    ]
    values = {name: row["value"] for name, row in measured(rows).items()}
    figures = {name: value for name, value in values.items() if not name.startswith("never_seen")}
    assert figures == {
        "forget/extraction_strength/before": 0.25,
        "forget/min_k/before": -2.5,
        "forget/fact_log_prob/before": -1.5,
        "twins/extraction_strength/before": 0.25,
        "twins/min_k/before": -9.0,
        "twins/fact_log_prob/before": -8.0,
        "retain/extraction_strength/before": 0.25,
    }


def test_the_sign_of_open_unlearnings_scores_does_not_turn_the_direction():
    spec = Evaluate(definitions="open_unlearning", twins=True, bootstrap_resamples=50)
    rows = [
        *examples("forget", "before", -1.0, -2.0, sign=-1),
        *examples("twins", "before", -7.0, -9.0, sign=-1),
    ]
    values = {name: row["value"] for name, row in measured(rows, spec).items()}
    assert values["never_seen/min_k_difference/before"] == pytest.approx(-2.5 + 9.0)
    assert values["twins/min_k/before"] == -9.0


def test_without_twins_there_is_no_comparison():
    assert set(measured(examples("forget", "before", -1.0, -2.0))) == {
        "forget/extraction_strength/before"
    }
