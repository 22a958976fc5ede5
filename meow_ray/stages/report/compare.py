"""Compares runs: one table of their metrics, with mean and deviation over the seeds of a run."""

import csv
import io
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from tabulate import tabulate

from meow_ray.core import manifest, storage
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate.metrics import Interval

COMPARISON_SCHEMA = pa.schema(
    [
        ("suite", pa.string()),
        ("metric", pa.string()),
        ("run", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("spread", pa.float64()),
        ("runs", pa.int32()),
        ("num_examples", pa.int32()),
    ]
)
"""The columns of a comparison as a table, and of its CSV form."""

Format = Literal["markdown", "csv", "latex"]


class Cell(NamedTuple):
    """One metric of the runs that have the same name."""

    value: float
    """The mean over the runs."""
    interval: Interval | None
    """The bootstrap interval over examples; None for several runs."""
    spread: float | None
    """The standard deviation over the runs (n - 1); None for a single run."""
    runs: int
    num_examples: int


Comparison = dict[tuple[str, str], dict[str, Cell]]
"""By (suite, metric), the cell of each run by the run's name."""


def metrics_of(place: str, model: str) -> Artifact:
    """Returns the metrics of a run.

    Args:
        place: the run's storage root, of which the latest metrics of the model are taken, or a
            folder of metrics. A root can have several, for example of the target alone as well.
        model: a value of the column `model`.

    Raises:
        MeowError: there are no metrics.
    """
    uri = storage.absolute(place)
    parent = uri.rstrip("/").rpartition("/")[0]
    artifact = (
        manifest.latest(uri, "metrics", lambda metrics: model in metrics.table["model"].to_pylist())
        or manifest.latest(uri, "metrics")
        or manifest.load(uri)
        or manifest.load(parent)
    )
    if artifact is None or artifact.name != "metrics":
        raise MeowError(
            f"{place}: there are no metrics of a run. Give the storage root of an evaluated run, "
            "or a folder of its metrics."
        )
    return artifact


def metrics_by_run(runs: Sequence[tuple[str, Artifact]], model: str) -> Comparison:
    """Returns the metrics of several runs, side by side.

    Args:
        runs: name and metrics of each run. Runs that have the same name are seeds of one run.
        model: the value of the column `model` whose metrics are compared.

    Raises:
        MeowError: a run has no metrics of this model, or the runs were measured by different
            definitions.
    """
    _check_same_definitions(runs)
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for name, artifact in runs:
        table_rows = artifact.table.to_pylist()
        model_rows = [row for row in table_rows if row["model"] == model]
        if not model_rows:
            models = sorted({row["model"] for row in table_rows})
            raise MeowError(
                f"{name}: the run at {storage.display(artifact.uri)} has no metrics of this model "
                f"({model}). Compare another one with --model: it has {', '.join(models)}."
            )
        for row in model_rows:
            by_name = rows.setdefault((row["suite"], row["metric"]), {})
            by_name.setdefault(name, []).append(row)
    return {
        key: {name: _cell(seeds) for name, seeds in by_name.items()}
        for key, by_name in rows.items()
    }


def _check_same_definitions(runs: Sequence[tuple[str, Artifact]]) -> None:
    """Refuses to put figures next to each other that have one name and two definitions."""
    definitions = {name: _definitions(artifact) for name, artifact in runs}
    if len(set(definitions.values())) > 1:
        listed = ", ".join(f"{name}: {value}" for name, value in definitions.items())
        raise MeowError(
            f"The runs are measured by different definitions ({listed}). Evaluate them with the "
            "same `evaluate.definitions`."
        )


def _definitions(artifact: Artifact) -> str:
    """Returns the value of `evaluate.definitions` by which metrics were measured."""
    spec = artifact.manifest.ingredients.get("spec", {}) if artifact.manifest else {}
    return str(spec.get("evaluate", {}).get("definitions", "meow"))


def _cell(seeds: Sequence[dict[str, Any]]) -> Cell:
    """Returns the cell of one run from its rows of `metrics`, one per seed."""
    values = [row["value"] for row in seeds]
    first = seeds[0]
    is_single = len(seeds) == 1
    return Cell(
        value=fmean(values),
        interval=Interval(first["value"], first["low"], first["high"]) if is_single else None,
        spread=None if is_single else stdev(values),
        runs=len(seeds),
        num_examples=first["num_examples"],
    )


# --- output ---------------------------------------------------------------------------------------


def format_table(comparison: Comparison, kind: Format) -> str:
    """Returns a comparison as the text that `meow compare` prints.

    Markdown and LaTeX have one column per run. CSV has one line per metric and run.
    """
    if kind == "csv":
        return _as_csv(comparison)
    names = list(dict.fromkeys(name for cells in comparison.values() for name in cells))
    body = [
        [suite, metric, *(_cell_text(cells.get(name)) for name in names)]
        for (suite, metric), cells in comparison.items()
    ]
    style = {"markdown": "github", "latex": "latex_booktabs"}[kind]
    return str(tabulate(body, ["suite", "metric", *names], tablefmt=style, disable_numparse=True))


def as_arrow(comparison: Comparison) -> pa.Table:
    """Returns a comparison as a table: one row per suite, metric and name of a run."""
    return pa.Table.from_pylist(_rows(comparison), schema=COMPARISON_SCHEMA)


def _rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [
        {
            "suite": suite,
            "metric": metric,
            "run": name,
            "value": cell.value,
            "low": cell.interval.low if cell.interval else None,
            "high": cell.interval.high if cell.interval else None,
            "spread": cell.spread,
            "runs": cell.runs,
            "num_examples": cell.num_examples,
        }
        for (suite, metric), cells in comparison.items()
        for name, cell in cells.items()
    ]


def _as_csv(comparison: Comparison) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COMPARISON_SCHEMA.names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(comparison))
    return stream.getvalue().rstrip("\n")


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    value = format_number(cell.value)
    if cell.spread is not None:
        return f"{value} ± {format_number(cell.spread)} ({cell.runs} runs)"
    if cell.interval is None or cell.interval.low is None or cell.interval.high is None:
        return value
    return f"{value} [{format_number(cell.interval.low)}, {format_number(cell.interval.high)}]"
