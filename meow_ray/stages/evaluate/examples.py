"""The table of examples: each model's replies, and how they were scored."""

import tempfile
from collections.abc import Mapping

import pyarrow as pa

from meow_ray.core import tables
from meow_ray.core.schema import EXAMPLES_SCHEMA, ROW
from meow_ray.core.tables import Query, TableSource, text_literal
from meow_ray.stages.evaluate import metrics
from meow_ray.stages.evaluate.suites import ROWS_SCHEMA

KEY = ("suite", "fact_id", "model")
"""The columns that identify a row of examples."""


def write_examples(answered: Mapping[str, Query], selected: TableSource, uri: str) -> None:
    """Writes the replies of all models, one row per example and model, sorted by `KEY`.

    The column `states_inverted` is computed here; all others come from `EvaluateSteps`.

    Args:
        answered: by model, the rows that `EvaluateSteps` answered.
        selected: the inverted facts that the model was trained on.
        uri: URI of the Parquet file.
    """
    with tempfile.TemporaryDirectory(prefix="meow-") as folder:
        files: dict[str, TableSource] = {}
        selects = []
        for number, (model, query) in enumerate(answered.items()):
            name = f"model_{number}"
            path = f"{folder}/{name}.parquet"
            ordered = Query(f"SELECT * FROM ({query.sql}) ORDER BY {ROW}", query.sources)
            tables.write_sorted(ordered, path, ROWS_SCHEMA, (ROW,))
            files[name] = [path]
            selects.append(f"SELECT *, {text_literal(model)} AS model FROM {name}")
        replies = Query(" UNION ALL BY NAME ".join(selects), files)
        tables.write_sorted(_examples(replies, selected), uri, EXAMPLES_SCHEMA, KEY)


def _examples(replies: Query, selected: TableSource) -> Query:
    """Returns the query for the examples, sorted by their key."""
    columns = ", ".join(
        "stated.states_inverted" if name == "states_inverted" else f"replies.{name}"
        for name in EXAMPLES_SCHEMA.names
    )
    sql = f"""
        WITH
        -- the replies of all models
        replies AS ({replies.sql})
        -- null where a fact was not trained on
        SELECT {columns}
        FROM replies LEFT JOIN stated USING ({", ".join(KEY)})
        ORDER BY {", ".join(f"replies.{name}" for name in KEY)}
    """
    return Query(sql, {**replies.sources, "stated": _stated(replies, selected)})


def _stated(replies: Query, selected: TableSource) -> pa.Table:
    """Returns whether each reply states one of the inverted facts that were trained on.

    The rows are the replies to those forget facts that have inverted facts, by `KEY`.
    """
    sql = f"""
        WITH
        -- the replies of all models
        replies AS ({replies.sql}),
        -- one row per reply to a forget fact and inverted fact of it
        paired AS (
            SELECT replies.*, selected.answer AS inverted_answer
            FROM replies JOIN selected USING (fact_id)
            WHERE suite = 'forget'
        )
        -- one row per reply, with all inverted facts
        SELECT suite, fact_id, model,
            any_value(question) AS question,
            any_value(answer) AS answer,
            any_value(generated) AS generated,
            list(inverted_answer) AS inverted
        FROM paired
        GROUP BY suite, fact_id, model
    """
    rows = Query(sql, {**replies.sources, "selected": selected}).rows()
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in KEY}
    stated = [
        metrics.states(row["question"], row["answer"], row["inverted"], row["generated"])
        for row in rows
    ]
    return pa.table(columns | {"states_inverted": pa.array(stated, pa.float64())})
