"""Makes twins: inverted facts about entities that do not exist, in two halves that share nothing.

What the target does on a twin shows what it does on a fact that it never saw. Such proxies bound
what unlearning should reach, as in EGUP (arXiv 2508.20443).
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from meow_ray.config import Twins
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.containment import contains_fact
from meow_ray.stages.neighbours.swapping import swap

HALVES = ("calibration", "stop")
"""The half for the floor of the loss, and the half that decides when to stop."""
ATTEMPTS = 3
"""Twins to try for each one that is wanted."""


@dataclass(frozen=True)
class FactWithCandidates:
    """A fact to forget with its inverted answers."""

    fact_id: str
    fact: Fact
    candidates: Sequence[tuple[int, str]]
    """`candidate_id` and inverted answer, in order."""

    def of_half(self, half: str) -> list[str]:
        """Returns the inverted answers for a half: those with even ids calibrate."""
        return [text for number, text in self.candidates if HALVES[number % 2] == half]


@dataclass
class Twinned:
    """The rows of the two tables."""

    twins: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)


def half_of_entity(text: str) -> str:
    """Returns the half in which an invented text may stand; a hash decides."""
    return HALVES[hashlib.sha256(text.casefold().encode()).digest()[0] % 2]


def twins_per_half(facts: Sequence[FactWithCandidates], spec: Twins) -> int:
    """Returns how many twins each fact needs in a half, so that there are `minimum` in total.

    Facts of which no twin can be made do not count.
    """
    usable = [fact for fact in facts if fact.candidates]
    if len(usable) * spec.per_fact < spec.minimum:
        usable = [fact for fact in usable if _has_entity(fact)]
    return wanted_per_half(len(usable), spec)


def wanted_per_half(num_usable: int, spec: Twins) -> int:
    """Returns the number of twins of a fact in each half, if some facts can have twins."""
    wanted = max(spec.per_fact, ceil(spec.minimum / max(1, num_usable)))
    return ceil(wanted / len(HALVES))


def _has_entity(fact: FactWithCandidates) -> bool:
    rng = random.Random(fact.fact_id)  # noqa: S311 - not for secrets
    return any(swap(fact.fact.question, text, rng) for _, text in fact.candidates)


def make_twins(facts: Iterable[FactWithCandidates], per_half: int, spec: Twins) -> Twinned:
    """Returns the twins of facts, in the order of the facts.

    Args:
        facts: all facts to forget.
        per_half: the number of twins of a fact in each half.
        spec: the overlap that is allowed, and the seed.
    """
    facts = list(facts)
    making = _Making(spec, {fact.fact.question for fact in facts})
    for fact in facts:
        making.add(fact, per_half)
    return making.made


@dataclass
class _Making:
    """The twins so far, and the texts that no other twin may have."""

    spec: Twins
    questions: set[str]
    """The forget questions, and those of the twins."""
    made: Twinned = field(default_factory=Twinned)
    half_of_answer: dict[str, str] = field(default_factory=dict)

    def add(self, fact: FactWithCandidates, per_half: int) -> None:
        """Adds the twins of a fact."""
        twins: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for half in HALVES:
            wanted = len(twins) + per_half
            answers = fact.of_half(half)
            for attempt in range(ATTEMPTS * per_half):
                if not answers or len(twins) == wanted:
                    break
                answer = answers[attempt % len(answers)]
                row, reason = self._twin(fact, half, attempt, answer)
                if reason == "no_entity":
                    answers.remove(answer)  # no other seed would find one
                if reason is None:
                    twins.append({"twin_id": len(twins), "half": half, **row})
                else:
                    rejects.append({"number": len(rejects), "reason": reason, **row})
        self.made.twins += [{"fact_id": fact.fact_id, **row} for row in twins]
        self.made.rejects += [{"fact_id": fact.fact_id, **row} for row in rejects]

    def _twin(
        self, fact: FactWithCandidates, half: str, attempt: int, answer: str
    ) -> tuple[dict[str, str], str | None]:
        """Returns question and answer of a twin, and why it is rejected or None."""
        rng = random.Random(  # noqa: S311 - not for secrets
            f"{self.spec.seed}/{fact.fact_id}/{half}/{attempt}"
        )
        swapped = swap(fact.fact.question, answer, rng, _accept(half))
        if swapped is None:
            return {"question": fact.fact.question, "answer": answer}, "no_entity"
        row = {"question": swapped.question, "answer": swapped.answer}
        text = f"{swapped.question}\n{swapped.answer}"
        if contains_fact(text, fact.fact, self.spec.max_overlap):
            return row, "contains_fact"
        is_of_other_half = self.half_of_answer.get(swapped.answer, half) != half
        if swapped.question in self.questions or is_of_other_half:
            return row, "duplicate"
        self.questions.add(swapped.question)
        self.half_of_answer[swapped.answer] = half
        return row, None


def _accept(half: str) -> Callable[[str], bool]:
    return lambda text: half_of_entity(text) == half
