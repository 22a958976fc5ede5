"""Readers of users' data: files by their content, folders of them, and hub datasets.

A reader yields rows with their place. A row is normally a dict; the caller checks that. Rows of
Parquet files, of datasets, and of JSON objects of columns count from 1.
"""

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from meow_ray.config import Source
from meow_ray.core import hub_datasets, storage
from meow_ray.core.outside import PARQUET
from meow_ray.errors import MeowError
from meow_ray.stages.ingest import content, folders
from meow_ray.stages.ingest.columns import Columns
from meow_ray.stages.ingest.csv_rows import csv_rows
from meow_ray.stages.ingest.json_rows import json_rows
from meow_ray.stages.inputs import is_stored

ARROW = (b"ARROW1\x00\x00", b"FEA1", b"\xff\xff\xff\xff")
"""The first bytes of Arrow data: a file, Feather version 1, a stream."""


class Row(NamedTuple):
    """A row of a user's data and its place."""

    file: str
    line: int
    record: Any


def read_source(
    source: Source, columns: Columns | None = None, encoding: str | None = None
) -> Iterator[Row]:
    """Reads a file, a folder or a hub dataset.

    Args:
        source: the file, folder or dataset.
        columns: the columns that the rows should have; they decide between readings of a file.
        encoding: the encoding of text files that are not UTF-8.

    Raises:
        MeowError: it cannot be read, or it is empty or malformed.
    """
    name = storage.display(source.path)
    if not is_stored(source):
        dataset = hub_datasets.load(source)
        yield from (Row(name, line, record) for line, record in enumerate(dataset, start=1))
        return
    uri = storage.absolute(source.path)
    if not storage.is_folder(uri):
        files = [uri]
    elif folders.is_saved_dataset(uri):
        yield from (Row(name, *row) for row in folders.saved_rows(source, uri))
        return
    elif folders.is_dataset_repository(uri):
        yield from (Row(name, *row) for row in folders.repository_rows(source, uri))
        return
    else:
        files = folders.parts(uri)
    for file in files:
        try:
            for line, record in read_records(file, columns, encoding, source.split):
                yield Row(storage.display(file), line, record)
        except content.EmptyFileError:
            if len(files) == 1:  # several parts may be empty, as Spark writes them
                raise


def read_records(
    uri: str,
    columns: Columns | None = None,
    encoding: str | None = None,
    key: str = "train",
) -> Iterator[tuple[int, Any]]:
    """Reads a file in the format of its content; yields (line, row).

    Args:
        uri: the file.
        columns: the columns that the rows should have.
        encoding: the encoding of a text file that is not UTF-8.
        key: which array of a JSON object is read if it has several.

    Raises:
        MeowError: the file cannot be read, or it is empty or malformed.
    """
    name = storage.display(uri)
    data = content.read_content(uri)
    if data.startswith(PARQUET) or data.startswith(ARROW):
        yield from _arrow_rows(name, data)
        return
    text = content.decoded(name, data, encoding)
    columns = columns or Columns()
    if text.lstrip().startswith(("{", "[")):
        yield from json_rows(name, text, columns, key)
    else:
        yield from csv_rows(name, text, columns)


def _arrow_rows(name: str, data: bytes) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a Parquet or Arrow file, counted from 1."""
    try:
        if data.startswith(PARQUET):
            table = pq.read_table(io.BytesIO(data))
        elif data.startswith(ARROW[-1]):
            table = pa.ipc.open_stream(data).read_all()
        else:
            table = pyarrow.feather.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if data.startswith(PARQUET) else "Arrow"
        reason = str(error).splitlines()[0].rstrip(".")
        raise MeowError(f"{name}: a damaged {kind} file ({reason}). Write it again.") from None
    yield from enumerate(table.to_pylist(), start=1)
