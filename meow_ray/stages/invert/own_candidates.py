"""The `candidates` table of a user's own rows, with all columns that the rows leave out."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import is_parquet, main_files
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.ingest.readers import read_records

_NUMBERED_ANSWER = re.compile(r"answer_\d+")
_INTEGER = re.compile(r"-?\d+", re.ASCII)


def complete(records: Iterable[tuple[int, Any]], source: str) -> pa.Table:
    """Returns the candidates table of a user's own rows.

    A row has `question`, `answer` (or `undesired_answer`), and either an `inverted_answer` or
    several as `answer_0`, `answer_1`, … in the format that the MEOW authors publish. The other
    columns are filled in unless the row has them. For a row without an inverted answer, `memo`
    scores the true answer alone; its candidate_id is -1.

    Args:
        records: (line, row) pairs.
        source: name of the file, for error messages.

    Raises:
        MeowError: a row lacks a question or an answer, has an empty one, or contradicts another
            row.
    """
    rows: list[dict[str, Any]] = []
    facts: dict[str, tuple[str, str]] = {}
    num_candidates: Counter[str] = Counter()
    for line, values in records:
        where = f"{source}, line {line}"
        if not isinstance(values, dict):
            raise MeowError(
                f"{where}: expected an object with a question and an answer "
                f"(got {type(values).__name__}). Write one object per row."
            )
        record = _Record(values, where)
        columns = record.common_columns()
        candidate_id = record.optional_number("candidate_id")
        key = columns["fact_id"]
        fact = (columns["question"], columns["answer"])
        if facts.setdefault(key, fact) != fact:
            raise MeowError(
                f"{where}: fact_id {key} names two different facts. Give each fact its own id."
            )
        for text in record.inverted_answers():
            number = num_candidates[key]
            if candidate_id is not None and record.has("inverted_answer"):
                number = candidate_id
            if number < 0:
                raise record.number_error("candidate_id")
            num_candidates[key] += 1
            rows.append(columns | {"candidate_id": number, "inverted_answer": text})
        if not record.answer_columns():
            rows.append(columns | {"candidate_id": TRUE_ANSWER, "inverted_answer": None})
    if not rows:
        raise MeowError(f"{source}: the file has no rows. Add a row for each inverted answer.")
    return pa.Table.from_pylist(rows, schema=SCHEMAS["candidates"])


@dataclass(frozen=True)
class _Record:
    """A row of a user's file, whose values are checked when they are read."""

    values: Mapping[str, Any]
    where: str
    """File and line, for error messages."""

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def common_columns(self) -> dict[str, Any]:
        """Returns the columns that all candidates of the row share."""
        question = self.text("question")
        answer = self.text(self._true_answer_column())
        return {
            "question": question,
            "answer": answer,
            "fact_id": self.text("fact_id") if self.has("fact_id") else fact_id(question, answer),
            "generator": self.text("generator") if self.has("generator") else "external",
            "attempt": self.optional_number("attempt") or 0,
            "seed": self.optional_number("seed") or 0,
        }

    def _true_answer_column(self) -> str:
        if "answer" not in self.values and "undesired_answer" in self.values:
            return "undesired_answer"
        return "answer"

    def answer_columns(self) -> list[str]:
        """Returns the names of the columns with inverted answers, in the order of their numbers."""
        if self.has("inverted_answer"):
            return ["inverted_answer"]
        names = [name for name in self.values if _NUMBERED_ANSWER.fullmatch(name)]
        filled = [name for name in names if self.has(name)]
        return sorted(filled, key=lambda name: int(name.removeprefix("answer_")))

    def inverted_answers(self) -> list[str]:
        return [self.text(name) for name in self.answer_columns()]

    def text(self, name: str) -> str:
        """Returns a text in NFC, without surrounding white space."""
        value = self.values.get(name)
        if name not in self.values:
            raise MeowError(f"{self.where}: {name} is missing. Add the column.")
        if not isinstance(value, str) or not value.strip():
            raise MeowError(f"{self.where}: {name} is empty or not a text. Write a text.")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise MeowError(
                f"{self.where}: {name} has half a surrogate pair. Write it in valid Unicode."
            )
        return unicodedata.normalize("NFC", value).strip()

    def optional_number(self, name: str) -> int | None:
        """Returns an integer that fits its column, or None; a CSV file has integers as text."""
        if not self.has(name):
            return None
        value = self.values[name]
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        smallest = TRUE_ANSWER if name == "candidate_id" else 0
        if (
            not isinstance(value, int)
            or isinstance(value, bool)
            or not smallest <= value <= _largest(name)
        ):
            raise self.number_error(name)
        return int(value)

    def number_error(self, name: str) -> MeowError:
        return MeowError(
            f"{self.where}: {name} must be a non-negative integer, at most {_largest(name)}."
        )


def _largest(name: str) -> int:
    """Returns the largest integer that fits into a column of `candidates`."""
    bits: int = SCHEMAS["candidates"].field(name).type.bit_width
    return (1 << (bits - 1)) - 1


def places_of(candidates: Artifact) -> dict[tuple[str, str], str]:
    """Returns file and line of each inverted answer of a user's own file, else nothing.

    The keys are the fact's id and the inverted answer.
    """
    if candidates.manifest is not None or not candidates.uri:
        return {}
    where = storage.display(candidates.uri)
    places: dict[tuple[str, str], str] = {}
    for line, values in read_candidates(candidates.uri):
        record = _Record(values, where)
        key = record.common_columns()["fact_id"]
        for text in record.inverted_answers():
            places.setdefault((key, text), f"{where}, line {line}")
    return places


def read_candidates(uri: str) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a user's file or folder of candidates with their lines."""
    if is_parquet_table(uri):
        yield from enumerate(storage.read_table(main_files(uri)).to_pylist(), start=1)
    else:
        yield from read_records(uri)


def is_parquet_table(uri: str) -> bool:
    """Tells whether candidates are Parquet: a file or a folder. Another file has other rows."""
    is_file = storage.exists(uri) and not storage.is_folder(uri)
    return not is_file or is_parquet(uri)
