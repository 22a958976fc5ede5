"""The `candidates` table of a user's own rows."""

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.facts import fact_id


def complete(records: Iterable[tuple[int, Any]], source: str) -> pa.Table:
    """Makes a candidates table of a user's own rows; `records` are (line, row).

    A row has `question`, `answer` (or `undesired_answer`) and an `inverted_answer`, or several as `answer_0`,
    `answer_1`, … as the MEOW authors publish them; the rest is filled in. A row without any asks for the true answer
    alone, which `memo` then scores: its candidate_id is -1.

    Raises:
        MeowError: a row lacks a question or an answer, has an empty one, or contradicts another row.
    """
    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    facts: dict[str, tuple[str, str]] = {}
    for line, record in records:
        if not isinstance(record, dict):
            raise MeowError(
                f"{source}, line {line}: expected an object with a question and an answer."
            )
        name = (
            "answer"
            if "answer" in record or "undesired_answer" not in record
            else "undesired_answer"
        )
        question, answer = (
            _text(record, "question", source, line),
            _text(record, name, source, line),
        )
        given: dict[str, Any] = {
            k: _text(record, k, source, line)
            for k in ("fact_id", "generator")
            if record.get(k) is not None
        }
        given |= {
            k: _number(record, k, source, line) for k in _NUMBERS if record.get(k) is not None
        }
        key = given.get("fact_id") or fact_id(question, answer)
        if facts.setdefault(key, (question, answer)) != (question, answer):
            raise MeowError(f"{source}, line {line}: fact_id {key} names two different facts.")
        wide = sorted(
            (k for k in record if _WIDE.fullmatch(k) and record[k] is not None),
            key=lambda k: int(k.rpartition("_")[2]),
        )
        names = ["inverted_answer"] if record.get("inverted_answer") is not None else wide
        made = {"fact_id": key, "question": question, "answer": answer}
        made |= {"attempt": 0, "seed": 0, "generator": "external"}
        made |= {k: given[k] for k in ("attempt", "seed", "generator") if k in given}
        for name in names:
            own = given.get("candidate_id") if name == "inverted_answer" else None
            number = counts.get(key, 0) if own is None else own
            counts[key] = counts.get(key, 0) + 1
            rows.append(
                made
                | {"candidate_id": number, "inverted_answer": _text(record, name, source, line)}
            )
        if not names:
            rows.append(made | {"candidate_id": TRUE_ANSWER, "inverted_answer": None})
        if names and rows[-1]["candidate_id"] < 0:
            raise MeowError(f"{source}, line {line}: candidate_id is not a whole number from 0.")
    if not rows:
        raise MeowError(f"{source}: the file has no rows.")
    return pa.Table.from_pylist(rows, schema=SCHEMAS["candidates"])


_WIDE = re.compile(r"answer_\d+")


_NUMBERS = ("candidate_id", "attempt", "seed")


def _number(record: dict[str, Any], name: str, source: str, line: int) -> int:
    """Returns a whole number that fits its column; a CSV file has it as text."""
    value, least = record[name], TRUE_ANSWER if name == "candidate_id" else 0
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value, re.ASCII):
        value = int(value)
    most = 2 ** (SCHEMAS["candidates"].field(name).type.bit_width - 1)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most:
        raise MeowError(f"{source}, line {line}: {name} is not a whole number from 0.")
    return value


def _text(record: dict[str, Any], name: str, source: str, line: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        missing = name not in record
        raise MeowError(
            f"{source}, line {line}: {name} is {'missing' if missing else 'empty or not a text'}."
        )
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise MeowError(f"{source}, line {line}: {name} has half a surrogate pair.")
    return unicodedata.normalize("NFC", value).strip()
