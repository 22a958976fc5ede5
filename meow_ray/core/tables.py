"""Tables larger than memory: SQL over Parquet, streamed, by DuckDB, which spills to disk."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from meow_ray.core import storage
from meow_ray.errors import MeowError

MEMORY_LIMIT = "1GB"
"""What DuckDB may hold before it spills."""
GROUP_ROWS = 1 << 16
"""Rows of a Parquet row group that is written here."""

TableSource: TypeAlias = pa.Table | Sequence[str]
"""A table in memory, or the URIs of Parquet files of one schema."""


@dataclass(frozen=True)
class Query:
    """A SELECT over named sources; a value, so that it can be run in another process."""

    sql: str
    sources: Mapping[str, TableSource]

    @contextmanager
    def batches(self) -> Iterator[pa.RecordBatchReader]:
        """Yields the result as a stream."""
        import duckdb

        with tempfile.TemporaryDirectory(prefix="meow-") as spill:
            settings = {"memory_limit": MEMORY_LIMIT, "temp_directory": spill}
            with duckdb.connect(config=settings) as connection:  # type: ignore[arg-type]
                for name, source in self.sources.items():
                    connection.register(
                        name, source if isinstance(source, pa.Table) else _dataset(source)
                    )
                yield connection.sql(self.sql).to_arrow_reader(GROUP_ROWS)

    @storage.retry_transient
    def rows(self) -> list[dict[str, Any]]:
        """Returns a small result whole."""
        with self.batches() as reader:
            return list(reader.read_all().to_pylist())


def text_literal(text: str) -> str:
    """Returns a text as it stands in SQL."""
    return "'" + text.replace("'", "''") + "'"


def _dataset(uris: Sequence[str]) -> ds.Dataset:
    fs, _ = storage.filesystem(uris[0])
    with storage.naming_errors(uris[0]):
        return ds.dataset(
            [storage.filesystem(uri)[1] for uri in uris], filesystem=fs, format="parquet"
        )


def columns(uris: Sequence[str]) -> pa.Schema:
    """Returns the columns of Parquet files, from their footers.

    Raises:
        MeowError: a file cannot be read, or has other columns than the first.
    """
    dataset = _dataset(uris)
    with storage.naming_errors(uris[0]):
        for fragment in dataset.get_fragments():
            if not fragment.physical_schema.equals(dataset.schema):
                raise MeowError(
                    f"{fragment.path}: other columns than in {storage.display(uris[0])}."
                )
    return dataset.schema


def count_rows(uris: Sequence[str]) -> int:
    """Returns the number of rows of Parquet files, from their footers."""
    if not uris:
        return 0
    with storage.naming_errors(uris[0]):
        return int(_dataset(uris).count_rows())


@storage.retry_transient
def write_sorted(query: Query, uri: str, wanted: pa.Schema, key: Sequence[str]) -> int:
    """Writes a result that is sorted by its key as one Parquet file; equal rows give equal bytes.

    Columns behind those of `wanted` are kept as they are.

    Returns:
        The number of rows.

    Raises:
        AssertionError: the rows are not sorted by the key, or a key comes twice.
    """
    with query.batches() as reader:
        extra = [field for field in reader.schema if field.name not in wanted.names]
        full = pa.schema([*wanted, *extra])
        return write_stream(_checked(_groups(reader, GROUP_ROWS), full, key, uri), full, uri)


def write_stream(parts: Iterable[pa.Table], schema: pa.Schema, uri: str) -> int:
    """Writes tables as one Parquet file, one after the other; returns the number of rows."""
    rows = 0
    fs, path = storage.filesystem(uri)
    with storage.naming_errors(uri):
        fs.create_dir(str(PurePosixPath(path).parent), recursive=True)
        with pq.ParquetWriter(path, schema, filesystem=fs, compression="zstd") as writer:
            for table in parts:
                writer.write_table(table, row_group_size=GROUP_ROWS)
                rows += table.num_rows
    return rows


def _checked(
    parts: Iterable[pa.Table], schema: pa.Schema, key: Sequence[str], uri: str
) -> Iterator[pa.Table]:
    previous = None
    for table in parts:
        table = table.select(schema.names).cast(schema).combine_chunks()
        keys = table.select(list(key)).combine_chunks()
        both = keys if previous is None else pa.concat_tables([previous, keys])
        assert _increasing(both), f"{storage.display(uri)}: rows out of order, or a key twice"
        previous = keys.slice(keys.num_rows - 1)
        yield table


@storage.retry_transient
def write_parts(query: Query, folder: str, part_rows: int) -> None:
    """Writes a result as Parquet files of at most `part_rows` rows each, in its order."""
    with query.batches() as reader:
        for number, table in zip(count(), _groups(reader, part_rows), strict=False):
            storage.write_table(table, storage.join(folder, f"part-{number:05}.parquet"))


def _groups(reader: pa.RecordBatchReader, size: int) -> Iterator[pa.Table]:
    """Cuts a stream into tables of equal size, whatever the size of its batches."""
    waiting: list[pa.RecordBatch] = []
    have = 0
    for batch in reader:
        while have + batch.num_rows >= size:
            yield pa.Table.from_batches([*waiting, batch.slice(0, size - have)], reader.schema)
            batch, waiting, have = batch.slice(size - have), [], 0
        if batch.num_rows:
            waiting.append(batch)
            have += batch.num_rows
    if have:
        yield pa.Table.from_batches(waiting, reader.schema)


def _increasing(keys: pa.Table) -> bool:
    """Tells whether the rows increase strictly, column by column."""
    later, earlier = keys.slice(1), keys.slice(0, max(0, keys.num_rows - 1))
    less: Any = False
    for name in reversed(keys.column_names):
        same = pc.equal(earlier[name], later[name])
        less = pc.or_(pc.less(earlier[name], later[name]), pc.and_(same, less))
    return bool(pc.all(less).as_py() is not False)


# --- tables against their schema ----------------------------------------------------------------
