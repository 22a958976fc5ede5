"""The rows of the table `metrics`, and a table of examples that is read by column."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from meow_ray.config import Evaluate
from meow_ray.core.tables import Query, TableSource, text_literal
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate.metrics import Interval, mean_interval
from meow_ray.stages.evaluate.tofu import Array


class Metric(NamedTuple):
    """A row of `metrics`."""

    suite: str
    metric: str
    model: str
    interval: Interval
    num_examples: int

    def as_row(self) -> dict[str, Any]:
        """Returns the row by column."""
        return {
            "suite": self.suite,
            "metric": self.metric,
            "model": self.model,
            "value": self.interval.value,
            "low": self.interval.low,
            "high": self.interval.high,
            "num_examples": self.num_examples,
        }


class Examples:
    """A table of examples, read one column of one suite and model at a time."""

    def __init__(self, source: TableSource) -> None:
        self.source = {"examples": source}

    def groups(self) -> list[tuple[str, str]]:
        """Returns all pairs of suite and model, sorted."""
        sql = "SELECT DISTINCT suite, model FROM examples ORDER BY suite, model"
        return [(row["suite"], row["model"]) for row in Query(sql, self.source).rows()]

    def column(self, suite: str, model: str, name: str) -> Any:
        """Returns the values that are not null, `[examples]`, sorted by fact.

        Raises:
            MeowError: a value is NaN or infinite.
        """
        sql = f"""
            SELECT fact_id, {name} AS value
            FROM examples
            WHERE suite = {text_literal(suite)}
                AND model = {text_literal(model)}
                AND {name} IS NOT NULL
            ORDER BY fact_id
        """
        with Query(sql, self.source).batches() as reader:
            table = reader.read_all()
        is_list = pa.types.is_list(table["value"].type)
        values = table["value"].to_pylist() if is_list else table["value"].to_numpy()
        if name == "answer":
            return values
        bad = [row for row, value in enumerate(values) if not np.isfinite(value).all()]
        if bad:
            raise MeowError(
                f"evaluate: {name} is NaN or infinite in {len(bad)} examples of {suite}, model "
                f"{model} (the first is {table['fact_id'][bad[0]].as_py()}). Check the model: its "
                "weights may be NaN or infinite."
            )
        return values

    def numbers(self, suite: str, model: str, name: str) -> Array:
        """Returns the same for a column of numbers, as an array."""
        return np.asarray(self.column(suite, model, name), dtype=np.float64)


def mean_of(values: Sequence[float], suite: str, name: str, model: str, spec: Evaluate) -> Metric:
    """Returns the metric that is the mean over examples, with its bootstrap interval."""
    interval = mean_interval(values, spec.bootstrap_resamples, spec.seed)
    return Metric(suite, name, model, interval, len(values))
