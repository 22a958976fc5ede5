"""Every objective from its preset on the demo target, and MEOW in rounds: `python -m benchmarks.objectives run|table`.

All have the demo's settings: the same learning rate, epochs and batches. It shows that each works from end to end and
what it does there; it does not rank them, which takes a grid for each (`python -m benchmarks.tofu`).
"""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from benchmarks.common import PROJECT, metrics_of, report, run_script
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.pipeline.rounds import parts_of_run
from meow_ray.stages.report import compare
from meow_ray.stages.train.objectives import PRESETS

CONFIG = PROJECT / "pipelines" / "configs" / "demo.yaml"
ROUNDS = 2
THRESHOLD = 0.5
"""MEMO above which a fact goes round again, fixed before anything was run."""
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
ABOVE = "facts above the threshold"

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)


@app.command()
def run(
    minutes: Annotated[float, typer.Option(help="Begin nothing more after so many.")] = 1e9,
) -> None:
    """Runs what is not there yet, below the demo's storage root: the objectives, then the rounds."""
    end = time.monotonic() + 60 * minutes
    for overrides in (*([f"train.objective={name}"] for name in PRESETS), _in_rounds()):
        if _figures(overrides, "after") is None and time.monotonic() < end:
            print(*overrides, flush=True)
            # the same result on one worker, without what two exchange
            few = ("resources.train.num_workers=1", "resources.train.cpus_per_worker=2")
            run_script("meow.py", "--config", str(CONFIG), *overrides, *few)


@app.command()
def table(output: Annotated[Path | None, typer.Option(help="JSON file.")] = None) -> None:
    """Prints one table of what is there, and writes it as JSON."""
    rows: list[list[str]] = []
    figures: dict[str, Any] = {}
    everything = {name: [f"train.objective={name}"] for name in PRESETS} | {
        f"meow, {ROUNDS} rounds": _in_rounds()
    }
    for name, overrides in everything.items():
        found = _figures(overrides, "after")
        if found is None:
            continue
        if not rows:
            before = _figures(overrides, "before")
            assert before is not None
            rows.append(["target", *_cells(before)])
            figures["target"] = before
        rows.append([name, *_cells(found)])
        figures[name] = found
    print(tabulate(rows, ("objective", *COLUMNS, ABOVE), tablefmt="github", disable_numparse=True))
    report("objectives", {"rounds": ROUNDS, "threshold": THRESHOLD}, figures, output)


def _cells(figures: dict[str, float]) -> list[str]:
    return [*(compare.number(figures[label]) for label in COLUMNS), str(figures[ABOVE])]


def _in_rounds() -> list[str]:
    return ["train.objective=meow", f"pipeline.rounds={ROUNDS}", f"pipeline.threshold={THRESHOLD}"]


def _figures(overrides: list[str], model: str) -> dict[str, float] | None:
    """Returns the figures of a run, with the facts whose MEMO is above the threshold; None if it was not done."""
    pipeline = _last(overrides)
    values = metrics_of(pipeline, model) if pipeline else None
    if pipeline is None or values is None:
        return None
    metrics = pipeline.artifact("metrics")
    assert metrics is not None
    examples = [
        row for row in metrics.extra("examples.parquet").to_pylist() if row["model"] == model
    ]
    above = sum(row["suite"] == "forget" and (row["memo"] or 0.0) > THRESHOLD for row in examples)
    return {label: values[key] for label, key in COLUMNS.items()} | {ABOVE: above}


def _last(overrides: list[str]) -> Pipeline | None:
    """Returns the pipeline that evaluates: of a run in rounds the last, which there is once the others are done."""
    found = None
    for part in parts_of_run(load_config(CONFIG, overrides)):
        found = part
    return (
        found.pipeline
        if found and any(stage.name == "evaluate" for stage in found.stages)
        else None
    )


if __name__ == "__main__":
    app()
