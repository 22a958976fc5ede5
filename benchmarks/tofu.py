"""Compares MEOW with other methods on TOFU with SmolLM2-135M.

Run `python -m benchmarks.tofu run`, and `python -m benchmarks.tofu table` for the tables.

All methods start from the same target, which has memorised a forget split and a sample of retain
facts. They take the same number of optimiser steps, or end earlier, and no method has a larger grid
of learning rates than another. One rule chooses the learning rate of each method on the first seed;
the other seeds use that rate. `run` resumes where it stopped, on another machine, too: the figures
of each run are written to `benchmarks/results/`, one file for each split and way of evaluation. The
runs themselves are cached below `--root`.

With `--fast`, evaluation generates no text: forget quality, extraction strength, Min-K % and the
parts of utility without ROUGE are measured in teacher-forced passes. A run without `--fast` reuses
the models that it trained.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from tabulate import tabulate

from benchmarks.common import run_script
from benchmarks.tofu_figures import (
    MAIN_TABLE,
    TRACES_TABLE,
    Figures,
    Finished,
    cell,
    chosen_rate,
    columns,
    figures_of,
    read_finished,
    share,
    write_finished,
)
from benchmarks.tofu_floors import distances, print_distances
from benchmarks.tofu_methods import METHODS, OWN_RATE, RATES
from benchmarks.tofu_setting import STEPS, Dtype, Setting, Split
from meow_ray.core import storage
from meow_ray.core.formatting import format_number
from meow_ray.pipeline.pipeline import Pipeline, load_config

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
Root = Annotated[Path, typer.Option(help="Folder of data and storage root.")]
SplitOption = Annotated[Split, typer.Option("--split", help="Facts to forget.")]
FastOption = Annotated[bool, typer.Option("--fast", help="Measure without generating text.")]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Precision of training.")]
DEFAULT_ROOT = Path(storage.display(storage.absolute("~/.cache/meow_ray/runs/tofu")))
ALL_METHODS = ";".join(METHODS)


@app.command()
def run(
    root: Root = DEFAULT_ROOT,
    minutes: Annotated[float, typer.Option(help="Start no run after this time.")] = 1e9,
    seeds: Annotated[int, typer.Option(help="Number of seeds at the chosen learning rate.")] = 3,
    methods: Annotated[str, typer.Option(help="Methods, separated by semicolons.")] = ALL_METHODS,
    split: SplitOption = "forget01",
    fast: FastOption = False,
    dtype: DtypeOption = "float32",
    refresh: Annotated[
        bool, typer.Option("--refresh", help="Measure finished runs that lack a figure again.")
    ] = False,
) -> None:
    """Runs the grid on seed 0, then the other seeds at the chosen rate; skips finished runs."""
    names = [name.strip() for name in methods.split(";")]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"no method {unknown[0]!r}. Choose from {', '.join(METHODS)}.")
    setting = Setting(split, fast, dtype)
    read_finished(setting)  # refuses other settings before anything runs
    config = setting.write_config(root)
    deadline = time.monotonic() + 60 * minutes

    def run_unless_finished(name: str, rate: str, seed: int) -> None:
        finished = read_finished(setting)
        if time.monotonic() < deadline and _is_wanted(finished, name, rate, seed, setting, refresh):
            _run(config, setting, finished, name, rate, seed)

    for name in names:
        for rate in METHODS[name].rates:
            run_unless_finished(name, rate, 0)
    for seed in range(1, seeds):
        for name in names:
            chosen = chosen_rate(read_finished(setting), name, setting)
            if chosen:
                run_unless_finished(name, chosen, seed)


@app.command()
def table(
    split: SplitOption = "forget01", fast: FastOption = False, dtype: DtypeOption = "float32"
) -> None:
    """Prints the methods at their chosen learning rates, and the grid of seed 0."""
    setting = Setting(split, fast, dtype)
    finished = read_finished(setting)
    _print("Forgetting and utility:", MAIN_TABLE, finished, setting)
    _print("Traces, and the composite of open-unlearning:", TRACES_TABLE, finished, setting)
    print(f"Forget quality / {setting.utility} of seed 0 at each learning rate:\n")
    rows = [
        [name, *(_pair(finished.cell(name, rate, 0), setting) for rate in RATES)]
        for name, method in METHODS.items()
        if method.rates == RATES
    ]
    print(tabulate(rows, ("method", *RATES), tablefmt="github", disable_numparse=True))


@app.command()
def agreement(
    split: SplitOption = "forget01", fast: FastOption = False, dtype: DtypeOption = "float32"
) -> None:
    """Prints how well reference-free forget quality predicts the official one, over all runs."""
    from scipy.stats import spearmanr

    labels = ("forget quality", "reference-free quality")
    finished = read_finished(Setting(split, fast, dtype))
    cells = [
        figures
        for rates in finished.runs.values()
        for seeds in rates.values()
        for figures in seeds.values()
        if all(label in figures for label in labels)
    ]
    if len(cells) < 3:
        print(f"{len(cells)} runs have both figures; a rank correlation needs three.")
        return
    official, free = ([figures[label] for figures in cells] for label in labels)
    result = spearmanr(official, free)
    print(f"Spearman's rank correlation over {len(cells)} runs: {result.statistic:.3f}")
    rows = [(format_number(x), format_number(y)) for x, y in zip(official, free, strict=True)]
    print(tabulate(sorted(rows), labels, tablefmt="github", disable_numparse=True))


@app.command()
def floors(root: Root = DEFAULT_ROOT, split: SplitOption = "forget01") -> None:
    """Prints how far true facts that were never taught lie above the floors of `meow_floor`."""
    print_distances(distances(Setting(split, fast=True), root))


# --- tables ---------------------------------------------------------------------------------------


def _print(title: str, labels: Sequence[str], finished: Finished, setting: Setting) -> None:
    """Prints a table of the models without unlearning, and of each method at its chosen rate."""
    target = finished.models.get("target", {})

    def cells(seeds: Sequence[Figures]) -> list[str]:
        return [
            share(seeds, target, setting) if label == "utility share" else cell(seeds, label)
            for label in labels
        ]

    rows = [[name, "", "", "", *cells([figures])] for name, figures in finished.models.items()]
    for name, method in METHODS.items():
        rate = chosen_rate(finished, name, setting)
        if rate is not None:
            seeds = list(finished.runs[name][rate].values())
            rows.append([name, method.retain_data, rate, str(len(seeds)), *cells(seeds)])
    heads = ("method", "retain data", "learning rate", "seeds", *labels)
    print(f"{title}\n\n{tabulate(rows, heads, tablefmt='github', disable_numparse=True)}\n")


def _pair(figures: Figures | None, setting: Setting) -> str:
    if figures is None:
        return "–"
    pair = (figures["forget quality"], figures[setting.utility])
    return " / ".join(format_number(value) for value in pair)


# --- runs -----------------------------------------------------------------------------------------


def overrides_of(name: str, rate: str, seed: int, setting: Setting) -> list[str]:
    """Returns the overrides of the configuration for a run."""
    method = METHODS[name]
    overrides = [*method.overrides, f"train.seed={seed}", f"select.seed={seed}"]
    if rate != OWN_RATE:
        overrides.append(f"train.learning_rate={rate}")
    if method.epochs is not None:
        overrides.append(f"train.epochs={method.epochs}")
    if method.is_limited:
        overrides.append(f"train.max_steps={STEPS[setting.split]}")
    return overrides


def _is_wanted(
    finished: Finished, name: str, rate: str, seed: int, setting: Setting, refresh: bool
) -> bool:
    """Tells whether a run has not finished, or lacks a figure that is measured by now."""
    figures = finished.cell(name, rate, seed)
    if figures is None:
        return True
    return refresh and any(label not in figures for label in columns(setting))


def _run(
    config: Path, setting: Setting, finished: Finished, name: str, rate: str, seed: int
) -> None:
    """Runs a method and writes its figures."""
    overrides = overrides_of(name, rate, seed, setting)
    inputs: dict[str, str] = {}
    if METHODS[name].uses_authors_candidates:
        inputs["candidates"] = setting.authors_candidates()
    print(f"{name}, learning rate {rate}, seed {seed}", flush=True)
    input_options = [f"--input={artifact}={uri}" for artifact, uri in inputs.items()]
    run_script("meow.py", "--config", str(config), *input_options, *overrides)
    pipeline = Pipeline(load_config(config, overrides), inputs)
    tuned = pipeline.artifact("model")
    assert tuned is not None
    assert tuned.manifest is not None
    finished.add_models(
        {
            "target": figures_of(pipeline, "before", setting),
            "retain model": figures_of(pipeline, "retain_model", setting),
        }
    )
    training = {
        "minutes": tuned.manifest.seconds / 60,
        "steps": float(tuned.manifest.summary["steps"]),
    }
    finished.add(name, rate, seed, figures_of(pipeline, "after", setting) | training)
    write_finished(finished, setting)


if __name__ == "__main__":
    app()
