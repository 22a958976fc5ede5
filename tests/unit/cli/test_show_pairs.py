"""`meow show twins` and `meow show neighbours`: counts and reasons, and no text of facts."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.core.schema import SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.neighbours.reasons import REASONS

FACT = {"fact_id": "a", "question": "Where is Ilse Vantrooy?", "answer": "In Karsk."}
ROWS = {
    "facts": [FACT | {"split": "forget"}],
    "candidates": [
        FACT | {"candidate_id": i, "inverted_answer": text, "attempt": 0, "generator": "x"}
        for i, text in enumerate(["In Oslo.", "In Rome.", "Karsk."])
    ],
}


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    options = [f"storage.root={tmp_path / 'runs'}", "evaluate.twins=true", "twins.minimum=4"]
    for name, rows in ROWS.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]), path)
        options.append(f"--input={name}={path}")
    return options


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_figures_and_reasons_of_twins_are_shown_without_text(options: list[str]):
    invoke("stage", "twins", *options)
    text = invoke("show", "twins", *options)
    assert "per half 2, calibration 2, stop 2" in text
    assert f"contains_fact  1         {REASONS['contains_fact']}" in text
    assert "Vantrooy" not in text + invoke("show", "twins", "--json", *options)
    summary = json.loads(invoke("show", "twins", "--json", *options))
    assert summary["rejected_by_reason"] == {"contains_fact": 1}


def test_a_stage_that_the_configuration_does_not_have_is_named(options: list[str]):
    arguments = ["show", "neighbours", "train.objective=meow", *options]
    with pytest.raises(MeowError, match="meow show neighbours: the stage has not run"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
