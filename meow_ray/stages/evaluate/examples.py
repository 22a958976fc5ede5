"""The table of examples: what each model replied, and how it was scored."""

import tempfile
from collections.abc import Mapping

import pyarrow as pa

from meow_ray.core import tables
from meow_ray.core.schema import EXAMPLES_SCHEMA, ROW
from meow_ray.core.tables import Query, TableSource
from meow_ray.stages.evaluate import metrics
from meow_ray.stages.evaluate.suites import ROWS_SCHEMA


def write_examples(found: Mapping[str, Query], selected: TableSource, uri: str) -> None:
    """Writes what models said, one row an example and model, sorted by suite, fact and model.

    Args:
        found: what `EvaluateSteps` gave for each model.
        selected: the inverted facts that were trained on: which of them a reply states is scored here.
        uri: the Parquet file.
    """
    with tempfile.TemporaryDirectory(prefix="meow-") as folder:
        parts: dict[str, TableSource] = {}
        for model, query in found.items():
            parts[model] = [f"{folder}/{model}.parquet"]
            ordered = Query(f"SELECT * FROM ({query.sql}) ORDER BY {ROW}", query.sources)
            tables.write_sorted(ordered, f"{folder}/{model}.parquet", ROWS_SCHEMA, (ROW,))
        said = " UNION ALL BY NAME ".join(
            f"SELECT *, '{model}' AS model FROM {model}" for model in parts
        )
        stated = {"stated": _stated(Query(said, parts), selected)}
        columns = ", ".join(
            "stated.states_inverted" if name == "states_inverted" else f"said.{name}"
            for name in EXAMPLES_SCHEMA.names
        )
        joined = (
            f"SELECT {columns} FROM ({said}) AS said LEFT JOIN stated USING (suite, fact_id, model)"
        )
        key = ("suite", "fact_id", "model")
        tables.write_sorted(
            Query(f"{joined} ORDER BY {', '.join(f'said.{name}' for name in key)}", parts | stated),
            uri,
            EXAMPLES_SCHEMA,
            key,
        )


def _stated(said: Query, selected: TableSource) -> pa.Table:
    """Returns for each forget fact that was trained on whether a model's reply states one of its inverted facts."""
    sql = f"""
        SELECT suite, fact_id, model, any_value(said.question) AS question, any_value(said.answer) AS answer,
            any_value(generated) AS generated, list(selected.answer) AS inverted
        FROM ({said.sql}) AS said JOIN selected USING (fact_id) WHERE suite = 'forget' GROUP BY suite, fact_id, model
    """
    rows = Query(sql, {**said.sources, "selected": selected}).rows()
    names = ("suite", "fact_id", "model")
    found = {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
    values = [
        metrics.states(row["question"], row["answer"], row["inverted"], row["generated"])
        for row in rows
    ]
    return pa.table(found | {"states_inverted": pa.array(values, pa.float64())})
