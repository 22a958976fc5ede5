"""The `facts` table: reading rows of users' files, checking them, and naming those that fail."""

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from meow_ray.config import Config, Source
from meow_ray.core import storage
from meow_ray.core.schema import REJECTS_SCHEMA, SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.readers import read_source

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


def fact_id(question: str, answer: str) -> str:
    """Returns the first 16 hex digits of the SHA-256 of question, U+001F and answer, in NFC."""
    text = unicodedata.normalize("NFC", question) + "\x1f" + unicodedata.normalize("NFC", answer)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_sources(sources: Sequence[Source], config: Config) -> list[FactRow]:
    """Reads the rows of several sources, with the column names that `ingest` configures."""
    spec = config.ingest
    rows = []
    for source in sources:
        rows += read_rows(source, spec.question_columns, spec.answer_columns)
    return rows


def read_rows(source: Source, questions: Sequence[str], answers: Sequence[str]) -> list[FactRow]:
    """Reads the rows of a file or dataset.

    Args:
        source: the file or dataset.
        questions: possible names of the question's column; the first that a row has is used.
        answers: possible names of the answer's column.

    Raises:
        MeowError: the source cannot be read, is empty or malformed, or has none of the columns.
    """
    name = storage.display(source.path)
    rows: list[FactRow] = []
    columns: set[str] = set()
    for line, record in read_source(source):
        if not isinstance(record, dict):
            passages = " Passages without questions belong in `evaluate.text`, one per line."
            raise MeowError(
                f"{name}, line {line}: expected an object with a question and an answer "
                f"(got {type(record).__name__}). Write one object per fact."
                f"{passages if isinstance(record, str) else ''}"
            )
        columns.update(record)
        row = FactRow(
            file=name,
            line=line,
            question=_first_column(record, questions),
            answer=_first_column(record, answers),
            record=record,
        )
        rows.append(row)
    if not rows:
        raise MeowError(f"{name}: the file has no rows. Add a row for each fact.")
    for wanted in (questions, answers):
        if not columns.intersection(wanted):
            # the message does not list the columns: in a file without a header they are facts
            raise MeowError(
                f"{name}: no column {' or '.join(wanted)} among its {len(columns)}. "
                "Name yours in `ingest.question_columns` and `ingest.answer_columns`."
            )
    return rows


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
    reason = _text_fault("question", row.question) or _text_fault("answer", row.answer)
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
    if value is None:
        return f"{name} is missing"
    if isinstance(value, list):
        return f"{name} is not a text but a list: write a row for each text"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{name} is not a text but a number: write it, or the choice of this number, as text"
    if not isinstance(value, str):
        return f"{name} is not a text but {type(value).__name__}"
    if not value.strip():
        return f"{name} is empty"
    if any("\ud800" <= character <= "\udfff" for character in value):
        return f"{name} has half a surrogate pair"
    return None


def _first_column(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Returns the value of the first column in `names` that a record has, or None."""
    return next((record[name] for name in names if name in record), None)
