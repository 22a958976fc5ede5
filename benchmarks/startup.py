"""Fixed costs of a small run: `python -m benchmarks.startup`.

The demo runs with little work per stage, from an empty storage root. Its timeline tells when each
process reached which point, and samples of the process tree tell how many CPU seconds all
processes of the run had used by then.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from benchmarks.common import report
from benchmarks.host import PROJECT
from benchmarks.processes import Tree, Watched, watch
from meow_ray.core import timeline

CONFIG = "pipelines/configs/demo.yaml"
LITTLE_WORK = (
    "memorize.epochs=1",
    "train.max_steps=2",
    "memo.max_new_tokens=1",
    "invert.max_attempts=1",
    "evaluate.max_new_tokens=1",
    "evaluate.memo=false",
    "evaluate.attacks=[]",
    "evaluate.bootstrap_resamples=100",
)
"""Overrides of the demo that leave each stage its fixed costs and little else."""
BEFORE, AFTER = "process started", "process ended"
"""The first and the last point of a run, which are seen from outside."""
NOT_STAGES = ("worker", "stream")
"""What else starts, apart from stages."""
MEASURES = ("wall_seconds", "cpu_seconds")

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Point:
    """A point that a process of the run has reached, and the time in seconds since 1970."""

    name: str
    time: float


def read_points(path: Path) -> list[Point]:
    """Returns the points of a timeline in order."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((Point(row["point"], row["time"]) for row in rows), key=lambda point: point.time)


def phases_of(points: Sequence[Point], tree: Tree) -> list[dict[str, Any]]:
    """Returns what lies between consecutive points: its stage, last point, wall and CPU seconds.

    What belongs to no stage has the stage `run`.
    """
    stage = "run"
    found = []
    for before, after in pairwise(points):
        found.append(
            {
                "stage": stage,
                "until": after.name,
                "wall_seconds": after.time - before.time,
                "cpu_seconds": tree.until(after.time) - tree.until(before.time),
            }
        )
        name, _, event = after.name.rpartition(" ")
        if event == "started" and name not in NOT_STAGES:
            stage = name
        elif after.name == f"{stage} finished":
            stage = "run"
    return found


@dataclass(frozen=True)
class Profile:
    """A run of the demo, cut into phases."""

    run: Watched
    phases: list[dict[str, Any]]

    def totals(self) -> dict[str, dict[str, float]]:
        """Returns the wall and CPU seconds of each stage."""
        found: dict[str, dict[str, float]] = {}
        for row in self.phases:
            total = found.setdefault(row["stage"], dict.fromkeys(MEASURES, 0.0))
            for name in MEASURES:
                total[name] += row[name]
        return found


def profile(project: Path, arguments: Sequence[str]) -> Profile:
    """Runs the demo of a checkout on an empty storage root."""
    command = [sys.executable, "pipelines/meow.py", "--config", CONFIG, *arguments]
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        path = Path(folder, "timeline.jsonl")
        path.touch()
        env = {"PYTHONPATH": str(project), "MEOW_RUNS": folder, timeline.FILE: str(path)}
        run = watch(command, project, env)
        points = [Point(BEFORE, run.started), *read_points(path), Point(AFTER, run.ended)]
    return Profile(run, phases_of(points, run.tree))


# --- figures --------------------------------------------------------------------------------------


def figures(profiles: Sequence[Profile]) -> dict[str, Any]:
    """Returns wall and CPU seconds of runs, in all and by stage, by phase and kind of process.

    Totals are medians over the runs. Phases and processes are those of the first run.
    """
    totals = [profile.totals() for profile in profiles]
    runs = [profile.run.seconds() for profile in profiles]
    return {
        **{name: median(run[name] for run in runs) for name in MEASURES},
        "stages": {
            stage: {name: median(run[stage][name] for run in totals) for name in MEASURES}
            for stage in totals[0]
        },
        "phases": profiles[0].phases,
        "processes": profiles[0].run.tree.by_title(),
    }


def ratios(ours: Sequence[Profile], theirs: Sequence[Profile]) -> dict[str, float]:
    """Returns wall and CPU seconds relative to another checkout's: medians over pairs of runs."""
    pairs = [(a.run.seconds(), b.run.seconds()) for a, b in zip(ours, theirs, strict=True)]
    return {name: median(a[name] / b[name] for a, b in pairs) for name in MEASURES}


def table(phases: Sequence[Mapping[str, Any]]) -> str:
    """Returns the phases as a Markdown table."""
    lines = ["| stage | until | seconds | CPU seconds |", "| --- | --- | --- | --- |"]
    for row in phases:
        seconds = f"{row['wall_seconds']:.1f} | {row['cpu_seconds']:.1f}"
        lines.append(f"| `{row['stage']}` | {row['until']} | {seconds} |")
    return "\n".join(lines)


@app.command()
def startup(
    only: Annotated[str | None, typer.Option(help="Run this stage alone.")] = None,
    repeat: Annotated[int, typer.Option(help="Number of runs.", min=1)] = 1,
    against: Annotated[
        Path | None, typer.Option(help="Another checkout, whose runs alternate with these.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file [benchmarks/results/startup.json].")
    ] = None,
) -> None:
    """Profile the fixed costs of a run of the demo with little work per stage."""
    if against is not None and not (against / CONFIG).exists():
        raise typer.BadParameter(f"{against} is no checkout: it has no {CONFIG}.")
    arguments = [*(("--only", only) if only else ()), *LITTLE_WORK]
    ours: list[Profile] = []
    theirs: list[Profile] = []
    for _ in range(repeat):
        if against is not None:
            theirs.append(profile(against, arguments))
        ours.append(profile(PROJECT, arguments))
    found = figures(ours)
    if theirs:
        found |= {"other": figures(theirs), "over_other": ratios(ours, theirs)}
    print(table(found["phases"]))
    settings = {"only": only, "repeat": repeat, "overrides": LITTLE_WORK}
    report("startup", settings, found, output)


if __name__ == "__main__":
    app()
