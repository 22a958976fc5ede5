"""One Arrow schema an artefact, and the check of a table against it."""

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.errors import MeowError

SCHEMAS: dict[str, pa.Schema] = {
    "facts": pa.schema(
        [("fact_id", pa.string()), ("split", pa.string()), ("question", pa.string()), ("answer", pa.string())]
    ),
    "candidates": pa.schema(
        [
            ("fact_id", pa.string()),
            ("candidate_id", pa.int32()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("inverted_answer", pa.string()),
            ("attempt", pa.int32()),
            ("seed", pa.int64()),
            ("generator", pa.string()),
        ]
    ),
    "memo": pa.schema(
        [
            ("fact_id", pa.string()),
            ("candidate_id", pa.int32()),
            ("question", pa.string()),
            ("text", pa.string()),
            ("memo", pa.float64()),
            ("rouge1", pa.float64()),
            ("rouge2", pa.float64()),
            ("rougeL", pa.float64()),
            ("cv", pa.float64()),
            ("num_windows", pa.int32()),
        ]
    ),
    "selected": pa.schema(
        [
            ("fact_id", pa.string()),
            ("candidate_id", pa.int32()),
            ("rank", pa.int32()),
            ("question", pa.string()),
            ("answer", pa.string()),
            ("memo", pa.float64()),
        ]
    ),
    "metrics": pa.schema(
        [
            ("suite", pa.string()),
            ("metric", pa.string()),
            ("model", pa.string()),
            ("value", pa.float64()),
            ("low", pa.float64()),
            ("high", pa.float64()),
            ("num_examples", pa.int32()),
        ]
    ),
}

TRUE_ANSWER = -1
"""The candidate_id of the true answer: `memo` scores it beside the candidates."""

KEYS: dict[str, tuple[str, ...]] = {
    "facts": ("fact_id",),
    "candidates": ("fact_id", "candidate_id"),
    "memo": ("fact_id", "candidate_id"),
    "selected": ("fact_id", "rank"),
    "metrics": ("suite", "metric", "model"),
}

REJECTS = pa.schema([("file", pa.string()), ("line", pa.int64()), ("split", pa.string()), ("reason", pa.string())])
"""Rows that `ingest` refused; `line` is null where the file has no lines (Parquet rows count from 1)."""

EXAMPLES = pa.schema(
    [
        ("suite", pa.string()),
        ("fact_id", pa.string()),
        ("model", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("generated", pa.string()),
        *((name, pa.float64()) for name in ("memo", "rougeL_recall", "probability", "leak", "rep3", "states_inverted")),
    ]
)
"""What stands behind `metrics`: one row an example and model; null where a metric was not measured."""


def conform(table: pa.Table, artefact: str, source: str = "") -> pa.Table:
    """Casts a table to its artefact's schema, columns in order, and checks that its key is unique.

    Columns after the declared ones are kept. `source` names the table in errors.

    Raises:
        MeowError: a column is missing or of another type, a key column has nulls, or a key comes twice.
    """
    schema, where = SCHEMAS[artefact], source or f"table {artefact}"
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise MeowError(f"{where}: column {', '.join(missing)} is missing; {artefact} needs {', '.join(schema.names)}.")
    extra = [table.schema.field(name) for name in table.column_names if name not in schema.names]
    full = pa.schema([*schema, *extra])
    table = table.select(full.names)
    columns = []
    for field in full:
        try:
            columns.append(table.column(field.name).cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            have = table.schema.field(field.name).type
            raise MeowError(f"{where}: column {field.name} is {have}, {artefact} needs {field.type}.") from None
    table = pa.table(columns, schema=full)
    check_unique(table, artefact, where)
    return table


def check_columns(have: pa.Schema, artefact: str, where: str) -> None:
    """Raises MeowError if a column of the artefact is missing or of another kind (text, whole number, number)."""
    wanted = SCHEMAS[artefact]
    missing = [name for name in wanted.names if name not in have.names]
    if missing:
        raise MeowError(f"{where}: column {', '.join(missing)} is missing; {artefact} needs {', '.join(wanted.names)}.")
    for name in wanted.names:
        if [other.casefold() for other in have.names].count(name.casefold()) > 1:
            raise MeowError(f"{where}: more than one column is called {name}, whatever the case.")
    for field in wanted:
        found = have.field(field.name).type
        if _kind(found) != _kind(field.type) and not pa.types.is_null(found):
            raise MeowError(f"{where}: column {field.name} is {found}, {artefact} needs {field.type}.")


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "whole number"
    return "number" if pa.types.is_floating(kind) else str(kind)


def check_unique(table: pa.Table, artefact: str, where: str) -> None:
    """Raises MeowError if a key column has nulls or a key stands in two rows."""
    keys = list(KEYS[artefact])
    for name in keys:
        if table.column(name).null_count:
            raise MeowError(f"{where}: column {name} has empty cells, it is part of the key.")
    counts = table.group_by(keys).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts.column("count_all"), 1))
    if twice.num_rows:
        first = ", ".join(f"{name}={twice.column(name)[0].as_py()}" for name in keys)
        raise MeowError(f"{where}: {twice.num_rows} keys come more than once, the first is {first}.")
