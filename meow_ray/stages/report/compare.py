"""Runs side by side: their metrics as one table, several seeds of a run as mean and spread."""

import csv
import io
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from tabulate import tabulate

from meow_ray.core import manifest, storage
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
"""The columns of `as_arrow` and of the CSV form."""

Format = Literal["markdown", "csv", "latex"]


class Cell(NamedTuple):
    """One metric of the runs that carry one name."""

    value: float
    """The mean over the runs."""
    interval: Interval | None
    """The bootstrap interval over examples, of a single run."""
    spread: float | None
    """The standard deviation over the runs (n - 1), of two or more."""
    runs: int
    num_examples: int


Table = dict[tuple[str, str], dict[str, Cell]]
"""(suite, metric) → name of a run → its cell."""


def metrics_of(place: str) -> Artifact:
    """Returns the metrics of a run: the latest below a storage root, or those in an artifact's folder.

    Raises:
        MeowError: there are none.
    """
    uri = storage.absolute(place)
    found = (
        manifest.latest(uri, "metrics")
        or manifest.load(uri)
        or manifest.load(uri.rstrip("/").rpartition("/")[0])
    )
    if found is None or found.name != "metrics":
        raise MeowError(
            f"{place}: neither the storage root of a run that was evaluated, nor a folder of its metrics."
        )
    return found


def table(runs: Sequence[tuple[str, Artifact]], model: str) -> Table:
    """Puts runs beside each other; those of one name are several seeds of one run.

    Raises:
        MeowError: a run has no figures of this model.
    """
    rows: dict[tuple[str, str], dict[str, list[dict[str, Any]]]] = {}
    for name, artifact in runs:
        found = [row for row in artifact.table.to_pylist() if row["model"] == model]
        if not found:
            raise MeowError(
                f"{name}: the run at {storage.display(artifact.uri)} has no figures of the model {model}."
            )
        for row in found:
            rows.setdefault((row["suite"], row["metric"]), {}).setdefault(name, []).append(row)
    return {
        key: {name: _cell(found) for name, found in by_name.items()}
        for key, by_name in rows.items()
    }


def _cell(rows: Sequence[dict[str, Any]]) -> Cell:
    values = [row["value"] for row in rows]
    single = len(rows) == 1
    interval = Interval(rows[0]["value"], rows[0]["low"], rows[0]["high"]) if single else None
    spread = None if single else stdev(values)
    return Cell(fmean(values), interval, spread, len(rows), rows[0]["num_examples"])


def write(found: Table, kind: Format) -> str:
    """Returns a table as Markdown or LaTeX, a column a run, or as CSV, a line a run and metric."""
    names = list(dict.fromkeys(name for cells in found.values() for name in cells))
    if kind == "csv":
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(
            ["suite", "metric", "run", "value", "low", "high", "spread", "runs", "num_examples"]
        )
        for (suite, metric), cells in found.items():
            for name, cell in cells.items():
                low, high = (
                    (cell.interval.low, cell.interval.high) if cell.interval else (None, None)
                )
                writer.writerow(
                    [
                        suite,
                        metric,
                        name,
                        cell.value,
                        low,
                        high,
                        cell.spread,
                        cell.runs,
                        cell.num_examples,
                    ]
                )
        return stream.getvalue().rstrip("\n")
    body = [
        [suite, metric, *(_text(cells.get(name)) for name in names)]
        for (suite, metric), cells in found.items()
    ]
    style = {"markdown": "github", "latex": "latex_booktabs"}[kind]
    return str(tabulate(body, ["suite", "metric", *names], tablefmt=style, disable_numparse=True))


def _text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    value = number(cell.value)
    if cell.spread is not None:
        return f"{value} ± {number(cell.spread)} ({cell.runs} runs)"
    if cell.interval is None or cell.interval.low is None or cell.interval.high is None:
        return value
    return f"{value} [{number(cell.interval.low)}, {number(cell.interval.high)}]"


def number(value: float) -> str:
    """Returns a figure as people read it: three decimals, and a power of ten where those would say nothing."""
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def as_arrow(cells: Table) -> pa.Table:
    """Returns the cells as a table: one row per suite, metric and name of a run."""
    rows = []
    for (suite, metric), by_name in cells.items():
        for name, cell in by_name.items():
            low, high = (cell.interval.low, cell.interval.high) if cell.interval else (None, None)
            rows.append(
                {
                    "suite": suite,
                    "metric": metric,
                    "run": name,
                    "value": cell.value,
                    "low": low,
                    "high": high,
                    "spread": cell.spread,
                    "runs": cell.runs,
                    "num_examples": cell.num_examples,
                }
            )
    return pa.Table.from_pylist(rows, schema=COMPARISON_SCHEMA)
