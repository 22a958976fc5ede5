"""Compares MEOW with other methods on TOFU forget01 with SmolLM2-135M.

Run `python -m benchmarks.tofu run`, and `python -m benchmarks.tofu table` for the tables.

All methods start from the same target, which has memorised forget01 and a sample of retain facts.
They take the same number of optimiser steps and have the same grid of learning rates. One rule
chooses the learning rate of each method on the first seed; the other seeds use that rate. `run`
resumes where it stopped, on another machine, too: the figures of each run are written to
`benchmarks/results/tofu.json`. The runs themselves are cached below `--root`.
"""

import json
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import typer
import yaml
from tabulate import tabulate

from benchmarks.common import RESULTS, SHARED_DATA, SMALL_MODEL, metrics_of, run_script, write
from meow_ray.core import storage
from meow_ray.core.formatting import format_number
from meow_ray.pipeline.pipeline import Pipeline, load_config

SEED = 7
"""Seed of the samples of facts, and of `evaluate`."""
RETAIN = 160
"""Number of retain facts that the target and the retain model have memorised."""
EVALUATED = 60
"""Number of retain facts, and of holdout facts, that are evaluated."""
TEMPLATE = "<|im_start|>user\n{{ question }}<|im_end|>\n<|im_start|>assistant\n"
"""The template of the target, which is that of the base model."""
LEARNING_RATE = 2e-4
"""The learning rate with which the target memorises facts.

It is so low that the target keeps the base model's knowledge of the world. With a bare template and
5e-4 the target named 2 of 60 real authors, so that model utility, a harmonic mean, was the noise of
these two.
"""
RATES = ("3.0e-5", "1.0e-4", "3.0e-4")
"""The grid of learning rates, which is the same for all methods."""
UTILITY = 0.95
"""Share of the target's model utility that a method should retain, see `chosen_rate`."""
EPOCHS_OF_FACTS = "12"
"""Epochs of the 40 facts that give 60 steps of 8 items."""
EPOCHS_OF_THREE_ANSWERS = "4"
"""Epochs of three answers to each of the 40 facts that give 60 steps of 8 items."""
SETTINGS = {
    "retain": RETAIN,
    "evaluated": EVALUATED,
    "rates": list(RATES),
    "utility": UTILITY,
    "steps": 60,
    "target": LEARNING_RATE,
    "template": TEMPLATE,
}
FILE = RESULTS / "tofu.json"


@dataclass(frozen=True)
class Method:
    """The settings in which a method differs from the others."""

    overrides: tuple[str, ...]
    epochs: str
    uses_retain: bool = False
    uses_authors_candidates: bool = False


METHODS = {
    "MEOW": Method(("train.objective=meow",), EPOCHS_OF_THREE_ANSWERS),
    "MEOW, the authors' candidates": Method(
        ("train.objective=meow",), EPOCHS_OF_THREE_ANSWERS, uses_authors_candidates=True
    ),
    "MEOW, random candidates": Method(
        ("train.objective=meow", "select.order=random"), EPOCHS_OF_THREE_ANSWERS
    ),
    "gradient ascent": Method(("train.objective=gradient_ascent",), EPOCHS_OF_FACTS),
    "NPO": Method(("train.objective=npo",), EPOCHS_OF_FACTS),
    "GradDiff": Method(("train.objective=grad_diff",), EPOCHS_OF_FACTS, uses_retain=True),
    "SimNPO": Method(("train.objective=simnpo",), EPOCHS_OF_FACTS, uses_retain=True),
    "IDK": Method(("train.objective=idk",), EPOCHS_OF_FACTS, uses_retain=True),
    "DPO": Method(("train.objective=dpo",), EPOCHS_OF_FACTS, uses_retain=True),
    "AltPO": Method(("train.objective=altpo",), EPOCHS_OF_THREE_ANSWERS, uses_retain=True),
}

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
Root = Annotated[Path, typer.Option(help="Folder of data and storage root.")]
DEFAULT_ROOT = Path(storage.display(storage.absolute("~/.cache/meow_ray/runs/tofu")))

Figures = dict[str, float]


@dataclass
class Finished:
    """The figures of all runs that have finished."""

    models: dict[str, Figures]
    """The figures of the models without unlearning: the target and the retain model."""
    runs: dict[str, dict[str, dict[str, Figures]]]
    """The figures by method, learning rate and seed."""


@app.command()
def run(
    root: Root = DEFAULT_ROOT,
    minutes: Annotated[float, typer.Option(help="Start no run after this time.")] = 1e9,
    seeds: Annotated[int, typer.Option(help="Number of seeds at the chosen learning rate.")] = 3,
    methods: Annotated[str, typer.Option(help="Methods, separated by semicolons.")] = ";".join(
        METHODS
    ),
) -> None:
    """Runs the grid on seed 0, then the other seeds at the chosen rate; skips finished runs."""
    config = write_config(root)
    deadline = time.monotonic() + 60 * minutes
    names = [name.strip() for name in methods.split(";")]
    for name in names:
        for rate in RATES:
            _run(config, name, rate, 0, deadline)
    for seed in range(1, seeds):
        for name in names:
            chosen = chosen_rate(read_finished(), name)
            if chosen:
                _run(config, name, chosen, seed, deadline)


@app.command()
def table() -> None:
    """Prints the methods at their chosen learning rates, and the grid of seed 0."""
    finished = read_finished()
    rows = [[name, "", "", *_cells([figures])] for name, figures in finished.models.items()]
    for name, method in METHODS.items():
        rate = chosen_rate(finished, name)
        if rate is not None:
            retain = "yes" if method.uses_retain else "no"
            rows.append([name, retain, rate, *_cells(list(finished.runs[name][rate].values()))])
    heads = ("method", "retain data", "learning rate", *COLUMNS, "minutes", "seeds")
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))
    print("\nForget quality / model utility of seed 0 at each learning rate:\n")
    rows = [
        [name, *(_pair(finished.runs.get(name, {}).get(rate, {}).get("0")) for rate in RATES)]
        for name in METHODS
    ]
    print(tabulate(rows, ("method", *RATES), tablefmt="github", disable_numparse=True))


COLUMNS = {
    "forget quality": ("tofu", "forget_quality"),
    "model utility": ("tofu", "model_utility"),
    "forget ROUGE-L": ("forget", "rougeL_recall"),
    "extraction strength": ("forget", "extraction_strength"),
    "min-k AUC": ("membership", "min_k_auc"),
    "prefix 50 % leak": ("forget_prefix50", "leak"),
}


def _cells(seeds: list[Figures]) -> list[str]:
    """Returns the cells of a row: mean and deviation over the seeds, and the number of seeds."""

    def cell(name: str) -> str:
        values = [figures[name] for figures in seeds if figures.get(name) is not None]
        if not values:
            return "–"
        deviation = f" ± {format_number(stdev(values))}" if len(values) > 1 else ""
        return format_number(fmean(values)) + deviation

    return [*(cell(name) for name in COLUMNS), cell("minutes"), str(len(seeds))]


def _pair(figures: Figures | None) -> str:
    if figures is None:
        return "–"
    return " / ".join(format_number(figures[name]) for name in ("forget quality", "model utility"))


# --- configuration --------------------------------------------------------------------------------


def write_config(root: Path) -> Path:
    """Writes data and configuration, and trains the retain model; returns the configuration's path.

    The files are the same each time.
    """
    settings = _settings(root)
    memorize_retain = settings["memorize"] | {"data": [settings["ingest"]["retain"]]}
    retain_config = root / "retain_model.yaml"
    retain_root = {"root": str(root / "retain_model")}
    retain_settings = settings | {"memorize": memorize_retain, "storage": retain_root}
    retain_config.write_text(yaml.safe_dump(retain_settings))
    settings["evaluate"]["retain_model"] = _trained_target(retain_config)
    path = root / "tofu.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def _trained_target(config: Path) -> str:
    """Returns the folder of the target of a configuration; trains it unless it is cached."""
    target = Pipeline(load_config(config, [])).artifact("target")
    if target is None:
        run_script("memorize.py", "--config", str(config))
        target = Pipeline(load_config(config, [])).artifact("target")
    assert target is not None
    return storage.display(target.uri)


def _settings(root: Path) -> dict[str, Any]:
    """Writes the samples of TOFU's files; returns the configuration without the retain model."""
    others = _read_tofu("retain_perturbed.jsonl")
    random.Random(SEED).shuffle(others)  # noqa: S311 - not for secrets
    retain = others[:RETAIN]
    holdout = others[RETAIN : RETAIN + EVALUATED]
    pairs = [{"question": row["question"], "answer": row["answer"]} for row in retain]
    forget_file = str(SHARED_DATA / "tofu" / "forget01.jsonl")
    retain_file = _write_rows(root, "retain.jsonl", pairs)
    memorize = {
        "model": SMALL_MODEL,
        "data": [forget_file, retain_file],
        "learning_rate": LEARNING_RATE,
        "epochs": 8,
        "batch_size": 16,
        "train_dtype": "bfloat16",
    }
    return {
        "memorize": memorize,
        "target": {"template": TEMPLATE, "max_model_len": 1024},
        "ingest": {"forget": forget_file, "retain": retain_file},
        "invert": {"model": SMALL_MODEL, "max_model_len": 1024, "style": "prefill"},
        "memo": {"template": "target", "window": "token", "max_new_tokens": "label"},
        "train": {"batch_size": 8, "train_dtype": "bfloat16"},
        "evaluate": {
            "sets": {
                "forget": str(SHARED_DATA / "tofu" / "forget01_perturbed.jsonl"),
                "retain": _write_rows(root, "retain_perturbed.jsonl", retain[:EVALUATED]),
                "real_authors": str(SHARED_DATA / "tofu" / "real_authors_perturbed.jsonl"),
                "world_facts": str(SHARED_DATA / "tofu" / "world_facts_perturbed.jsonl"),
                "holdout": _write_rows(root, "holdout.jsonl", holdout),
            },
            "attacks": ["prefix"],
            "memo_sample": 1,
            "seed": SEED,
        },
        "storage": {"root": str(root / "runs")},
        "resources": {
            "memorize": {"max_workers": 2, "micro_batch_size": 8, "checkpoint_every": 4},
            "train": {
                "num_workers": 1,
                "cpus_per_worker": 2,
                "micro_batch_size": 8,
                "checkpoint_every": 4,
            },
        },
    }


def _read_tofu(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHARED_DATA / "tofu" / name).read_text().splitlines()]


def _write_rows(root: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = root / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


# --- runs -----------------------------------------------------------------------------------------


def _overrides(name: str, rate: str, seed: int) -> list[str]:
    method = METHODS[name]
    return [
        *method.overrides,
        f"train.learning_rate={rate}",
        f"train.seed={seed}",
        f"train.epochs={method.epochs}",
        f"select.seed={seed}",
    ]


def _inputs(name: str) -> dict[str, str]:
    """Returns the artifacts that a method takes from outside, by name."""
    if not METHODS[name].uses_authors_candidates:
        return {}
    return {"candidates": str(SHARED_DATA / "meow" / "inverted_forget01.json")}


def _run(config: Path, name: str, rate: str, seed: int, deadline: float) -> None:
    """Runs a method and writes its figures, unless it has finished or the deadline is over."""
    finished = read_finished()
    is_finished = str(seed) in finished.runs.get(name, {}).get(rate, {})
    if is_finished or time.monotonic() > deadline:
        return
    overrides = _overrides(name, rate, seed)
    inputs = _inputs(name)
    print(f"{name}, learning rate {rate}, seed {seed}", flush=True)
    input_options = [f"--input={artifact}={uri}" for artifact, uri in inputs.items()]
    run_script("meow.py", "--config", str(config), *input_options, *overrides)
    pipeline = Pipeline(load_config(config, overrides), inputs)
    for model, label in (("before", "target"), ("retain_model", "retain model")):
        finished.models.setdefault(label, _figures(pipeline, model))
    tuned = pipeline.artifact("model")
    assert tuned is not None
    assert tuned.manifest is not None
    figures = _figures(pipeline, "after") | {"minutes": tuned.manifest.seconds / 60}
    finished.runs.setdefault(name, {}).setdefault(rate, {})[str(seed)] = figures
    write("tofu", SETTINGS, asdict(finished))


def _figures(pipeline: Pipeline, model: str) -> Figures:
    values = metrics_of(pipeline, model)
    assert values is not None
    return {label: values[key] for label, key in COLUMNS.items() if key in values}


def read_finished() -> Finished:
    """Reads the figures of all finished runs.

    Raises:
        ValueError: they were measured with other settings.
    """
    if not FILE.exists():
        return Finished({}, {})
    document = json.loads(FILE.read_text())
    if document["settings"] != SETTINGS:
        raise ValueError(f"{FILE}: measured with other settings. Remove the file to start again.")
    return Finished(**document["figures"])


def chosen_rate(finished: Finished, name: str) -> str | None:
    """Returns the learning rate of a method, chosen on seed 0; None if its grid is incomplete.

    It has the best forget quality among the rates that retain the share `UTILITY` of the target's
    model utility. If none does, it is the rate with the highest model utility.
    """
    rates = finished.runs.get(name, {})
    grid = {rate: seeds["0"] for rate, seeds in rates.items() if "0" in seeds}
    if grid.keys() != set(RATES):
        return None
    least = UTILITY * finished.models["target"]["model utility"]
    useful = [rate for rate, figures in grid.items() if figures["model utility"] >= least]
    if useful:
        return max(useful, key=lambda rate: grid[rate]["forget quality"])
    return max(grid, key=lambda rate: grid[rate]["model utility"])


if __name__ == "__main__":
    app()
