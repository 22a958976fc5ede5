"""Users' files to the facts table, and the rows that are refused."""

import hashlib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from meow_ray.config import Config, Source
from meow_ray.core import storage
from meow_ray.core.schema import REJECTS_SCHEMA, SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.readers import read_source


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


def read(source: Source, questions: Sequence[str], answers: Sequence[str]) -> list[Row]:
    """Reads the rows of a source; `questions` and `answers` are the names that the columns may have.

    Raises:
        MeowError: the file cannot be read, is empty or malformed, or has none of the columns.
    """
    records = read_source(source)
    found: set[str] = set()
    rows, name = [], storage.display(source.path)
    for line, record in records:
        if not isinstance(record, dict):
            raise MeowError(
                f"{name}, line {line}: expected an object with a question and an answer."
            )
        found.update(record)
        rows.append(Row(name, line, _column(record, questions), _column(record, answers), record))
    if not rows:
        raise MeowError(f"{name}: the file has no rows.")
    for names in (questions, answers):
        if not found & set(
            names
        ):  # what the columns are called instead may be facts: a file without a header
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
                rejects.append(
                    {"file": row.file, "line": row.line, "split": split, "reason": reason}
                )
            else:
                facts[fact["fact_id"]] = fact
    return (
        pa.Table.from_pylist(list(facts.values()), schema=SCHEMAS["facts"]),
        pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA),
    )


def _check(
    row: Row,
    split: str,
    facts: dict[str, dict[str, str]],
    too_long: Callable[[str, str], str | None],
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


def read_sources(sources: Sequence[Source], config: Config) -> list[Row]:
    """Reads sources with the column names of `ingest`."""
    spec = config.ingest
    return [
        row
        for source in sources
        for row in read(source, spec.question_columns, spec.answer_columns)
    ]


def rejects_text(rejects: pa.Table, most: int = 10) -> str:
    """Names rejected rows by file, line and reason; no text of facts."""
    rows = rejects.slice(0, most).to_pylist()
    more = f"\n  … and {rejects.num_rows - most} more" if rejects.num_rows > most else ""
    lines = "".join(f"\n  {row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"{rejects.num_rows} rows were rejected:{lines}{more}"
