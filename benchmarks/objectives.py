"""All presets of objectives on the demo target, and MEOW in rounds.

Run `python -m benchmarks.objectives run`, then `python -m benchmarks.objectives table`.

All runs have the same learning rate, epochs and batches, except that of `meow_floor`, which ends by
itself and has its defaults. They show that each objective works from end to end, and its effect
with these settings. They do not rank the objectives: that takes a grid of settings for each
(`python -m benchmarks.tofu`).
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from benchmarks.common import metrics_of, report, run_script
from benchmarks.host import PROJECT
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import EXAMPLES_FILE
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.pipeline.rounds import parts_of_run
from meow_ray.stages.train.presets import PRESETS

CONFIG = PROJECT / "pipelines" / "configs" / "demo.yaml"
SETTINGS = ("train.learning_rate=3e-4", "train.epochs=4", "train.batch_size=12")
"""What the runs have in common beside the settings of the demo."""
ROUNDS = 2
THRESHOLD = 0.5
"""Facts with a higher MEMO go into the next round. The value was fixed before the first run."""
COLUMNS = {
    "forget MEMO": ("forget", "memo"),
    "leak": ("forget", "leak"),
    "leak behind half the answer": ("forget_prefix50", "leak"),
    "extraction strength": ("forget", "extraction_strength"),
    "Rep-3": ("forget", "rep3"),
    "retain MEMO": ("retain", "memo"),
    "ROUGE-L": ("retain", "rougeL_recall"),
    "probability": ("retain", "probability"),
}
"""The figures of the table, each a suite and a metric."""
ABOVE = "facts above the threshold"

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)


@app.command()
def run(
    minutes: Annotated[float, typer.Option(help="Start no run after this time.")] = 1e9,
) -> None:
    """Runs the objectives, then MEOW in rounds; skips runs that the demo's storage root has."""
    end = time.monotonic() + 60 * minutes
    for overrides in _all_overrides().values():
        if _figures(overrides, "after") is not None or time.monotonic() >= end:
            continue
        print(*overrides, flush=True)
        # one worker gives the same result as two, without their communication
        single_worker = ("resources.train.num_workers=1", "resources.train.cpus_per_worker=2")
        run_script("meow.py", "--config", str(CONFIG), *overrides, *single_worker)


@app.command()
def table(output: Annotated[Path | None, typer.Option(help="JSON file.")] = None) -> None:
    """Prints a table of the runs that are complete, and writes it as JSON."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    for name, overrides in _all_overrides().items():
        after = _figures(overrides, "after")
        if after is None:
            continue
        if not rows:
            before = _figures(overrides, "before")
            assert before is not None
            rows.append(["target", *_cells(before)])
            figures["target"] = before
        rows.append([name, *_cells(after)])
        figures[name] = after
    print(tabulate(rows, ("objective", *COLUMNS, ABOVE), tablefmt="github", disable_numparse=True))
    report("objectives", {"rounds": ROUNDS, "threshold": THRESHOLD}, figures, output)


def _cells(figures: dict[str, float]) -> list[str]:
    """Returns a row of the table."""
    return [*(format_number(figures[label]) for label in COLUMNS), str(figures[ABOVE])]


def _all_overrides() -> dict[str, list[str]]:
    """Returns the overrides of the demo's configuration for each run, by the name of the run."""
    overrides = {name: [*SETTINGS, f"train.objective={name}"] for name in PRESETS}
    overrides["meow_floor"] = ["train.objective=meow_floor"]
    overrides[f"meow, {ROUNDS} rounds"] = [
        *SETTINGS,
        "train.objective=meow",
        f"pipeline.rounds={ROUNDS}",
        f"pipeline.threshold={THRESHOLD}",
    ]
    return overrides


def _figures(overrides: list[str], model: str) -> dict[str, float] | None:
    """Returns the figures of a run and the number of facts above the threshold.

    None if the run is not complete.
    """
    pipeline = _evaluating_pipeline(overrides)
    if pipeline is None:
        return None
    values = metrics_of(pipeline, model)
    if values is None:
        return None
    metrics = pipeline.artifact("metrics")
    assert metrics is not None
    examples = [row for row in metrics.extra(EXAMPLES_FILE).to_pylist() if row["model"] == model]
    above = sum(row["suite"] == "forget" and (row["memo"] or 0.0) > THRESHOLD for row in examples)
    return {label: values[key] for label, key in COLUMNS.items()} | {ABOVE: above}


def _evaluating_pipeline(overrides: list[str]) -> Pipeline | None:
    """Returns the last pipeline of a run if it evaluates.

    In a run in rounds, it exists once the rounds before are complete.
    """
    *_, last = parts_of_run(load_config(CONFIG, overrides))
    evaluates = any(stage.name == "evaluate" for stage in last.stages)
    return last.pipeline if evaluates else None


if __name__ == "__main__":
    app()
