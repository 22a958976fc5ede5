"""The `facts` table: reading rows of users' files, checking them, and naming those that fail."""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from meow_ray.config import Config, Source
from meow_ray.core import storage
from meow_ray.core.schema import REJECTS_SCHEMA, SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.columns import (
    Columns,
    Pair,
    advice,
    has_layout,
    pair_in_layout,
    pair_of,
)
from meow_ray.stages.ingest.readers import Row, read_source

LengthCheck: TypeAlias = Callable[[str, str], str | None]
"""Returns why a question and its answer are too long, or None if they are not."""


@dataclass(frozen=True)
class FactRow:
    """A question and its answer, as read from one row of a file."""

    file: str
    line: int
    question: Any
    answer: Any
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """All columns of the row."""
    fault: str = ""
    """Why the row has no question and answer, if it is known."""


def fact_id(question: str, answer: str) -> str:
    """Returns the first 16 hex digits of the SHA-256 of question, U+001F and answer, in NFC."""
    text = unicodedata.normalize("NFC", question) + "\x1f" + unicodedata.normalize("NFC", answer)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_sources(sources: Sequence[Source], config: Config) -> list[FactRow]:
    """Reads the rows of several sources, with the column names that `ingest` configures."""
    spec = config.ingest
    rows = []
    for source in sources:
        rows += read_rows(source, spec.question_columns, spec.answer_columns, spec.encoding)
    return rows


def read_rows(
    source: Source,
    questions: Sequence[str],
    answers: Sequence[str],
    encoding: str | None = None,
) -> list[FactRow]:
    """Reads the rows of a file, a folder or a dataset.

    Args:
        source: the file, folder or dataset.
        questions: possible names of the question's column; the first that a row has is used.
        answers: possible names of the answer's column.
        encoding: the encoding of text files that are not UTF-8.

    Raises:
        MeowError: the source cannot be read, is empty or malformed, or has none of the columns.
    """
    name = storage.display(source.path)
    columns = Columns(questions, answers)
    rows = list(read_source(source, columns, encoding))
    if not rows:
        raise MeowError(f"{name}: the file has no rows. Add a row for each fact.")
    names: set[str] = set()
    for row in rows:
        if not isinstance(row.record, dict):
            passages = " Passages without questions belong in `evaluate.text`."
            raise MeowError(
                f"{row.file}, line {row.line}: expected an object with a question and an answer "
                f"(got {type(row.record).__name__}). Write one object per fact."
                f"{passages if isinstance(row.record, str) else ''}"
            )
        names.update(row.record)
    to_pair = _pair_reader(name, names, columns)
    return [_fact_row(row, to_pair(row.record)) for row in rows]


def _pair_reader(
    name: str, names: Collection[str], columns: Columns
) -> Callable[[Mapping[str, Any]], Pair]:
    """Returns the function that takes question and answer from the rows of a source.

    Raises:
        MeowError: the rows have neither the wanted columns nor a known layout.
    """
    missing = columns.missing(names)
    if not missing:
        return lambda record: pair_of(record, columns)
    if has_layout(names):
        return pair_in_layout
    # the message does not list the columns: in a file without a header they are facts
    raise MeowError(
        f"{name}: no column {' or '.join(missing)} among its {len(names)}. {advice(names, columns)}"
    )


def _fact_row(row: Row, pair: Pair) -> FactRow:
    return FactRow(row.file, row.line, pair.question, pair.answer, row.record, pair.fault)


def build_facts(
    forget: Sequence[FactRow], retain: Sequence[FactRow], too_long: LengthCheck
) -> tuple[pa.Table, pa.Table]:
    """Checks rows and returns the `facts` table and the table of rejected rows."""
    facts: dict[str, dict[str, str]] = {}
    rejects = []
    for split, rows in (("forget", forget), ("retain", retain)):
        for row in rows:
            reason, fact = _check(row, split, facts, too_long)
            if fact is None:
                reject = {"file": row.file, "line": row.line, "split": split, "reason": reason}
                rejects.append(reject)
            else:
                facts[fact["fact_id"]] = fact
    return (
        pa.Table.from_pylist(list(facts.values()), schema=SCHEMAS["facts"]),
        pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA),
    )


def valid_facts(
    forget: Sequence[FactRow], retain: Sequence[FactRow] = (), where: str = ""
) -> pa.Table:
    """Returns the `facts` table of rows that must all be valid, of any length.

    Args:
        forget: rows of the forget set.
        retain: rows of the retain set.
        where: names the rows in errors, such as `memorize.data`.

    Raises:
        MeowError: a row is rejected.
    """
    table, rejects = build_facts(forget, retain, lambda question, answer: None)
    if rejects.num_rows:
        place = f"{where}: " if where else ""
        raise MeowError(f"{place}{rejects_text(rejects)}")
    return table


def rejects_text(rejects: pa.Table, most: int = 10) -> str:
    """Returns a message that names rejected rows by file, line and reason, without their text."""
    lines = [f"{rejects.num_rows} rows were rejected:"]
    for row in rejects.slice(0, most).to_pylist():
        lines.append(f"  {row['file']}, line {row['line']}: {row['reason']}")
    if rejects.num_rows > most:
        lines.append(f"  … and {rejects.num_rows - most} more")
    return "\n".join(lines)


def _check(
    row: FactRow, split: str, facts: Mapping[str, Mapping[str, str]], too_long: LengthCheck
) -> tuple[str, dict[str, str] | None]:
    """Returns why a row is rejected and None, or an empty reason and its fact."""
    reason = row.fault or _text_fault("question", row.question) or _text_fault("answer", row.answer)
    if reason:
        return reason, None
    question = unicodedata.normalize("NFC", row.question).strip()
    answer = unicodedata.normalize("NFC", row.answer).strip()
    key = fact_id(question, answer)
    if key in facts:
        earlier_split = facts[key]["split"]
        where = "" if earlier_split == split else f" of the {earlier_split} set"
        return f"duplicate of fact {key}{where}", None
    reason = too_long(question, answer)
    if reason:
        return reason, None
    return "", {"fact_id": key, "split": split, "question": question, "answer": answer}


def _text_fault(name: str, value: Any) -> str | None:
    """Returns why a value cannot be a question or an answer, or None if it can."""
    if value is None or value != value:  # NaN is how pandas writes nothing
        return f"{name} is missing"
    if not isinstance(value, str):
        return f"{name} is not a text but {type(value).__name__}{_cure(value)}"
    if not value.strip():
        return f"{name} is empty"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return f"{name} has half a surrogate pair"
    return None


def _cure(value: Any) -> str:
    """Returns how a value of another type becomes a text."""
    if isinstance(value, list):
        return "; write one of its texts"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "; put it in quotes, or write the text of the choice that it numbers"
    return ""
