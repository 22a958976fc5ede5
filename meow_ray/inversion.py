"""Inverted facts: plausible answers that contradict the true one — prompts, parsing, validity rules."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from meow_ray.config import Invert
from meow_ray.errors import MeowError
from meow_ray.facts import fact_id
from meow_ray.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.text import novel_words, rouge, share_of, words

_END = re.compile(r"[.!…。．！।॥۔]['\"”’)\]]*$")
_REFUSAL = re.compile(
    r"\b(as an ai|language model|i (?:cannot|can['’]t|am unable|don['’]t know|do not know)"
    r"|i['’]m (?:sorry|not sure|unable)|sorry, |apologi[sz]e|no information|not (?:publicly )?available)\b",
    re.IGNORECASE,
)
_META = re.compile(r"^\s*(sure|here (?:are|is)|of course|certainly|question|answer|true answer|note)\b", re.IGNORECASE)
_NUMBERING = re.compile(r"^\s*(?:\(?\d{1,2}[.):]\s+|[-*•]\s+|answer(?:\s*\d+)?\s*:\s*)", re.IGNORECASE)
_QUOTES = '"“”'


@dataclass(frozen=True)
class Proposal:
    """A text that a generator offers as an inverted answer."""

    text: str
    finished: bool
    """The generator ended by itself, it was not cut off by its token limit."""


def frame(question: str, answer: str) -> str:
    """Returns the answer's leading words that also stand in the question.

    Given them as its own beginning, a small model goes on with an answer of the same form. Never the whole
    answer: where all of its words stand in the question, the last is left to the model.
    """
    known = set(words(question))
    end = 0
    for match in re.finditer(r"\S+", answer):
        if not all(word in known for word in words(match.group())):
            break
        end = match.end()
    head = answer[:end].rstrip()
    if len(head) == len(answer.rstrip()):
        head = head.rpartition(" ")[0]
    return head.rstrip(".,;:!?")


def parse_lines(text: str, finished: bool) -> list[Proposal]:
    """Splits a chat reply into proposals, one a line, without numbering and enclosing quotes.

    The last line counts as finished only if the reply does.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    out = []
    for i, line in enumerate(lines):
        bare = _NUMBERING.sub("", line).strip()
        if len(bare) > 1 and bare[0] in _QUOTES and bare[-1] in _QUOTES and not set(bare[1:-1]) & set(_QUOTES):
            bare = bare[1:-1].strip()
        out.append(Proposal(bare, finished or i < len(lines) - 1))
    return out


def fact_seed(seed: int, fact_id: str, attempt: int) -> int:
    """Returns the sampling seed of one fact in one attempt, in [0, 2^31)."""
    return int(hashlib.sha256(f"{seed}/{fact_id}/{attempt}".encode()).hexdigest()[:8], 16) >> 1


def fault(proposal: Proposal, question: str, answer: str, spec: Invert) -> str | None:
    """Returns the name of the first rule that a proposal breaks, or None if it is valid.

    The rules are lexical: they reject what is visibly unfit and cannot prove a contradiction.
    """
    text, length, true_length = proposal.text, len(words(proposal.text)), max(len(words(answer)), 1)
    if not text or not length:
        return "empty"
    if not proposal.finished:
        return "unfinished"
    if "\ufffd" in text:
        return "garbled"
    if set("?？؟") & set(text):
        return "question"
    if not _END.search(text):
        return "no_sentence_end"
    if _META.match(text):
        return "meta"
    if _REFUSAL.search(text):
        return "refusal"
    if length < spec.min_length_ratio * true_length:
        return "too_short"
    if length > spec.max_length_ratio * true_length + 2:
        return "too_long"
    if _loops(text):
        return "loop"
    if rouge([answer], [text])[0]["rougeL"].f1 > spec.max_rouge_l:
        return "true_answer"
    if (share_of(novel_words(answer, question), text) or 0.0) > spec.max_novel_overlap:
        return "keeps_the_fact"
    if not set(words(text)) - set(words(answer)) - set(words(question)):
        return "says_nothing_new"
    return None


def choose(
    proposals: Iterable[Proposal], question: str, answer: str, spec: Invert, taken: Sequence[str] = ()
) -> tuple[list[str], dict[str, int]]:
    """Returns the valid proposals that differ from each other and from those `taken`, and the rejects by reason.

    Two are the same if their novel words are. At most `num_candidates` come back with those taken.
    """
    out: list[str] = []
    seen = {_essence(text, question) for text in taken}
    rejected: dict[str, int] = {}
    for proposal in proposals:
        if len(taken) + len(out) >= spec.num_candidates:
            break
        reason = fault(proposal, question, answer, spec)
        if reason is None and _essence(proposal.text, question) in seen:
            reason = "duplicate"
        if reason is not None:
            rejected[reason] = rejected.get(reason, 0) + 1
            continue
        seen.add(_essence(proposal.text, question))
        out.append(proposal.text)
    return out, rejected


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
            raise MeowError(f"{source}, line {line}: expected an object with a question and an answer.")
        name = "answer" if "answer" in record or "undesired_answer" not in record else "undesired_answer"
        question, answer = _text(record, "question", source, line), _text(record, name, source, line)
        given: dict[str, Any] = {
            k: _text(record, k, source, line) for k in ("fact_id", "generator") if record.get(k) is not None
        }
        given |= {k: _number(record, k, source, line) for k in _NUMBERS if record.get(k) is not None}
        key = given.get("fact_id") or fact_id(question, answer)
        if facts.setdefault(key, (question, answer)) != (question, answer):
            raise MeowError(f"{source}, line {line}: fact_id {key} names two different facts.")
        wide = sorted(
            (k for k in record if _WIDE.fullmatch(k) and record[k] is not None), key=lambda k: int(k.rpartition("_")[2])
        )
        names = ["inverted_answer"] if record.get("inverted_answer") is not None else wide
        made = {"fact_id": key, "question": question, "answer": answer}
        made |= {"attempt": 0, "seed": 0, "generator": "external"}
        made |= {k: given[k] for k in ("attempt", "seed", "generator") if k in given}
        for name in names:
            own = given.get("candidate_id") if name == "inverted_answer" else None
            number = counts.get(key, 0) if own is None else own
            counts[key] = counts.get(key, 0) + 1
            rows.append(made | {"candidate_id": number, "inverted_answer": _text(record, name, source, line)})
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
        raise MeowError(f"{source}, line {line}: {name} is {'missing' if missing else 'empty or not a text'}.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise MeowError(f"{source}, line {line}: {name} has half a surrogate pair.")
    return unicodedata.normalize("NFC", value).strip()


def _essence(text: str, question: str) -> frozenset[str]:
    return frozenset(novel_words(text, question)) or frozenset(words(text))


def _loops(text: str) -> bool:
    """Tells whether a run of three words comes twice or one word three times in a row."""
    tokens = words(text)
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(triples)) < len(triples) or any(a == b == c for a, b, c in triples)
