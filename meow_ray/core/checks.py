"""Tables against the schema and the key of their artifact."""

from collections.abc import Sequence

import pyarrow as pa

from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError


def conform(table: pa.Table, artifact: str, where: str = "") -> pa.Table:
    """Casts a table to its artifact's schema, columns in order, and checks that its key is unique.

    Columns after the declared ones are kept. `where` names the table in errors.

    Raises:
        MeowError: a column is missing or of another type, a key column has nulls, or a key comes twice.
    """
    return conform_to(table, artifact, SCHEMAS[artifact], KEYS[artifact], where)


def conform_to(
    table: pa.Table, artifact: str, schema: pa.Schema, key: Sequence[str], where: str = ""
) -> pa.Table:
    """Casts a table to a schema, columns in order, and checks that its key is unique; see `conform`."""
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
            raise MeowError(
                f"{where}: column {field.name} is {column.type}, {artifact} needs {field.type}."
            ) from None
    table = pa.table(columns, schema=full)
    check_unique(table.select(list(key)), key, where)
    return table


def check_columns(have: pa.Schema, artifact: str, where: str) -> None:
    """Raises MeowError if a column of the artifact is missing or of another kind (text, whole number, number)."""
    schema = SCHEMAS[artifact]
    _check_names(have, artifact, schema, where)
    for field in schema:
        if [other.casefold() for other in have.names].count(field.name.casefold()) > 1:
            raise MeowError(
                f"{where}: more than one column is called {field.name}, whatever the case."
            )
        found = have.field(field.name).type
        if _kind(found) != _kind(field.type) and not pa.types.is_null(found):
            raise MeowError(
                f"{where}: column {field.name} is {found}, {artifact} needs {field.type}."
            )


def check_keys(source: TableSource, artifact: str, where: str) -> None:
    """Raises MeowError if a key column has nulls or a key is in two rows."""
    check_unique(source, KEYS[artifact], where)


def check_unique(source: TableSource, keys: Sequence[str], where: str) -> None:
    """Raises MeowError if one of the columns has nulls or two rows agree in all of them."""
    names = ", ".join(keys)
    empty = ", ".join(f"count(*) - count({name}) AS {name}" for name in keys)
    for name, absent in Query(f"SELECT {empty} FROM t", {"t": source}).rows()[0].items():
        if absent:
            raise MeowError(f"{where}: column {name} has empty cells, it is part of the key.")
    twice = f"SELECT {names}, count(*) OVER () AS total FROM t GROUP BY {names} HAVING count(*) > 1"
    for row in Query(f"{twice} ORDER BY {names} LIMIT 1", {"t": source}).rows():
        first = ", ".join(f"{name}={row[name]}" for name in keys)
        raise MeowError(f"{where}: {row['total']} keys come more than once, the first is {first}.")


def _check_names(have: pa.Schema, artifact: str, schema: pa.Schema, where: str) -> None:
    wanted = schema.names
    missing = [name for name in wanted if name not in have.names]
    if missing:
        raise MeowError(
            f"{where}: column {', '.join(missing)} is missing; {artifact} needs {', '.join(wanted)}."
        )


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_integer(kind):
        return "whole number"
    return "number" if pa.types.is_floating(kind) else str(kind)
