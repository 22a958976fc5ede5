"""Users' files to the facts table, and the rows that are refused."""

import csv
import gzip
import hashlib
import io
import json
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from meow_ray import facts as facts_module
from meow_ray import storage
from meow_ray.config import Config, Source
from meow_ray.errors import MeowError
from meow_ray.schema import REJECTS, SCHEMAS

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Row:
    """One question with its answer, and where it stands."""

    file: str
    line: int
    question: Any
    answer: Any
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All that stands there."""


def fact_id(question: str, answer: str) -> str:
    """Returns the first 16 hex digits of sha256 over NFC question, U+001F, NFC answer."""
    text = unicodedata.normalize("NFC", question) + "\x1f" + unicodedata.normalize("NFC", answer)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_file(source: Source) -> bool:
    """Tells whether a source is a file that we read ourselves, and not a Hugging Face dataset."""
    return PurePosixPath(storage.display(source.path).removesuffix(".gz")).suffix in FORMATS


def read(source: Source, questions: Sequence[str], answers: Sequence[str]) -> list[Row]:
    """Reads the rows of a source; `questions` and `answers` are the names that the columns may have.

    Raises:
        MeowError: the file cannot be read, is empty or malformed, or has none of the columns.
    """
    records = read_records(storage.absolute(source.path)) if is_file(source) else _dataset_records(source)
    found: set[str] = set()
    rows, name = [], storage.display(source.path)
    for line, record in records:
        if not isinstance(record, dict):
            raise MeowError(f"{name}, line {line}: expected an object with a question and an answer.")
        found.update(record)
        rows.append(Row(name, line, _column(record, questions), _column(record, answers), record))
    if not rows:
        raise MeowError(f"{name}: the file has no rows.")
    for names in (questions, answers):
        if not found & set(names):  # what the columns are called instead may be facts: a file without a header
            raise MeowError(
                f"{name}: no column {' or '.join(names)} among its {len(found)}; "
                "name yours in `ingest.question_columns` and `ingest.answer_columns`."
            )
    return rows


def build(
    forget: Sequence[Row], retain: Sequence[Row], too_long: Callable[[str, str], str | None]
) -> tuple[pa.Table, pa.Table]:
    """Checks every row and returns the `facts` table and the table of rejects.

    `too_long` says, for a question and an answer, which limit they break, or None.
    """
    facts: dict[str, dict[str, str]] = {}
    rejects = []
    for split, rows in (("forget", forget), ("retain", retain)):
        for row in rows:
            reason, fact = _check(row, split, facts, too_long)
            if fact is None:
                rejects.append({"file": row.file, "line": row.line, "split": split, "reason": reason})
            else:
                facts[fact["fact_id"]] = fact
    return (
        pa.Table.from_pylist(list(facts.values()), schema=SCHEMAS["facts"]),
        pa.Table.from_pylist(rejects, schema=REJECTS),
    )


def _check(
    row: Row, split: str, facts: dict[str, dict[str, str]], too_long: Callable[[str, str], str | None]
) -> tuple[str, dict[str, str] | None]:
    for name, value in (("question", row.question), ("answer", row.answer)):
        if value is None:
            return f"{name} is missing", None
        if not isinstance(value, str):
            return f"{name} is not a text but {type(value).__name__}", None
        if not value.strip():
            return f"{name} is empty", None
        if any("\ud800" <= c <= "\udfff" for c in value):
            return f"{name} has half a surrogate pair", None
    question = unicodedata.normalize("NFC", row.question).strip()
    answer = unicodedata.normalize("NFC", row.answer).strip()
    key = fact_id(question, answer)
    if key in facts:
        where = "" if facts[key]["split"] == split else f" of the {facts[key]['split']} set"
        return f"duplicate of fact {key}{where}", None
    limit = too_long(question, answer)
    if limit:
        return limit, None
    return "", {"fact_id": key, "split": split, "question": question, "answer": answer}


def _column(record: dict[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if name in record), None)


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
        raise MeowError(f"{name}, line {where}: malformed JSON ({getattr(error, 'msg', 'invalid')}).") from None


def _json_records(name: str, text: str) -> Iterator[tuple[int, Any]]:
    items = _loads(text, name, 1)
    if not isinstance(items, list):
        raise MeowError(f"{name}: a .json file must hold an array of objects; one object a line is .jsonl.")
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
                raise MeowError(f"{name}, line {reader.line_num}: more cells than the header has columns.")
            yield reader.line_num, record
    except csv.Error as error:
        raise MeowError(f"{name}, line {reader.reader.line_num}: malformed CSV ({error}).") from None


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
            data = load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MeowError(
            f"{source.path}: neither a file nor a Hugging Face dataset that can be loaded: {reason}"
        ) from None
    yield from enumerate(data, start=1)


def read_sources(sources: Sequence[Source], config: Config) -> list[facts_module.Row]:
    """Reads sources with the column names of `ingest`."""
    spec = config.ingest
    return [row for source in sources for row in facts_module.read(source, spec.question_columns, spec.answer_columns)]


def rejects_text(rejects: pa.Table, most: int = 10) -> str:
    """Names rejected rows by file, line and reason; no text of facts."""
    rows = rejects.slice(0, most).to_pylist()
    more = f"\n  … and {rejects.num_rows - most} more" if rejects.num_rows > most else ""
    lines = "".join(f"\n  {row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"{rejects.num_rows} rows were rejected:{lines}{more}"
