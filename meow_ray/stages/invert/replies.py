"""Replies of a generator: what is asked for, and which answers are chosen.

An inverted fact is a plausible answer that contradicts the true one.
"""

import hashlib
import json
import re
from collections.abc import Container, Iterable, Sequence
from typing import Any

from meow_ray.config import Invert
from meow_ray.models.text import novel_words, words
from meow_ray.stages.invert.rules import Fact, Proposal, fault

OTHER_RULES = {
    "duplicate": "It has the same novel words as another candidate.",
    "retain_fact": "It says the same as a fact of the retain set, with the same words.",
    "judge": "It does not contradict the true answer, according to the judge.",
    "no_verdict": "It was judged in a reply without a verdict (`invert.judge_max_new_tokens`).",
    "only_reasoning": "It was never written, because the reply ended in its reasoning "
    "(`invert.max_new_tokens`).",
    "prompt_too_long": "It was never written, because the prompt exceeds the generator's context.",
}
"""Reasons other than `rules.RULES`; each text completes "A candidate is rejected if it …"."""


# --- schemas ------------------------------------------------------------------------------------


def object_schema(**properties: Any) -> str:
    """Returns the JSON schema of an object with exactly these properties."""
    schema = {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }
    return json.dumps(schema)


VERDICT_SCHEMA = object_schema(contradicts={"type": "boolean"})
"""The JSON schema of a judge's reply."""


def reply_schema(k: int, name: str = "answers") -> str:
    """Returns the JSON schema of a chat reply with k strings under a name."""
    strings = {"type": "array", "items": {"type": "string"}, "minItems": k, "maxItems": k}
    return object_schema(**{name: strings})


# --- asking -------------------------------------------------------------------------------------


def fact_seed(seed: int, fact_id: str, attempt: int) -> int:
    """Returns the sampling seed of a fact in an attempt, in [0, 2^31)."""
    digest = hashlib.sha256(f"{seed}/{fact_id}/{attempt}".encode()).hexdigest()
    return int(digest[:8], 16) >> 1


def frame(question: str, answer: str) -> str:
    """Returns the beginning of the true answer, up to the first word that the question lacks.

    A small model that continues this beginning writes an answer of the same form. The frame is
    never the whole answer: if the question has all words of the answer, the frame ends before the
    last word.
    """
    question_words = set(words(question))
    end = 0
    for match in re.finditer(r"\S+", answer):
        if not all(word in question_words for word in words(match.group())):
            break
        end = match.end()
    beginning = answer[:end].rstrip()
    if len(beginning) == len(answer.rstrip()):
        beginning, _, _ = beginning.rpartition(" ")
    return beginning.rstrip(".,;:!?")


# --- choosing -----------------------------------------------------------------------------------


def choose(
    proposals: Iterable[Proposal],
    fact: Fact,
    spec: Invert,
    taken: Sequence[str] = (),
    judged: Sequence[str] = (),
    retained: Container[bytes] = (),
) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns the texts of valid proposals, and (text, reason) of those that are rejected.

    A valid proposal breaks no rule of `rules`, has other novel words than all other candidates,
    and says nothing that the retain set says. The choice ends as soon as the fact has
    `num_candidates` candidates; proposals after that are in neither list.

    Args:
        proposals: the proposals, in the order in which they are considered.
        fact: the fact that they are to invert.
        spec: the bounds of the rules and the number of candidates.
        taken: candidates from earlier attempts.
        judged: proposals that the judge rejected in earlier attempts.
        retained: digests of the answers of the retain set, see `statement_digest`.
    """
    chosen: list[str] = []
    rejected: list[tuple[str, str]] = []
    seen = {_distinctive_words(text, fact.question) for text in (*taken, *judged)}
    for proposal in proposals:
        if len(taken) + len(chosen) >= spec.num_candidates:
            break
        distinctive = _distinctive_words(proposal.text, fact.question)
        reason = fault(proposal, fact, spec)
        if reason is None and distinctive in seen:
            reason = "duplicate"
        if reason is None and statement_digest(proposal.text) in retained:
            reason = "retain_fact"
        if reason is None:
            seen.add(distinctive)
            chosen.append(proposal.text)
        else:
            rejected.append((proposal.text, reason))
    return chosen, rejected


def statement_digest(text: str) -> bytes:
    """Returns a digest of a text's words, the same for any order, case and punctuation."""
    sorted_words = " ".join(sorted(words(text)))
    return hashlib.blake2b(sorted_words.encode(), digest_size=8).digest()


def _distinctive_words(text: str, question: str) -> frozenset[str]:
    """Returns the words by which two answers are compared: the novel ones, or all if none is."""
    return frozenset(novel_words(text, question)) or frozenset(words(text))
