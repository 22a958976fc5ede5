"""Small tables with a key of two columns, and files of them."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.tables import Query, TableSource

SCHEMA = pa.schema([("fact_id", pa.string()), ("rank", pa.int32()), ("text", pa.string())])
KEY = ("fact_id", "rank")
ALL_SORTED = "SELECT * FROM t ORDER BY fact_id, rank"


def table_of(keys: Sequence[tuple[str, int]]) -> pa.Table:
    """Returns a table with these keys, in this order."""
    rows = [
        {"fact_id": fact, "rank": rank, "text": f"text of {fact}/{rank}"} for fact, rank in keys
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


KEYS = [(f"f{i:02}", rank) for i in range(8) for rank in range(3)]
ROWS = table_of(KEYS)
"""24 rows, sorted by the key."""


def query(source: TableSource, sql: str = ALL_SORTED) -> Query:
    """Returns a query over one table `t`."""
    return Query(sql, {"t": source})


def files_of(folder: str | Path, *parts: pa.Table) -> list[str]:
    """Writes each table to its own file; returns the URIs."""
    uris = [storage.join(str(folder), f"{i}.parquet") for i in range(len(parts))]
    for part, uri in zip(parts, uris, strict=True):
        storage.write_table(part, uri)
    return uris
