"""Comparison of runs: their metrics in one table, and seeds as mean and deviation."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, MANIFEST, FileEntry, Manifest
from meow_ray.core.schema import SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.report import compare


def publish(
    root: Path, leak: float, interval: bool = True, definitions: str = "meow", number: int = 1
) -> str:
    """Writes the metrics of a run; returns its storage root.

    Number 2 is a later evaluation of the target alone.
    """
    low, high = (leak - 0.1, leak + 0.1) if interval else (None, None)
    rows = [
        ("forget", "leak", "before", 0.9, 0.8, 1.0, 40),
        ("forget", "leak", "after", leak, low, high, 40),
        ("tofu", "forget_quality", "after", 1.8e-21, None, None, 40),
    ]
    if number == 2:
        rows = rows[:1]
    table = pa.Table.from_pylist(
        [dict(zip(SCHEMAS["metrics"].names, row, strict=True)) for row in rows],
        schema=SCHEMAS["metrics"],
    )
    folder = root / "metrics" / f"0123456789abcdef-{number}"
    storage.write_table(table, str(folder / "a" / MAIN))
    manifest = Manifest(
        artifact="metrics",
        stage="evaluate",
        fingerprint="0123456789abcdef",
        ingredients={"spec": {"evaluate": {"definitions": definitions}}},
        attempt="a",
        files={MAIN: FileEntry(bytes=1, sha256="0", rows=3)},
        digest="d",
        rows=3,
        summary={},
        started=f"2026-07-0{number}T10:00:00+00:00",
        seconds=1.0,
        versions={},
    )
    storage.write_json(str(folder / MANIFEST), manifest.model_dump(mode="json"))
    return str(root)


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(main.app, ["compare", *arguments])
    assert result.exception is None, result.exception
    return str(result.output)


def test_runs_are_columns_of_one_table(tmp_path: Path):
    a, b = publish(tmp_path / "a", 0.25), publish(tmp_path / "b", 0.5, interval=False)
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in printed(f"ours={a}", f"peer={b}").splitlines()
    ]
    assert lines[0] == ["suite", "metric", "ours", "peer"]
    assert lines[2:] == [
        ["forget", "leak", "0.250 [0.150, 0.350]", "0.500"],
        ["tofu", "forget_quality", "1.8e-21", "1.8e-21"],
    ]


def test_seeds_become_mean_and_standard_deviation(tmp_path: Path):
    seeds = [f"ours={publish(tmp_path / str(i), leak)}" for i, leak in enumerate((0.1, 0.2, 0.3))]
    lines = printed(*seeds, "--format", "csv").splitlines()
    assert lines[0] == "suite,metric,run,value,low,high,spread,runs,num_examples"
    assert lines[1].split(",")[:3] == ["forget", "leak", "ours"]
    assert [float(cell) for cell in lines[1].split(",")[3:4]] == [pytest.approx(0.2)]
    assert float(lines[1].split(",")[6]) == pytest.approx(0.1)
    assert lines[1].split(",")[7:] == ["3", "40"]
    assert "0.200 ± 0.100 (3 runs)" in printed(*seeds)


def test_a_comparison_is_a_table_for_programs(tmp_path: Path):
    seeds = [publish(tmp_path / str(seed), leak) for seed, leak in enumerate((0.1, 0.3))]
    runs = [("ours", seed) for seed in seeds] + [("peer", publish(tmp_path / "peer", 0.5))]
    named = [(name, compare.metrics_of(root, "after")) for name, root in runs]
    table = compare.as_arrow(compare.metrics_by_run(named, "after"))
    assert table.schema == compare.COMPARISON_SCHEMA
    ours, peer = table.filter(pc.equal(table["metric"], "leak")).to_pylist()
    assert (ours["run"], ours["low"], ours["high"], ours["runs"]) == ("ours", None, None, 2)
    assert ours["value"] == pytest.approx(0.2)
    assert ours["spread"] == pytest.approx(0.2 / 2**0.5)
    assert (peer["run"], peer["value"], peer["spread"], peer["runs"]) == ("peer", 0.5, None, 1)
    assert (peer["low"], peer["high"]) == (0.4, 0.6)


def test_latex_and_another_model(tmp_path: Path):
    text = printed(publish(tmp_path / "a", 0.25), "--format", "latex", "--model", "before")
    assert "\\toprule" in text
    assert "0.900 [0.800, 1.000]" in text
    assert "forget\\_quality" not in text


def test_a_folder_of_metrics_is_accepted_as_a_run(tmp_path: Path):
    root = publish(tmp_path / "a", 0.25)
    assert "0.250" in printed(f"{root}/metrics/0123456789abcdef-1")
    assert "0.250" in printed(f"{root}/metrics/0123456789abcdef-1/a")


@pytest.mark.parametrize("arguments", [["nowhere"], ["x=nowhere"]])
def test_a_folder_without_metrics_is_refused(tmp_path: Path, arguments: list[str]):
    with pytest.raises(
        MeowError, match=r"^nowhere: there are no metrics of a run\. Give the storage root"
    ):
        compare.metrics_of(arguments[0].removeprefix("x="), "after")


def test_a_path_may_have_an_equals_sign(tmp_path: Path):
    root = publish(tmp_path / "lr=1e-4", 0.25)
    assert f"| {root} " in printed(root).splitlines()[0]
    assert "| a=b " not in printed(f"a={root}").splitlines()[0]


def test_a_run_without_metrics_of_the_model_is_named(tmp_path: Path):
    root = publish(tmp_path / "a", 0.25)
    error = (
        CliRunner().invoke(main.app, ["compare", f"ours={root}", "--model=retain_model"]).exception
    )
    assert isinstance(error, MeowError)
    assert str(error).startswith("ours: the run at")
    assert str(error).endswith(
        "has no metrics of this model (retain_model). Compare another one with --model: it has "
        "after, before."
    )


def test_a_later_evaluation_of_the_target_alone_is_not_taken_for_the_run(tmp_path: Path):
    root = publish(tmp_path / "a", 0.25)
    before = printed(f"a={root}")
    publish(tmp_path / "a", 0.25, number=2)
    assert printed(f"a={root}") == before


def test_runs_of_different_definitions_are_not_compared(tmp_path: Path):
    ours = publish(tmp_path / "a", 0.25)
    theirs = publish(tmp_path / "b", 0.25, definitions="open_unlearning")
    error = CliRunner().invoke(main.app, ["compare", f"a={ours}", f"b={theirs}"]).exception
    assert isinstance(error, MeowError)
    assert "different definitions (a: meow, b: open_unlearning)" in str(error)
    assert "leak" in printed(f"b={theirs}", f"again={theirs}")


def test_unknown_choices_are_refused(tmp_path: Path):
    root = publish(tmp_path / "a", 0.25)
    for option, message in (
        ("--format=word", "--format word: unknown. Choose from markdown, csv, latex."),
        ("--model=middle", "--model middle: unknown. Choose from before, after, retain_model."),
    ):
        error = CliRunner().invoke(main.app, ["compare", root, option]).exception
        assert isinstance(error, MeowError)
        assert message in str(error)
