"""Inverted facts: plausible answers that contradict the true one — what is asked for, and what is taken of a reply."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from typing import Any

from meow_ray.config import Invert
from meow_ray.models.text import novel_words, words
from meow_ray.stages.invert.rules import Fact, Proposal, fault

_NUMBERING = re.compile(
    r"^\s*(?:\(?\d{1,2}[.):]\s+|[-*•]\s+|answer(?:\s*\d+)?\s*:\s*)", re.IGNORECASE
)
_QUOTES = '"“”'
_SENTENCE_END = re.compile(
    r"(?<!\b[A-Z])(?<!\b(?:Dr|Mr|Ms|St|Jr))(?<!\bMrs)[.!?]['\"”’)]*(?=\s+[A-Z'\"“‘(]|\s*$)|[。！？।۔]"
)
_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)("|$)', re.DOTALL)


def reply_schema(k: int) -> str:
    """Returns the JSON schema of a chat reply with k answers."""
    answers = {"type": "array", "items": {"type": "string"}, "minItems": k, "maxItems": k}
    return _object(answers=answers)


def _object(**properties: Any) -> str:
    whole = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return json.dumps(whole)


OTHER_RULES = {
    "duplicate": "Its novel words are those of another candidate.",
    "retain_fact": "A fact to keep says the same with the same words.",
    "judge": "The judge does not find that it contradicts the true answer.",
    "prompt_too_long": "The generator's context is too short to be asked.",
}
"""Why else a proposal is refused, beside `rules.RULES`."""

VERDICT_SCHEMA = _object(contradicts={"type": "boolean"})
"""The JSON schema of a judge's reply."""


def parse_verdict(text: str) -> bool:
    """Tells whether a judge's reply says, in JSON, that a candidate contradicts the true answer."""
    return re.search(r'"contradicts"\s*:\s*true', text, re.IGNORECASE) is not None


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


def parse_reply(text: str, finished: bool) -> list[Proposal]:
    """Returns the proposals of a chat reply: the strings of its JSON array, or its lines if it has none.

    What was cut off is not finished: the last line, or a string without its closing quote.
    """
    array = text[text.find("[") + 1 :] if "[" in text else ""
    if not array.lstrip().startswith(('"', "]")):
        return _parse_lines(text, finished)
    out = []
    for content, end in _JSON_STRING.findall(array):
        try:
            out.append(Proposal(_bare(json.loads(f'"{content}"', strict=False)), bool(end)))
        except json.JSONDecodeError:
            out.append(Proposal(_bare(content), False))
    return out


def _parse_lines(text: str, finished: bool) -> list[Proposal]:
    lines = [line for line in text.splitlines() if line.strip()]
    return [Proposal(_bare(line), finished or i < len(lines) - 1) for i, line in enumerate(lines)]


def _bare(text: str) -> str:
    """Returns an answer without its number in a list and without quotes around the whole."""
    bare = _NUMBERING.sub("", text).strip()
    if (
        len(bare) > 1
        and bare[0] in _QUOTES
        and bare[-1] in _QUOTES
        and not set(bare[1:-1]) & set(_QUOTES)
    ):
        bare = bare[1:-1].strip()
    return unicodedata.normalize("NFC", bare)


def as_long(text: str, answer: str, finished: bool) -> Proposal:
    """Returns a continuation up to as many sentences as the true answer has; small models do not know where to end."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    wanted = max(1, len(_SENTENCE_END.findall(answer)))
    if len(ends) > wanted or (len(ends) == wanted and not finished):
        return Proposal(text[: ends[wanted - 1]].strip(), True)
    return Proposal(text.strip(), finished)


def fact_seed(seed: int, fact_id: str, attempt: int) -> int:
    """Returns the sampling seed of one fact in one attempt, in [0, 2^31)."""
    return int(hashlib.sha256(f"{seed}/{fact_id}/{attempt}".encode()).hexdigest()[:8], 16) >> 1


def choose(
    proposals: Iterable[Proposal],
    fact: Fact,
    spec: Invert,
    taken: Sequence[str] = (),
    judged: Sequence[str] = (),
    retained: Container[bytes] = (),
) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the valid proposals, and those that are not, each with the rule that it breaks.

    Beside the rules of `rules`, a proposal must differ from the others, those `taken` and those `judged` unfit
    (two are the same if their novel words are), and must not be the `statement` of a retained fact. At most
    `num_candidates` come back with those taken; what is left over then is in neither list.
    """
    out: list[str] = []
    seen = {_essence(text, fact.question) for text in (*taken, *judged)}
    rejected: list[tuple[str, str]] = []
    for proposal in proposals:
        if len(taken) + len(out) >= spec.num_candidates:
            break
        reason, essence = fault(proposal, fact, spec), _essence(proposal.text, fact.question)
        if reason is None and essence in seen:
            reason = "duplicate"
        if reason is None and statement(proposal.text) in retained:
            reason = "retain_fact"
        if reason is not None:
            rejected.append((proposal.text, reason))
            continue
        seen.add(essence)
        out.append(proposal.text)
    return out, rejected


def statement(text: str) -> bytes:
    """Returns what two answers share that say the same with the same words, whatever their order and punctuation."""
    return hashlib.blake2b(" ".join(sorted(words(text))).encode(), digest_size=8).digest()


def _essence(text: str, question: str) -> frozenset[str]:
    return frozenset(novel_words(text, question)) or frozenset(words(text))
