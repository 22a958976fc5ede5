"""Users' files: JSONL, JSON, CSV, Parquet, or a Hugging Face dataset."""

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
        MeowError: it cannot be read, is empty or malformed.
    """
    return (
        read_records(storage.absolute(source.path)) if source.is_file else _dataset_records(source)
    )


def read_records(uri: str) -> Iterator[tuple[int, Any]]:
    """Reads a JSONL, JSON, CSV or Parquet file, gzip too; yields (line, row) as they stand there.

    Raises:
        MeowError: the file cannot be read, is empty or malformed.
    """
    content, name = storage.read_bytes(uri), storage.display(uri)
    if name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise MeowError(f"{name}: not a whole gzip file ({error}).") from None
        name = name.removesuffix(".gz")
    if name.endswith(".parquet"):
        yield from _parquet_records(name, content)
        return
    if not content.strip():
        raise MeowError(f"{name}: the file is empty.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise MeowError(f"{name}, line {line}: not UTF-8 text (byte {error.start}).") from None
    if "\x00" in text:
        raise MeowError(f"{name}: a binary file, not text.")
    if name.endswith(".csv"):
        yield from _csv_records(name, text)
    elif name.endswith(".json"):
        yield from _json_records(name, text)
    else:
        for i, line_text in enumerate(text.split("\n"), start=1):
            if line_text.strip():
                yield i, _loads(line_text, name, i)


def _loads(text: str, name: str, line: int) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        where = line + getattr(error, "lineno", 1) - 1
        raise MeowError(
            f"{name}, line {where}: malformed JSON ({getattr(error, 'msg', 'invalid')})."
        ) from None


def _json_records(name: str, text: str) -> Iterator[tuple[int, Any]]:
    items = _loads(text, name, 1)
    if not isinstance(items, list):
        raise MeowError(
            f"{name}: a .json file must hold an array of objects; one object a line is .jsonl."
        )
    decoder, position, line, counted = json.JSONDecoder(), text.index("[") + 1, 1, 0
    for item in items:  # a second walk over a text known to be valid, to learn each item's line
        while text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        yield line, item
        position = decoder.raw_decode(text, position)[1]


def _csv_records(name: str, text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for record in reader:
            if None in record:
                raise MeowError(
                    f"{name}, line {reader.line_num}: more cells than the header has columns."
                )
            yield reader.line_num, record
    except csv.Error as error:
        raise MeowError(
            f"{name}, line {reader.reader.line_num}: malformed CSV ({error})."
        ) from None


def _parquet_records(name: str, content: bytes) -> Iterator[tuple[int, Any]]:
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise MeowError(f"{name}: not a Parquet file ({str(error).splitlines()[0]}).") from None
    yield from enumerate(table.to_pylist(), start=1)


def _dataset_records(source: Source) -> Iterator[tuple[int, Any]]:
    try:
        from datasets import load_dataset, load_from_disk
    except ImportError:
        raise MeowError(
            f"{source.path}: not a file of type {', '.join(FORMATS)}, and reading a Hugging Face dataset needs "
            "the package datasets."
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
            f"{source.path}: neither a file nor a Hugging Face dataset that can be loaded: {reason}"
        ) from None
    yield from enumerate(data, start=1)
