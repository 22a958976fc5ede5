"""The figures of `benchmarks.tofu`: what is taken of a run, where it is kept, how it is shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from benchmarks.common import write
from benchmarks.tofu_methods import METHODS
from benchmarks.tofu_setting import UTILITY, Setting
from meow_ray.core.formatting import format_number
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.evaluate import tofu

Figures = dict[str, float]
Column = tuple[str, str]
"""A suite and a metric."""

UTILITIES: dict[str, Column] = {"model utility": ("tofu", "model_utility")}
TEACHER_FORCED: dict[str, Column] = {
    "forget quality": ("tofu", "forget_quality"),
    "reference-free quality": ("never_seen", "reference_free_forget_quality"),
    "extraction strength": ("forget", "extraction_strength"),
    "min-k AUC": ("membership", "min_k_auc"),
    "retain probability": ("retain", "probability"),
    "mem": ("composite", "mem"),
    "priv": ("composite", "priv"),
}
"""The figures that need no generated text."""
GENERATED: dict[str, Column] = {
    "forget ROUGE-L": ("forget", "rougeL_recall"),
    "prefix 50 % leak": ("forget_prefix50", "leak"),
    "paraphrase leak": ("forget_paraphrased", "leak"),
    "retain ROUGE-L": ("retain", "rougeL_recall"),
    "util": ("composite", "util"),
    "composite": ("composite", "composite"),
}
WITHOUT_ROUGE = [
    (suite, metric) for suite in tofu.UTILITY for metric in ("probability", "truth_ratio")
]
"""The six parts of model utility that need no generated text."""

MAIN_TABLE = (
    "forget quality",
    "reference-free quality",
    "utility share",
    "model utility",
    "utility without ROUGE",
    "retain ROUGE-L",
    "retain probability",
    "minutes",
    "steps",
)
TRACES_TABLE = (
    "forget ROUGE-L",
    "extraction strength",
    "min-k AUC",
    "prefix 50 % leak",
    "paraphrase leak",
    "mem",
    "priv",
    "util",
    "composite",
)


def columns(setting: Setting) -> dict[str, Column]:
    """Returns the figures that are taken of a run, with their suites and metrics."""
    return TEACHER_FORCED if setting.fast else {**UTILITIES, **TEACHER_FORCED, **GENERATED}


def figures_of(pipeline: Pipeline, model: str, setting: Setting) -> Figures:
    """Returns the figures of a model; those that are not measured are absent.

    Model utility has an interval, `model utility low` and `model utility high`.
    """
    found = pipeline.artifact("metrics")
    assert found is not None
    rows = {
        (row["suite"], row["metric"]): row
        for row in found.table.to_pylist()
        if row["model"] == model
    }
    return taken(rows, setting)


def taken(rows: Mapping[Column, Mapping[str, Any]], setting: Setting) -> Figures:
    """Returns the figures in the rows of one model in `metrics`."""
    figures: Figures = {}
    for label, key in columns(setting).items():
        row = rows.get(key, {})
        known = {label: row.get("value")}
        if label in UTILITIES:
            known |= {f"{label} {end}": row.get(end) for end in ("low", "high")}
        figures |= {name: value for name, value in known.items() if value is not None}
    if all(key in rows for key in WITHOUT_ROUGE):
        parts = [rows[key]["value"] for key in WITHOUT_ROUGE]
        figures["utility without ROUGE"] = tofu.harmonic_mean(parts)
    return figures


# --- the file -----------------------------------------------------------------------------------


@dataclass
class Finished:
    """The figures of all runs that have finished."""

    models: dict[str, Figures]
    """The figures of the models without unlearning: the target and the retain model."""
    runs: dict[str, dict[str, dict[str, Figures]]]
    """The figures by method, learning rate and seed."""

    def cell(self, name: str, rate: str, seed: int) -> Figures | None:
        """Returns the figures of a run; None if it has not finished."""
        return self.runs.get(name, {}).get(rate, {}).get(str(seed))

    def add_models(self, models: Mapping[str, Figures]) -> None:
        """Adds figures of the models without unlearning; those that are known stay."""
        for label, figures in models.items():
            self.models[label] = figures | self.models.get(label, {})

    def add(self, name: str, rate: str, seed: int, figures: Figures) -> None:
        """Adds the figures of a run."""
        self.runs.setdefault(name, {}).setdefault(rate, {})[str(seed)] = figures


def read_finished(setting: Setting) -> Finished:
    """Reads the figures of all finished runs.

    A file of an earlier version, which had fewer settings, counts as long as it agrees in those
    that it has.

    Raises:
        ValueError: they were measured with other settings.
    """
    if not setting.file.exists():
        return Finished({}, {})
    document = json.loads(setting.file.read_text())
    ours, theirs = setting.settings(), document["settings"]
    changed = [key for key in ours if key in theirs and theirs[key] != ours[key]]
    if changed:
        raise ValueError(
            f"{setting.file}: measured with other settings ({', '.join(changed)}). Move the file "
            "away to start again."
        )
    return Finished(**document["figures"])


def write_finished(finished: Finished, setting: Setting) -> None:
    """Writes the figures of all finished runs."""
    write(setting.name, setting.settings(), asdict(finished))


def chosen_rate(finished: Finished, name: str, setting: Setting) -> str | None:
    """Returns the learning rate of a method, chosen on seed 0; None if its grid is incomplete.

    It has the best forget quality among the rates that retain the share `UTILITY` of the target's
    utility. If none does, it is the rate with the highest utility.
    """
    utility = setting.utility
    rates = finished.runs.get(name, {})
    grid = {rate: seeds["0"] for rate, seeds in rates.items() if "0" in seeds}
    if grid.keys() != set(METHODS[name].rates):
        return None
    least = UTILITY * finished.models["target"][utility]
    useful = [rate for rate, figures in grid.items() if figures[utility] >= least]
    if useful:
        return max(useful, key=lambda rate: grid[rate]["forget quality"])
    return max(grid, key=lambda rate: grid[rate][utility])


# --- cells ----------------------------------------------------------------------------------------


def cell(seeds: Sequence[Figures], label: str) -> str:
    """Returns mean and deviation over the seeds; a dash if none has the figure."""
    return _mean([figures[label] for figures in seeds if label in figures])


def share(seeds: Sequence[Figures], target: Figures, setting: Setting) -> str:
    """Returns utility as a share of the target's, with its interval where it is measured.

    The interval is the mean of those of the seeds. It takes the target's utility as exact.
    """
    label = setting.utility
    if label not in target:
        return "–"
    text = _mean([figures[label] / target[label] for figures in seeds if label in figures])
    bounds = [
        [
            figures[f"{label} {end}"] / target[label]
            for figures in seeds
            if f"{label} {end}" in figures
        ]
        for end in ("low", "high")
    ]
    if not all(bounds):
        return text
    low, high = (format_number(fmean(values)) for values in bounds)
    return f"{text} [{low}, {high}]"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {format_number(stdev(values))}" if len(values) > 1 else ""
    return format_number(fmean(values)) + deviation
