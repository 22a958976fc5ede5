"""The retain model, which never saw the forget set: a model, or its results in a file."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from meow_ray.config import Evaluate
from meow_ray.config.files import load_config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import EXAMPLES_SCHEMA, SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.evaluate import aggregate, sets, suites
from meow_ray.stages.evaluate.stage import EVALUATE
from meow_ray.stages.evaluate.tofu import Results
from tests.support.sets import fact_rows, facts_query, set_table


def answered_rows(count: int) -> Query:
    """Returns rows of a forget set as `EvaluateSteps` gives them, all with the same figures."""
    pairs = [(f"Q{number}?", f"A{number}.") for number in range(count)]
    table = suites.rows_to_ask(facts_query(fact_rows(*pairs)), {}, [], Evaluate(attacks=()))
    figures = {
        "generated": "x",
        "loss": 0.5,
        "probability": 0.6,
        "rougeL_recall": 0.5,
        "truth_ratio": 0.5,
        "perturbed_losses": [1.0, 2.0],
    }
    for field in EXAMPLES_SCHEMA:
        if field.name not in {*table.column_names, "model", "states_inverted"}:
            values = pa.array([figures.get(field.name)] * count, field.type)
            table = table.append_column(field.name, values)
    return Query("SELECT * FROM answered", {"answered": table})


def written_metrics(
    folder: Path, answered: dict[str, Query], retain_log: dict[str, Results] | None
) -> tuple[dict[str, Any], set[tuple[str, str, str]]]:
    """Returns the summary, and (suite, metric, model) of each metric."""
    metrics_uri = str(folder / "metrics.parquet")
    summary = aggregate.write_metrics(
        answered=answered,
        selected=SCHEMAS["selected"].empty_table(),
        spec=Evaluate(bootstrap_resamples=20),
        retain_log=retain_log,
        task_scores=[],
        examples_uri=str(folder / "examples.parquet"),
        metrics_uri=metrics_uri,
    )
    rows = storage.read_table([metrics_uri]).to_pylist()
    return summary, {(row["suite"], row["metric"], row["model"]) for row in rows}


def test_results_from_a_file_give_forget_quality(tmp_path: Path):
    retain_log = {"forget": Results(np.array([0.1, 0.2, 0.3]))}
    summary, keys = written_metrics(tmp_path, {"after": answered_rows(3)}, retain_log)
    assert summary == {"examples": 3, "suites": ["forget", "tofu"], "retain_model": "results"}
    assert ("tofu", "forget_quality", "after") in keys


def test_an_evaluated_retain_model_gives_forget_quality(tmp_path: Path):
    answered = {"after": answered_rows(3), "retain_model": answered_rows(3)}
    summary, keys = written_metrics(tmp_path, answered, None)
    assert summary["retain_model"] == "model"
    assert ("tofu", "forget_quality", "after") in keys
    assert ("tofu", "forget_quality", "retain_model") not in keys
    assert ("forget", "probability", "retain_model") in keys


def test_without_a_retain_model_there_is_no_forget_quality(tmp_path: Path):
    summary, keys = written_metrics(tmp_path, {"after": answered_rows(3)}, None)
    assert summary["retain_model"] is None
    assert "forget_quality" not in {metric for _, metric, _ in keys}


@pytest.mark.parametrize(
    ("wrong", "retain_log", "message"),
    [
        (
            ["B."],
            {"forget": Results(np.array([0.1, 0.2]))},
            "retain.json: the forget set has another number of rows (2) than the model's (3).",
        ),
        (
            ["B."],
            {"retain": Results(np.array([0.1, 0.2]))},
            "truth ratios of the forget set, but retain.json has none.",
        ),
        (
            None,
            {"forget": Results(np.array([0.1] * 3))},
            "truth ratios of the forget set, but evaluate.sets.forget has none.",
        ),
        (
            ["B."],
            {"forget": Results(np.array([0.1] * 3), answers=("A0.", "A1.", "A9."))},
            "retain.json: the forget set is not the model's (1 of 3 answers are not in it).",
        ),
    ],
)
def test_results_of_another_forget_set_are_refused(
    wrong: list[str] | None, retain_log: dict[str, Results], message: str
):
    pairs = [(f"Q{number}?", f"A{number}.") for number in range(3)]
    forget = set_table(*pairs, perturbed_answer=wrong)
    with pytest.raises(MeowError, match=re.escape(message)):
        sets.check_retain_results(forget, retain_log, "retain.json")


def test_results_without_a_perturbed_forget_set_are_refused():
    message = "truth ratios of the forget set, but evaluate.sets.forget has none."
    with pytest.raises(MeowError, match=re.escape(message)):
        sets.check_retain_results(None, {"forget": Results(np.array([0.1]))}, "retain.json")


# --- the configuration ----------------------------------------------------------------------------


def configured_artifact(place: str) -> Artifact:
    config = load_config(None, [f"evaluate.retain_model={place}"])
    artifact = Pipeline(config).artifact("retain_model")
    assert artifact is not None
    return artifact


def test_the_configuration_names_a_model_or_its_results(tmp_path: Path, tiny_model: Path):
    log = tmp_path / "TOFU_EVAL.json"
    log.write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}}}}')
    first = configured_artifact(str(log))
    assert first.value["forget"].truth_ratio.tolist() == [0.5]
    log.write_text('{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.25}}}}')
    assert configured_artifact(str(log)).digest != first.digest
    assert configured_artifact(str(tiny_model)).value.uri == str(tiny_model)
    assert configured_artifact("null").digest == "none"


@pytest.mark.parametrize("place", ["nowhere.json", "./nowhere"])
def test_a_missing_retain_model_is_refused_by_its_key(place: str):
    with pytest.raises(MeowError, match=r"`evaluate.retain_model`: there is no .*nowhere"):
        configured_artifact(place)


def test_the_old_name_of_the_attack_is_refused_with_the_new_one():
    with pytest.raises(MeowError) as caught:
        load_config(None, ["evaluate.membership=[loss,reference]"])
    assert "`evaluate.membership`" in str(caught.value)
    assert "the attack reference is now called retain_model" in str(caught.value)
    config = load_config(None, ["evaluate.membership=[loss,retain_model]"])
    assert config.evaluate.membership == ("loss", "retain_model")


def test_fingerprints_are_those_of_version_0_1():
    assert EVALUATE.version == 6
    default = Evaluate()
    assert default.membership == ("loss", "zlib", "min_k", "retain_model")
    assert '"retain_model"]' in default.model_dump_json()
    assert storage.json_digest(default.spec()) == (
        "c216653ee16ef68e7dc027a03ce419c791351da45be7058d080bdceb3f1f3a25"
    )
    reordered = Evaluate(membership=("min_k", "retain_model", "loss"))
    assert storage.json_digest(reordered.spec()) == (
        "5c0239dbb3a6305699dc66c0382245272731e07a226e1599edc970f609603847"
    )
