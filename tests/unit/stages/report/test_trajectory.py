"""`meow trajectory`: the figures of a chain of requests, and the mean changes of groups."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, MANIFEST, FileEntry, Manifest
from meow_ray.core.schema import SCHEMAS

FIRST, SECOND = {"started": "2026-07-01", "facts": 3}, {"started": "2026-07-02", "facts": 5}
Figures = dict[tuple[str, str], float]

BEFORE: Figures = {
    ("forget", "leak"): 0.9,
    ("world_facts", "rougeL_recall"): 0.6,
    ("retain", "rougeL_recall"): 0.8,
    ("lm_eval", "arc/acc"): 0.5,
}


def write(root: Path, name: str, table: pa.Table | None, **summary: Any) -> None:
    folder = root / name / "0123456789abcdef-1"
    files = {}
    if table is not None:
        storage.write_table(table, str(folder / "a" / MAIN))
        files = {MAIN: FileEntry(bytes=1, sha256="0", rows=table.num_rows)}
    manifest = Manifest(
        artifact=name,
        stage=name,
        fingerprint="0123456789abcdef",
        ingredients={},
        attempt="a",
        files=files,
        digest="d",
        rows=None,
        summary=summary,
        started="2026-07-01T10:00:00+00:00",
        seconds=1.0,
        versions={},
    )
    storage.write_json(str(folder / MANIFEST), manifest.model_dump(mode="json"))


def run(root: Path, chain: list[dict[str, Any]], before: Figures, after: Figures) -> str:
    """Writes a run with its metrics and its chain of requests; returns its storage root."""
    rows = [
        (suite, metric, model, value, None, None, 10)
        for model, figures in (("before", before), ("after", after))
        for (suite, metric), value in figures.items()
    ]
    names = SCHEMAS["metrics"].names
    records = [dict(zip(names, row, strict=True)) for row in rows]
    write(root, "metrics", pa.Table.from_pylist(records, schema=SCHEMAS["metrics"]))
    write(root, "model", None, chain=chain)
    return str(root)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    after_first = BEFORE | {("forget", "leak"): 0.1, ("world_facts", "rougeL_recall"): 0.5}
    after_second = {
        ("forget", "leak"): 0.2,
        ("world_facts", "rougeL_recall"): 0.4,
        ("retain", "rougeL_recall"): 0.7,
        ("lm_eval", "arc/acc"): 0.6,
    }
    first = run(tmp_path / "1", [FIRST], BEFORE, after_first)
    second = run(tmp_path / "2", [FIRST, SECOND], after_first, after_second)
    return [f"one={first}", f"two={second}"]


def printed(*arguments: str) -> list[list[str]]:
    """Returns the cells of the printed lines."""
    result = CliRunner().invoke(main.app, ["trajectory", *arguments])
    assert result.exception is None, result.exception
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.splitlines()]


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(main.app, ["trajectory", *arguments])
    assert result.exit_code != 0
    return str(result.exception)


def test_each_model_of_the_chain_is_a_column(runs: list[str]):
    lines = printed(*runs)
    assert lines[0] == ["suite", "metric", "first model", "one", "two"]
    assert ["forget", "leak", "0.900", "0.100", "0.200"] in lines
    assert ["world_facts", "rougeL_recall", "0.600", "0.500", "0.400"] in lines


def test_the_mean_change_is_that_from_the_first_model(runs: list[str]):
    heads, _, general = printed(*runs)[-3:]
    assert heads == ["mean change of", "figures", "one", "two"]
    # retain, world_facts and lm_eval: (0 - 0.1 + 0) / 3 and (-0.1 - 0.2 + 0.1) / 3
    assert general == ["general ability", "3", "-0.033", "-0.067"]


def test_groups_are_suites_or_single_figures(runs: list[str]):
    groups = ("--group", "tasks=lm_eval/arc/acc", "--group", "facts=retain,world_facts")
    tasks, facts = printed(*runs, *groups)[-2:]
    assert tasks == ["tasks", "1", "+0.000", "+0.100"]
    assert facts == ["facts", "2", "-0.050", "-0.150"]


def test_a_request_of_several_rounds_is_one_step(runs: list[str], tmp_path: Path):
    rounds = [FIRST, SECOND, SECOND | {"started": "2026-07-03"}]
    third = run(tmp_path / "3", rounds, BEFORE, BEFORE)
    assert printed(runs[0], f"both={third}")[0][-1] == "both"


def test_runs_that_are_no_chain_are_refused(runs: list[str]):
    assert refusal(runs[1], runs[0]).startswith("one: its target is not the model of two.")
    assert refusal(runs[0], f"again={runs[0].partition('=')[2]}").startswith("again: its target")


def test_a_run_is_named_once(runs: list[str]):
    assert refusal(runs[0], "one=elsewhere").startswith("one: two models would have this name.")


def test_a_run_without_a_model_or_metrics_is_refused(runs: list[str], tmp_path: Path):
    assert f"{tmp_path / 'none'} has no model" in refusal(f"one={tmp_path / 'none'}")


def test_a_figure_that_not_all_models_have_is_named(runs: list[str], tmp_path: Path):
    without = {key: value for key, value in BEFORE.items() if key[0] != "lm_eval"}
    second = run(tmp_path / "other", [FIRST, SECOND], BEFORE, without)
    message = refusal(runs[0], f"two={second}", "--group", "tasks=lm_eval")
    assert message.startswith("The group tasks: no figure lm_eval is measured for all models.")
    assert "forget, world_facts, retain" in message
    # without a group, the suites that all models have are taken
    assert printed(runs[0], f"two={second}")[-1][1] == "2"


@pytest.mark.parametrize("option", ["tasks", "tasks=", "=x"])
def test_a_group_without_figures_is_refused(runs: list[str], option: str):
    assert refusal(*runs, "--group", option) == f"--group {option}: write NAME=FIGURE,FIGURE."
