"""The benchmark of fixed costs without its runs: phases, figures, and what is printed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import startup
from benchmarks.processes import Tree, Watched
from benchmarks.startup import Point, Profile


def tree(*samples: tuple[float, float]) -> Tree:
    return Tree(
        seconds={1: 3.0, 2: 1.0, 3: 0.5},
        titles={1: "meow.py", 2: "ray::EngineActor", 3: "ray::EngineActor"},
        times=[time for time, _ in samples],
        totals=[total for _, total in samples],
    )


POINTS = [
    Point("process started", 0.0),
    Point("Ray joined", 2.0),
    Point("memo started", 3.0),
    Point("stream started", 4.0),
    Point("worker started", 6.0),
    Point("memo finished", 10.0),
    Point("process ended", 11.0),
]


def profile(factor: float = 1.0) -> Profile:
    used = tree((1.0, 1.0 * factor), (5.0, 2.0 * factor), (10.0, 4.5 * factor))
    return Profile(Watched(0.0, 11.0 * factor, used), startup.phases_of(POINTS, used))


def test_phases_belong_to_the_stage_that_runs():
    rows = [(row["stage"], row["until"], row["wall_seconds"]) for row in profile().phases]
    assert rows == [
        ("run", "Ray joined", 2.0),
        ("run", "memo started", 1.0),
        ("memo", "stream started", 1.0),
        ("memo", "worker started", 2.0),
        ("memo", "memo finished", 4.0),
        ("run", "process ended", 1.0),
    ]


def test_cpu_seconds_are_those_of_the_last_sample_before_a_point():
    assert [row["cpu_seconds"] for row in profile().phases] == [1.0, 0.0, 0.0, 1.0, 2.5, 0.0]
    assert profile().totals() == {
        "run": {"wall_seconds": 4.0, "cpu_seconds": 1.0},
        "memo": {"wall_seconds": 7.0, "cpu_seconds": 3.5},
    }


def test_processes_are_grouped_by_title():
    assert tree().by_title() == {
        "meow.py": {"processes": 1, "cpu_seconds": 3.0},
        "ray::EngineActor": {"processes": 2, "cpu_seconds": 1.5},
    }


def test_ratios_are_medians_over_pairs():
    ours, theirs = [profile(2.0), profile(2.0), profile(3.0)], [profile(4.0)] * 3
    assert startup.ratios(ours, theirs) == {"wall_seconds": 0.5, "cpu_seconds": 0.5}


def test_points_are_read_in_order_of_time(tmp_path: Path):
    path = tmp_path / "timeline.jsonl"
    rows = [{"point": "b", "process": 7, "time": 2.5}, {"point": "a", "process": 8, "time": 1.5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert startup.read_points(path) == [Point("a", 1.5), Point("b", 2.5)]


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[str]] = []

    def run(project: Path, arguments: list[str]) -> Profile:
        asked.append(arguments)
        return profile()

    monkeypatch.setattr(startup, "profile", run)
    output = tmp_path / "startup.json"
    result = CliRunner().invoke(startup.app, ["--only", "memo", "--output", str(output)])
    assert result.exception is None
    assert "| `memo` | worker started | 2.0 | 1.0 |" in result.output
    assert asked == [["--only", "memo", *startup.LITTLE_WORK]]
    figures = json.loads(output.read_text())["figures"]
    assert figures["wall_seconds"] == 11.0
    assert figures["stages"]["memo"] == {"wall_seconds": 7.0, "cpu_seconds": 3.5}


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path):
    arguments = ["--against", str(tmp_path)]
    result = CliRunner().invoke(startup.app, arguments, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert "is no checkout" in result.output
