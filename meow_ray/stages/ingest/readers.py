"""Readers of users' files: JSONL, JSON, CSV, Parquet, and Hugging Face datasets.

Each reader yields (line, row). A row is normally a dict; the caller checks that. Rows of Parquet
files and datasets count from 1.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meow_ray.config import FORMATS, Source
from meow_ray.core import storage
from meow_ray.errors import MeowError


def read_source(source: Source) -> Iterator[tuple[int, Any]]:
    """Reads a file or a Hugging Face dataset; yields (line, row).

    Raises:
        MeowError: it cannot be read, or it is empty or malformed.
    """
    if source.is_file:
        return read_records(storage.absolute(source.path))
    return _dataset_records(source)


def read_records(uri: str) -> Iterator[tuple[int, Any]]:
    """Reads a JSONL, JSON, CSV or Parquet file, also compressed by gzip; yields (line, row).

    Raises:
        MeowError: the file cannot be read, or it is empty or malformed.
    """
    content = storage.read_bytes(uri)
    name = storage.display(uri)
    if name.endswith(".gz"):
        content = _unzipped(name, content)
        name = name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_records(name, content)
        return
    text = _decoded(name, content)
    if name.endswith(".csv"):
        yield from _csv_records(name, text)
    elif name.endswith(".json"):
        yield from _json_records(name, text)
    else:
        yield from _jsonl_records(name, text)


def _unzipped(name: str, content: bytes) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise MeowError(
            f"{name}: not a whole gzip file ({error}). Compress the file again."
        ) from None


def _decoded(name: str, content: bytes) -> str:
    """Returns the text of a file."""
    if not content.strip():
        raise MeowError(f"{name}: the file is empty. Add a row for each fact.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise MeowError(
            f"{name}, line {line}: not UTF-8 text (byte {error.start}). Save the file as UTF-8."
        ) from None
    if "\x00" in text:
        raise MeowError(
            f"{name}: a binary file, not text. Its suffix must name its format: "
            f"{', '.join(FORMATS)}."
        )
    return text


def _jsonl_records(name: str, text: str) -> Iterator[tuple[int, Any]]:
    for line, line_text in enumerate(text.split("\n"), start=1):
        if line_text.strip():
            yield line, _loads(line_text, name, line)


def _json_records(name: str, text: str) -> Iterator[tuple[int, Any]]:
    items = _loads(text, name, 1)
    if not isinstance(items, list):
        raise MeowError(
            f"{name}: a .json file must hold an array of objects. "
            "Name a file with one object per line .jsonl."
        )
    # the text is valid JSON; a second pass over it finds the line of each item
    decoder = json.JSONDecoder()
    position = text.index("[") + 1
    line = 1
    counted_to = 0
    for item in items:
        while text[position] in " \t\r\n,":
            position += 1
        line += text.count("\n", counted_to, position)
        counted_to = position
        yield line, item
        _, position = decoder.raw_decode(text, position)


def _loads(text: str, name: str, line: int) -> Any:
    """Parses JSON text that begins at a line of a file."""
    try:
        return json.loads(text)
    except ValueError as error:
        fault_line = line + getattr(error, "lineno", 1) - 1
        reason = getattr(error, "msg", "invalid")
        raise MeowError(
            f"{name}, line {fault_line}: malformed JSON ({reason}). Correct this line."
        ) from None


def _csv_records(name: str, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            if None in record:
                raise MeowError(
                    f"{name}, line {reader.line_num}: more cells than the header has columns. "
                    "Put cells that contain commas in quotes."
                )
            yield reader.line_num, record
    except csv.Error as error:
        raise MeowError(
            f"{name}, line {reader.reader.line_num}: malformed CSV ({error}). Correct this line."
        ) from None


def _parquet_records(name: str, content: bytes) -> Iterator[tuple[int, Any]]:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise MeowError(
            f"{name}: not a Parquet file ({reason}). Its suffix must name its format: "
            f"{', '.join(FORMATS)}."
        ) from None
    yield from enumerate(table.to_pylist(), start=1)


def _dataset_records(source: Source) -> Iterator[tuple[int, Any]]:
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError:
        raise MeowError(
            f"{source.path}: not a file of type {', '.join(FORMATS)}, and Hugging Face datasets "
            "need the package datasets. Install it, or name a file."
        ) from None
    try:
        if storage.exists(storage.join(source.path, "state.json")):
            data = load_from_disk(source.path)
        else:
            data = load_dataset(
                source.path, source.subset, split=source.split, revision=source.revision
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MeowError(
            f"{source.path}: neither a file nor a Hugging Face dataset that can be loaded "
            f"({reason}). Check the path or the dataset's name."
        ) from None
    yield from enumerate(data, start=1)
