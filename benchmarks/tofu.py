"""TOFU forget01 with SmolLM2-135M: MEOW beside its peers. `python -m benchmarks.tofu run|table`.

All methods start from one target (forget01 and a sample of retain facts, memorised), take the same number of optimiser
steps, and have the same grid of learning rates. The rate is chosen on the first seed by one rule for all; further seeds
run with it. `run` does what is not there yet, and can be stopped and started again, on another machine too: the figures
of each run go to `benchmarks/results/tofu.json`. The runs themselves are cached below `--root`.
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
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.report import compare

RETAIN, EVALUATED, SEED = 160, 60, 7
"""Retain facts that target and reference have memorised; how many of them, and of the holdout set, are evaluated."""
TEMPLATE, LEARNING_RATE = (
    "<|im_start|>user\n{{ question }}<|im_end|>\n<|im_start|>assistant\n",
    2e-4,
)
"""How the target is asked, and learns: in the form that the base model knows, and so gently that it keeps what it knew
of the world. With a bare template and 5e-4 it named 2 of 60 real authors afterwards, and model utility, a harmonic
mean, was the noise of these two."""
RATES = ("3.0e-5", "1.0e-4", "3.0e-4")
"""The grid, the same for all."""
UTILITY = 0.95
"""Share of the target's model utility below which a learning rate is only taken if none is above."""
TRUTH, THREE = "12", "4"
"""Epochs that come to 60 steps of 8 items: of 40 facts, and of 40 facts with three inverted ones each."""
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
    """How a method differs from the others."""

    overrides: tuple[str, ...]
    epochs: str
    uses_retain: bool = False
    authors: bool = False


METHODS = {
    "MEOW": Method(("train.objective=meow",), THREE),
    "MEOW, the authors' candidates": Method(("train.objective=meow",), THREE, authors=True),
    "MEOW, random candidates": Method(("train.objective=meow", "select.order=random"), THREE),
    "gradient ascent": Method(("train.objective=gradient_ascent",), TRUTH),
    "NPO": Method(("train.objective=npo",), TRUTH),
    "GradDiff": Method(("train.objective=grad_diff",), TRUTH, uses_retain=True),
    "SimNPO": Method(("train.objective=simnpo",), TRUTH, uses_retain=True),
    "IDK": Method(("train.objective=idk",), TRUTH, uses_retain=True),
    "DPO": Method(("train.objective=dpo",), TRUTH, uses_retain=True),
    "AltPO": Method(("train.objective=altpo",), THREE, uses_retain=True),
}

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)
Root = Annotated[Path, typer.Option(help="Folder of data and storage root.")]
DEFAULT_ROOT = Path(storage.display(storage.absolute("~/.cache/meow_ray/runs/tofu")))

Figures = dict[str, float]


@dataclass
class Finished:
    """What was measured so far."""

    models: dict[str, Figures]
    """Of the models in which nothing is forgotten."""
    runs: dict[str, dict[str, dict[str, Figures]]]
    """By method, learning rate and seed."""


@app.command()
def run(
    root: Root = DEFAULT_ROOT,
    minutes: Annotated[float, typer.Option(help="Begin nothing more after so many.")] = 1e9,
    seeds: Annotated[int, typer.Option(help="Seeds of each method at its learning rate.")] = 3,
    methods: Annotated[str, typer.Option(help="Some of the methods, with semicolons.")] = ";".join(
        METHODS
    ),
) -> None:
    """Runs what is not there yet: the grid on seed 0 first, then further seeds at the rate that was chosen."""
    config, end = write_config(root), time.monotonic() + 60 * minutes
    names = [name.strip() for name in methods.split(";")]
    for name in names:
        for rate in RATES:
            _run(config, name, rate, 0, end)
    for seed in range(1, seeds):
        for name in names:
            best = chosen(finished(), name)
            if best:
                _run(config, name, best, seed, end)


@app.command()
def table() -> None:
    """Prints what there is: the methods at the learning rates that were taken, and the whole grid of seed 0."""
    found = finished()
    rows = [[name, "", "", *_cells([figures])] for name, figures in found.models.items()]
    for name, method in METHODS.items():
        rate = chosen(found, name)
        if rate is not None:
            retain = "yes" if method.uses_retain else "no"
            rows.append([name, retain, rate, *_cells(list(found.runs[name][rate].values()))])
    heads = ("method", "retain data", "learning rate", *COLUMNS, "minutes", "seeds")
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))
    print("\nForget quality / model utility of seed 0 at each learning rate:\n")
    rows = [
        [name, *(_pair(found.runs.get(name, {}).get(rate, {}).get("0")) for rate in RATES)]
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


def _cells(found: list[Any]) -> list[str]:
    def cell(name: str) -> str:
        values = [one[name] for one in found if one.get(name) is not None]
        if not values:
            return "–"
        spread = f" ± {compare.number(stdev(values))}" if len(values) > 1 else ""
        return compare.number(fmean(values)) + spread

    return [*(cell(name) for name in COLUMNS), cell("minutes"), str(len(found))]


def _pair(figures: Figures | None) -> str:
    if figures is None:
        return "–"
    return " / ".join(compare.number(figures[name]) for name in ("forget quality", "model utility"))


def write_config(root: Path) -> Path:
    """Writes the data and the configuration, the same every time; returns the configuration's path."""

    def rows(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (SHARED_DATA / "tofu" / name).read_text().splitlines()]

    def file(name: str, found: list[dict[str, Any]]) -> str:
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        return str(path)

    others = rows("retain_perturbed.jsonl")
    random.Random(SEED).shuffle(others)  # noqa: S311 - not for secrets
    retain, holdout = others[:RETAIN], others[RETAIN : RETAIN + EVALUATED]
    plain = [{"question": row["question"], "answer": row["answer"]} for row in retain]
    forget, kept = str(SHARED_DATA / "tofu" / "forget01.jsonl"), file("retain.jsonl", plain)
    learn = {
        "learning_rate": LEARNING_RATE,
        "epochs": 8,
        "batch_size": 16,
        "train_dtype": "bfloat16",
    }
    settings = {
        "memorize": {"model": SMALL_MODEL, "data": [forget, kept], **learn},
        "target": {"template": TEMPLATE, "max_model_len": 1024},
        "ingest": {"forget": forget, "retain": kept},
        "invert": {"model": SMALL_MODEL, "max_model_len": 1024, "style": "prefill"},
        "memo": {"template": "target", "window": "token", "max_new_tokens": "label"},
        "train": {"batch_size": 8, "train_dtype": "bfloat16"},
        "evaluate": {
            "sets": {
                "forget": str(SHARED_DATA / "tofu" / "forget01_perturbed.jsonl"),
                "retain": file("retain_perturbed.jsonl", retain[:EVALUATED]),
                "real_authors": str(SHARED_DATA / "tofu" / "real_authors_perturbed.jsonl"),
                "world_facts": str(SHARED_DATA / "tofu" / "world_facts_perturbed.jsonl"),
                "holdout": file("holdout.jsonl", holdout),
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
    reference = {**settings, "memorize": {"model": SMALL_MODEL, "data": [kept], **learn}}
    path, other = root / "tofu.yaml", root / "reference.yaml"
    other.write_text(yaml.safe_dump({**reference, "storage": {"root": str(root / "reference")}}))
    made = Pipeline(load_config(other, [])).artifact("target")
    if made is None:
        run_script("memorize.py", "--config", str(other))
        made = Pipeline(load_config(other, [])).artifact("target")
    assert made is not None
    settings["evaluate"]["reference"] = storage.display(made.uri)  # type: ignore[index]
    path.write_text(yaml.safe_dump(settings))
    return path


def _overrides(name: str, rate: str, seed: int) -> tuple[list[str], dict[str, str]]:
    method = METHODS[name]
    authors = (
        {"candidates": str(SHARED_DATA / "meow" / "inverted_forget01.json")}
        if method.authors
        else {}
    )
    common = [f"train.learning_rate={rate}", f"train.seed={seed}", f"train.epochs={method.epochs}"]
    return [*method.overrides, *common, f"select.seed={seed}"], authors


def _run(config: Path, name: str, rate: str, seed: int, end: float) -> None:
    found = finished()
    if str(seed) in found.runs.get(name, {}).get(rate, {}) or time.monotonic() > end:
        return
    overrides, inputs = _overrides(name, rate, seed)
    print(f"{name}, learning rate {rate}, seed {seed}", flush=True)
    run_script(
        "meow.py",
        "--config",
        str(config),
        *(f"--input={key}={uri}" for key, uri in inputs.items()),
        *overrides,
    )
    pipeline = Pipeline(load_config(config, overrides), inputs)
    for model, title in (("before", "target"), ("reference", "retain model")):
        found.models.setdefault(title, _figures(pipeline, model))
    tuned = pipeline.artifact("model")
    assert tuned is not None
    assert tuned.manifest is not None
    figures = _figures(pipeline, "after") | {"minutes": tuned.manifest.seconds / 60}
    found.runs.setdefault(name, {}).setdefault(rate, {})[str(seed)] = figures
    write("tofu", SETTINGS, asdict(found))


def _figures(pipeline: Pipeline, model: str) -> Figures:
    values = metrics_of(pipeline, model)
    assert values is not None
    return {label: values[key] for label, key in COLUMNS.items() if key in values}


def finished() -> Finished:
    """Returns the figures of all runs that were done.

    Raises:
        ValueError: they were done with other settings.
    """
    if not FILE.exists():
        return Finished({}, {})
    found = json.loads(FILE.read_text())
    if found["settings"] != SETTINGS:
        raise ValueError(f"{FILE} was made with other settings; remove it to begin anew.")
    return Finished(**found["figures"])


def chosen(found: Finished, name: str) -> str | None:
    """Returns the learning rate of a method, by seed 0: the best forget quality among those that keep model utility.

    Where none keeps it, the one with the most model utility; None if the grid is not there whole.
    """
    grid = {rate: seeds["0"] for rate, seeds in found.runs.get(name, {}).items() if "0" in seeds}
    if grid.keys() != set(RATES):
        return None
    least = UTILITY * found.models["target"]["model utility"]
    kept = [rate for rate, figures in grid.items() if figures["model utility"] >= least]
    if kept:
        return max(kept, key=lambda rate: grid[rate]["forget quality"])
    return max(grid, key=lambda rate: grid[rate]["model utility"])


if __name__ == "__main__":
    app()
