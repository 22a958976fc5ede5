"""Checks of tables against the schema and the key of their artifact."""

from collections.abc import Sequence

import pyarrow as pa

from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError


def conform(table: pa.Table, artifact: str, where: str = "") -> pa.Table:
    """Returns a table cast to the schema of its artifact, and checks that its key is unique.

    The columns are in the order of the schema. Other columns follow as they are.

    Args:
        table: the table.
        artifact: name of an artifact with a schema, such as `facts`.
        where: names the table in errors.

    Raises:
        MeowError: a column is missing or cannot be cast, a cell of the key is empty, or two rows
            have the same key.
    """
    return conform_to(table, artifact, SCHEMAS[artifact], KEYS[artifact], where)


def conform_to(
    table: pa.Table, artifact: str, schema: pa.Schema, key: Sequence[str], where: str = ""
) -> pa.Table:
    """Returns a table cast to the given schema, and checks that its key is unique; see `conform`.

    Args:
        table: the table.
        artifact: name of the artifact in errors.
        schema: the first columns of the result.
        key: columns that identify a row.
        where: names the table in errors.

    Raises:
        MeowError: as `conform`.
    """
    where = where or f"table {artifact}"
    _check_names(table.schema, artifact, schema, where)
    extra = [table.schema.field(name) for name in table.column_names if name not in schema.names]
    full = pa.schema([*schema, *extra])
    columns = []
    for field in full:
        column = table.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise MeowError(_wrong_type(field, column.type, artifact, where)) from None
    table = pa.table(columns, schema=full)
    check_unique(table.select(list(key)), key, where)
    return table


def check_columns(columns: pa.Schema, artifact: str, schema: pa.Schema, where: str) -> None:
    """Checks the columns of a table without its rows: their names, and text or number.

    Args:
        columns: the columns of the table.
        artifact: name of the artifact in errors.
        schema: the columns that the artifact needs.
        where: names the table in errors.

    Raises:
        MeowError: a column is missing, comes twice, or is of another kind (text, integer, floating
            point) than the schema's.
    """
    _check_names(columns, artifact, schema, where)
    lower_names = [name.casefold() for name in columns.names]
    for field in schema:
        if lower_names.count(field.name.casefold()) > 1:
            raise MeowError(
                f"{where}: more than one column is called {field.name}, ignoring case. "
                "Rename or remove all but one."
            )
        actual = columns.field(field.name).type
        if _kind(actual) != _kind(field.type) and not pa.types.is_null(actual):
            raise MeowError(_wrong_type(field, actual, artifact, where))


def check_keys(source: TableSource, artifact: str, where: str) -> None:
    """Checks that the key of an artifact's table is unique; see `check_unique`."""
    check_unique(source, KEYS[artifact], where)


def check_unique(source: TableSource, key: Sequence[str], where: str) -> None:
    """Checks that no two rows of a table have the same key.

    Args:
        source: the table.
        key: columns that identify a row.
        where: names the table in errors.

    Raises:
        MeowError: a cell of the key is empty, or two rows have the same key.
    """
    quoted = [f'"{name}"' for name in key]  # a name may be a keyword, such as group
    empty_counts = ", ".join(f"count(*) - count({name}) AS {name}" for name in quoted)
    counts = Query(f"SELECT {empty_counts} FROM t", {"t": source}).rows()[0]
    for name, num_empty in counts.items():
        if num_empty:
            raise MeowError(
                f"{where}: column {name} has empty cells ({num_empty}), but it is part of the key. "
                "Fill them or remove the rows."
            )
    names = ", ".join(quoted)
    duplicates = f"""
        SELECT {names}, count(*) OVER () AS total
        FROM t GROUP BY {names} HAVING count(*) > 1
        ORDER BY {names} LIMIT 1
    """
    for row in Query(duplicates, {"t": source}).rows():
        first = ", ".join(f"{name}={row[name]}" for name in key)
        raise MeowError(
            f"{where}: {row['total']} keys occur in more than one row, the first is {first}. "
            "Keep one row per key."
        )


def _check_names(columns: pa.Schema, artifact: str, schema: pa.Schema, where: str) -> None:
    missing = ", ".join(name for name in schema.names if name not in columns.names)
    if missing:
        raise MeowError(
            f"{where}: column {missing} is missing. {artifact} needs the columns "
            f"{', '.join(schema.names)}."
        )


def _wrong_type(field: pa.Field, actual: pa.DataType, artifact: str, where: str) -> str:
    return (
        f"{where}: column {field.name} is {actual}, {artifact} needs {field.type}. Cast the column."
    )


def _kind(kind: pa.DataType) -> str:
    """Returns a name that is equal for types that differ only in size or encoding."""
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "integer"
    return "floating point" if pa.types.is_floating(kind) else str(kind)
