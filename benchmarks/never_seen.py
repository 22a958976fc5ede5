"""Whether `train.until=never_seen` ends where the best number of epochs would have ended.

Run `python -m benchmarks.never_seen run`, then `python -m benchmarks.never_seen table`.

A model memorises the facts of a case next to others, and then forgets them: once with all defaults,
and once for each of several numbers of epochs. One rule, `best_epochs`, picks the best of these
numbers after the event, which a user cannot do. The defaults are good if their figures are as good
within the intervals.

TOFU's forget01 is the case of `benchmarks.tofu`, in the rows `meow_floor` and `meow_floor, all
epochs`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from tabulate import tabulate

from benchmarks.common import read_figures, run_script, write
from benchmarks.host import PROJECT
from meow_ray.core import storage
from meow_ray.core.formatting import format_optional
from meow_ray.pipeline.pipeline import Pipeline, load_config

NAME = "never_seen"
DATA = PROJECT / "benchmarks" / "data"
DEMO = PROJECT / "pipelines" / "configs" / "demo.yaml"
DEFAULT_ROOT = Path(storage.display(storage.absolute("~/.cache/meow_ray/runs/never_seen")))
DEFAULTS = "defaults"
"""The name of the run that ends by itself."""
RETAINED = 0.95
"""Share of its figures on the retain set that a run should keep; see `best_epochs`."""
SEEDS = 3

COLUMNS = {
    "leak": ("forget", "leak"),
    "leak after half the answer": ("forget_prefix50", "leak"),
    "extraction strength": ("forget", "extraction_strength"),
    "fact probability": ("forget", "probability"),
    "reference-free quality": ("never_seen", "reference_free_forget_quality"),
    "retain ROUGE-L": ("retain", "rougeL_recall"),
    "retain probability": ("retain", "probability"),
}
"""The figures of the table, each a suite and a metric."""

Figure = dict[str, float | None]
"""`value`, and the ends of its interval, `low` and `high`; None without an interval."""
Figures = dict[str, Figure]
"""By the labels of `COLUMNS`."""
Runs = dict[str, Figures]
"""The figures of a case: the target (`target`), and each run by `run_name`."""


@dataclass(frozen=True)
class Case:
    """Facts to forget, and the facts that the model knows next to them."""

    forget: Path
    retain: Path
    epochs: tuple[int, ...]
    """The numbers of epochs that compete with the defaults."""
    candidates: Path | None = None
    """Inverted facts in a language that the demo's generator does not write."""


CASES = {
    "2 facts of a person": Case(
        forget=DATA / "person_forget.jsonl",
        retain=PROJECT / "pipelines" / "data" / "demo_retain.jsonl",
        epochs=(5, 10, 20, 40),
    ),
    "12 facts in Russian": Case(
        forget=DATA / "russian_forget.jsonl",
        retain=DATA / "russian_retain.jsonl",
        epochs=(2, 4, 8, 16),
        candidates=DATA / "russian_inverted.jsonl",
    ),
}

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)


@app.command()
def run(
    root: Annotated[Path, typer.Option(help="Folder of configurations and runs.")] = DEFAULT_ROOT,
    case: Annotated[str, typer.Option(help="The case, or nothing for all.")] = "",
    seeds: Annotated[int, typer.Option(help="Number of seeds.")] = SEEDS,
) -> None:
    """Runs each case with the defaults and with each number of epochs; skips finished runs."""
    if case and case not in CASES:
        raise typer.BadParameter(f"no case {case!r}. Choose from {', '.join(CASES)}.")
    for name in [case] if case else CASES:
        config = write_config(CASES[name], root / name.replace(" ", "_"))
        for seed in range(seeds):
            for epochs in (None, *CASES[name].epochs):
                if run_name(epochs, seed) not in _finished().get(name, {}):
                    _run(name, config, epochs, seed)


@app.command()
def table() -> None:
    """Prints the figures of all runs; the best number of epochs of each seed is marked."""
    for name, runs in _finished().items():
        best = {best_epochs(of_seed(runs, seed), runs["target"]) for seed in range(SEEDS)}
        rows = [
            [f"**{label}**" if label in best else label, *(_cell(figures[key]) for key in COLUMNS)]
            for label, figures in runs.items()
        ]
        heads = ("run", *COLUMNS)
        print(f"{name}:\n\n{tabulate(rows, heads, tablefmt='github', disable_numparse=True)}\n")


# --- runs -----------------------------------------------------------------------------------------


def run_name(epochs: int | None, seed: int) -> str:
    """Returns the name of a run; None for the epochs means that it ends by itself."""
    ending = DEFAULTS if epochs is None else f"{epochs} epochs"
    return f"{ending}, seed {seed}"


def overrides_of(epochs: int | None, seed: int) -> list[str]:
    """Returns the overrides of the configuration for a run."""
    overrides = [f"train.seed={seed}"]
    if epochs is not None:
        overrides += ["train.until=epochs", f"train.epochs={epochs}"]
    return overrides


def write_config(case: Case, root: Path) -> Path:
    """Writes the configuration of a case, which is the demo's with other facts."""
    settings = yaml.safe_load(DEMO.read_text())
    settings["memorize"]["data"] = [str(case.forget), str(case.retain)]
    settings["ingest"] = {"forget": str(case.forget), "retain": str(case.retain)}
    settings["evaluate"]["twins"] = True
    settings["storage"]["root"] = str(root / "runs")
    root.mkdir(parents=True, exist_ok=True)
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(settings, allow_unicode=True))
    return path


def _run(name: str, config: Path, epochs: int | None, seed: int) -> None:
    """Runs the pipeline and writes the figures of the target and of the tuned model."""
    candidates = CASES[name].candidates
    inputs = {"candidates": str(candidates)} if candidates else {}
    overrides = overrides_of(epochs, seed)
    print(f"{name}: {run_name(epochs, seed)}", flush=True)
    options = [f"--input={artifact}={uri}" for artifact, uri in inputs.items()]
    run_script("meow.py", "--config", str(config), *options, *overrides)
    metrics = Pipeline(load_config(config, overrides), inputs).artifact("metrics")
    assert metrics is not None
    rows = metrics.table.to_pylist()
    finished = _finished()
    runs = finished.setdefault(name, {"target": figures_of(rows, "before")})
    runs[run_name(epochs, seed)] = figures_of(rows, "after")
    write(NAME, {"seeds": SEEDS, "retained": RETAINED}, finished)


def _finished() -> dict[str, Runs]:
    """Returns the figures of all runs that have finished, by case."""
    return read_figures(NAME)


# --- figures --------------------------------------------------------------------------------------


def figures_of(rows: Sequence[Mapping[str, Any]], model: str) -> Figures:
    """Returns the figures of a model from the rows of `metrics`."""
    by_key = {(row["suite"], row["metric"]): row for row in rows if row["model"] == model}
    return {
        label: {name: by_key[key][name] for name in ("value", "low", "high")}
        for label, key in COLUMNS.items()
    }


def of_seed(runs: Runs, seed: int) -> Runs:
    """Returns the runs of a seed that took a number of epochs."""
    ending = f" epochs, seed {seed}"
    return {label: figures for label, figures in runs.items() if label.endswith(ending)}


def best_epochs(runs: Runs, target: Figures) -> str | None:
    """Returns the run with the least leak after half the answer among those that retain enough.

    A run retains enough if its ROUGE-L and probability on the retain set are at least the share
    `RETAINED` of the target's. If none does, the run with the highest probability there is best.
    """
    retained = ("retain ROUGE-L", "retain probability")

    def value(figures: Figures, label: str) -> float:
        number = figures[label]["value"]
        assert number is not None
        return number

    useful = [
        label
        for label, figures in runs.items()
        if all(value(figures, key) >= RETAINED * value(target, key) for key in retained)
    ]
    if useful:
        return min(useful, key=lambda label: value(runs[label], "leak after half the answer"))
    return max(runs, key=lambda label: value(runs[label], "retain probability"), default=None)


def _cell(figure: Figure) -> str:
    """Returns a figure with its interval."""
    value, low, high = (format_optional(figure[name]) for name in ("value", "low", "high"))
    return value if figure["low"] is None else f"{value} [{low}, {high}]"


if __name__ == "__main__":
    app()
