"""Bounds of MEMO are shown as bounds, and never as scores."""

from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.cli.show import show_memo
from meow_ray.core.manifest import Artifact, Manifest
from meow_ray.core.schema import SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.memo.summary import summarize
from meow_ray.stages.report.counts import stage_counts
from meow_ray.stages.report.plots import distribution_plot

BOUNDS = {-1: (0.125, 0.875), 0: (0.5, 0.5), 1: (0.25, 0.75), 2: (0.0, 0.25)}
"""The bounds of MEMO by candidate; only candidate 0 is scored."""


def table_with_bounds() -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "fact_id": "a",
            "candidate_id": candidate,
            "question": "a?",
            "text": str(candidate),
            "memo": low if low == high else None,
            "num_windows": 2,
            "memo_low": low,
            "memo_high": high,
        }
        for candidate, (low, high) in BOUNDS.items()
    ]
    bounds = [("memo_low", pa.float64()), ("memo_high", pa.float64())]
    return pa.Table.from_pylist(rows, schema=pa.schema([*SCHEMAS["memo"], *bounds]))


@pytest.fixture
def artifact() -> Artifact:
    summary = summarize(table_with_bounds(), has_bounds=True) | {"generations": 3}
    manifest = Manifest.model_construct(summary=summary)
    return Artifact("memo", "runs/memo", "digest", manifest=manifest)


def test_the_command_show_names_the_answers_with_bounds(artifact: Artifact):
    assert artifact.manifest is not None
    text = StringIO()
    show_memo(Console(file=text, width=300), artifact, artifact.manifest.summary)
    shown = text.getvalue()
    assert "True answers with only bounds of MEMO (memo.exact=selection): 1." in shown
    assert "Candidates with only bounds of MEMO (memo.exact=selection): 2." in shown
    assert "between 0.125 and 0.875" in shown
    assert "between 0.250 and 0.500" in shown
    assert "Gap" not in shown
    assert "Most memorised: none" in shown


def test_the_report_names_the_answers_with_bounds(artifact: Artifact):
    counts = dict(stage_counts({"memo": artifact}))
    label = "with bounds of MEMO only, bounds of the mean over all of them"
    assert counts[f"True answers {label}"] == "1, 0.125 to 0.875"
    assert counts[f"Inverted answers {label}"] == "2, 0.250 to 0.500"
    assert counts["MEMO of the inverted answers: mean, cv"] == "–, –"
    assert distribution_plot(artifact) is None


def test_select_refuses_bounds_that_leave_its_choice_open(tmp_path: Path):
    path = tmp_path / "memo.parquet"
    pq.write_table(table_with_bounds(), path)
    options = ["stage", "select", f"--input=memo={path}", f"storage.root={tmp_path / 'runs'}"]
    with pytest.raises(MeowError, match=r"leave the selection open \(facts: 1, select\.top_k=1,"):
        CliRunner().invoke(app, [*options, "select.top_k=1"], catch_exceptions=False)
    result = CliRunner().invoke(app, [*options, "select.order=random"], catch_exceptions=False)
    assert result.exit_code == 0
