"""Tables larger than memory: SQL over Parquet files, streamed by DuckDB, which spills to disk."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from meow_ray.core import storage
from meow_ray.errors import MeowError

MEMORY_LIMIT = "1GB"
"""Memory that DuckDB uses before it spills to disk."""

GROUP_ROWS = 1 << 16
"""Rows of a row group in the Parquet files that this module writes."""

TableSource: TypeAlias = pa.Table | Sequence[str]
"""A table in memory, or the URIs of Parquet files with the same columns."""


# --- queries ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """A SELECT statement and the tables that it names.

    A query is a plain value, so it can be sent to another process and run there.
    """

    sql: str
    sources: Mapping[str, TableSource]

    @contextmanager
    def batches(self) -> Iterator[pa.RecordBatchReader]:
        """Runs the query; the block gets the result as a stream of record batches."""
        import duckdb

        with tempfile.TemporaryDirectory(prefix="meow-") as spill:
            settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": spill}
            with duckdb.connect(config=settings) as connection:  # type: ignore[arg-type]
                for name, source in self.sources.items():
                    table = source if isinstance(source, pa.Table) else _dataset(source)
                    connection.register(name, table)
                yield connection.sql(self.sql).to_arrow_reader(GROUP_ROWS)

    @storage.retry_transient
    def rows(self) -> list[dict[str, Any]]:
        """Runs the query and returns all rows of the result, which has to fit into memory."""
        with self.batches() as reader:
            return list(reader.read_all().to_pylist())


def text_literal(text: str) -> str:
    """Returns a text as an SQL literal: in quotes, with quotes inside it doubled."""
    return "'" + text.replace("'", "''") + "'"


# --- footers of Parquet files -------------------------------------------------------------------


def columns(uris: Sequence[str]) -> pa.Schema:
    """Returns the columns of Parquet files; only their footers are read.

    Raises:
        MeowError: a file cannot be read, or its columns differ from those of the first file.
    """
    dataset = _dataset(uris)
    with storage.naming_errors(uris[0]):
        for fragment in dataset.get_fragments():
            if not fragment.physical_schema.equals(dataset.schema):
                raise MeowError(
                    f"{fragment.path}: the columns differ from {storage.display(uris[0])}."
                )
    return dataset.schema


def count_rows(uris: Sequence[str]) -> int:
    """Returns the number of rows of Parquet files; only their footers are read."""
    if not uris:
        return 0
    with storage.naming_errors(uris[0]):
        return int(_dataset(uris).count_rows())


def _dataset(uris: Sequence[str]) -> ds.Dataset:
    fs, _ = storage.filesystem(uris[0])
    paths = [storage.filesystem(uri)[1] for uri in uris]
    with storage.naming_errors(uris[0]):
        return ds.dataset(paths, filesystem=fs, format="parquet")


# --- writing ------------------------------------------------------------------------------------


@storage.retry_transient
def write_sorted(query: Query, uri: str, schema: pa.Schema, key: Sequence[str]) -> int:
    """Writes the result of a query that sorts by a key as one Parquet file.

    Equal rows give equal bytes.

    Args:
        query: the query. Its result is sorted by the key.
        uri: the file.
        schema: the first columns of the file; the result is cast to them. Other columns of the
            result follow as they are.
        key: columns that identify a row.

    Returns:
        The number of rows.

    Raises:
        AssertionError: the rows are not sorted by the key, or two rows have the same key.
    """
    with query.batches() as reader:
        extra = [field for field in reader.schema if field.name not in schema.names]
        full = pa.schema([*schema, *extra])
        groups = _regrouped(reader, GROUP_ROWS)
        return write_stream(_checked(groups, full, key, uri), full, uri)


def sort_and_write(query: Query, uri: str, schema: pa.Schema, key: Sequence[str]) -> int:
    """Writes the columns of a schema from a query in any order; see `write_sorted`."""
    columns, order = ", ".join(schema.names), ", ".join(key)
    ordered = Query(f"SELECT {columns} FROM ({query.sql}) ORDER BY {order}", query.sources)
    return write_sorted(ordered, uri, schema, key)


def write_stream(groups: Iterable[pa.Table], schema: pa.Schema, uri: str) -> int:
    """Writes tables one after the other into one Parquet file; returns the number of rows."""
    num_rows = 0
    fs, path = storage.filesystem(uri)
    with storage.naming_errors(uri):
        fs.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with pq.ParquetWriter(path, schema, filesystem=fs, compression="zstd") as writer:
            for table in groups:
                writer.write_table(table, row_group_size=GROUP_ROWS)
                num_rows += table.num_rows
    return num_rows


@storage.retry_transient
def write_parts(query: Query, folder: str, part_rows: int) -> None:
    """Writes the result of a query, in its order, as files of at most `part_rows` rows each.

    The files are `part-00000.parquet`, `part-00001.parquet` and so on.
    """
    with query.batches() as reader:
        for number, table in enumerate(_regrouped(reader, part_rows)):
            storage.write_table(table, storage.join(folder, f"part-{number:05}.parquet"))


def _checked(
    groups: Iterable[pa.Table], schema: pa.Schema, key: Sequence[str], uri: str
) -> Iterator[pa.Table]:
    """Yields the tables, cast to the schema; fails if the key does not increase strictly."""
    last_key = None
    for table in groups:
        table = table.select(schema.names).cast(schema).combine_chunks()
        keys = table.select(list(key)).combine_chunks()
        compared = keys if last_key is None else pa.concat_tables([last_key, keys])
        assert _increases(compared), f"{storage.display(uri)}: rows out of order, or a key twice"
        last_key = keys.slice(keys.num_rows - 1)
        yield table


def _regrouped(reader: pa.RecordBatchReader, size: int) -> Iterator[pa.Table]:
    """Yields the rows of a stream as tables of `size` rows, however its batches are cut.

    The last table may be smaller.
    """
    waiting: list[pa.RecordBatch] = []
    num_waiting = 0
    for batch in reader:
        while num_waiting + batch.num_rows >= size:
            missing = size - num_waiting
            yield pa.Table.from_batches([*waiting, batch.slice(0, missing)], reader.schema)
            batch = batch.slice(missing)
            waiting = []
            num_waiting = 0
        if batch.num_rows:
            waiting.append(batch)
            num_waiting += batch.num_rows
    if num_waiting:
        yield pa.Table.from_batches(waiting, reader.schema)


def _increases(keys: pa.Table) -> bool:
    """Tells whether each row is larger than the one before, compared column by column."""
    later = keys.slice(1)
    earlier = keys.slice(0, max(0, keys.num_rows - 1))
    less: Any = False
    for name in reversed(keys.column_names):
        equal = pc.equal(earlier[name], later[name])
        less = pc.or_(pc.less(earlier[name], later[name]), pc.and_(equal, less))
    return bool(pc.all(less).as_py() is not False)
