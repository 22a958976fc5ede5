"""Bounds of MEMO from the beginnings of continuations, and what a selection needs beyond them.

A beginning already contains words that match the rest of the answer, and words that do not. Of the
words that may follow, at best each one matches until all of the rest is matched; at worst none
does, and there are as many as possible. This bounds ROUGE for every possible continuation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from meow_ray.config import Memo
from meow_ray.errors import MeowError
from meow_ray.models.text import most_rouge_tokens, rouge, rouge_tokens, settled

ROUNDING = 1e-12
"""More than the arithmetic of a score can be off, so that bounds hold in floating point, too."""


class Beginning(NamedTuple):
    """What is known of the continuation of a window."""

    text: str
    most_words: int
    """The largest number of words that may follow; 0 if the text is the whole continuation."""


class Bounds(NamedTuple):
    """The smallest and the largest MEMO that an answer can have."""

    low: float
    high: float
    is_exact: bool
    """Whether all continuations are known, so that both are MEMO itself."""


# --- bounds of a score --------------------------------------------------------------------------


def memo_bounds(labels: Sequence[str], beginnings: Sequence[Beginning], spec: Memo) -> Bounds:
    """Returns bounds of the mean score over the windows of an answer.

    Args:
        labels: `[window]`, what a continuation is compared with; at least one.
        beginnings: `[window]`, what is known of the continuations.
        spec: ROUGE variant and statistic.
    """
    ranges = window_bounds(labels, beginnings, spec)
    low = fmean(low for low, _ in ranges)
    high = fmean(high for _, high in ranges)
    if not any(beginning.most_words for beginning in beginnings):
        return Bounds(low, high, is_exact=True)
    return Bounds(max(0.0, low - ROUNDING), min(1.0, high + ROUNDING), is_exact=False)


def window_bounds(
    labels: Sequence[str], beginnings: Sequence[Beginning], spec: Memo
) -> list[tuple[float, float]]:
    """Returns the smallest and the largest score of each window."""
    parts = [
        settled(beginning.text) if beginning.most_words else (beginning.text, "")
        for beginning in beginnings
    ]
    results = rouge(labels, [settled_text for settled_text, _ in parts])
    ranges = []
    for label, beginning, (settled_text, rest), result in zip(
        labels, beginnings, parts, results, strict=True
    ):
        score = result[spec.rouge]
        if not beginning.most_words:
            value = float(getattr(score, spec.statistic))
            ranges.append((value, value))
            continue
        num_words = len(rouge_tokens(settled_text))
        wanted = _units(len(rouge_tokens(label)), spec)
        further = num_words + most_rouge_tokens(rest) + beginning.most_words
        known = _units(num_words, spec)
        counts = Counts(
            matched=round(score.recall * wanted),
            known=known,
            wanted=wanted,
            further=_units(further, spec) - known,
        )
        ranges.append(score_range(counts, spec.statistic))
    return ranges


@dataclass(frozen=True)
class Counts:
    """Numbers of words (of ROUGE-2, pairs of neighbouring words)."""

    matched: int
    """Known ones that match the label."""
    known: int
    wanted: int
    """Those of the label."""
    further: int
    """The largest number that may follow."""


def score_range(
    counts: Counts, statistic: Literal["precision", "recall", "f1"]
) -> tuple[float, float]:
    """Returns the smallest and the largest score that further words can lead to."""
    if not counts.wanted:
        return 0.0, 0.0
    best = min(counts.further, counts.wanted - counts.matched)
    low = _score(counts.matched, counts.known + counts.further, counts.wanted, statistic)
    high = _score(counts.matched + best, counts.known + best, counts.wanted, statistic)
    return low, high


def _score(
    matched: int, said: int, wanted: int, statistic: Literal["precision", "recall", "f1"]
) -> float:
    if not matched:
        return 0.0
    if statistic == "precision":
        return matched / said
    if statistic == "recall":
        return matched / wanted
    return 2 * matched / (said + wanted)


def _units(num_words: int, spec: Memo) -> int:
    """Returns the number of units that ROUGE counts in a text of so many words."""
    return max(0, num_words - 1) if spec.rouge == "rouge2" else num_words


# --- what a selection needs ---------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """How `select` chooses by MEMO."""

    top_k: int
    order: Literal["largest", "smallest"]


def undecided(candidates: Sequence[Bounds | None], choice: Choice) -> list[int]:
    """Returns the candidates of a fact whose scores the selection needs; none if it is decided.

    The candidates are ranked as if each had the best score that it can have. The selection is
    decided if the scores of the first `top_k` are exact: all others are worse, whatever their
    scores are. Otherwise, each of the first `top_k` without an exact score can still be selected
    in front of all others, so no selection can do without knowing more about it.

    Args:
        candidates: bounds by candidate, in the order in which `select` ranks equal scores; None for
            a candidate without a window, which is never selected.
        choice: number and order.
    """

    def best_first(item: tuple[int, Bounds]) -> tuple[float, int]:
        index, bounds = item
        return (-bounds.high if choice.order == "largest" else bounds.low, index)

    scored = [(index, bounds) for index, bounds in enumerate(candidates) if bounds is not None]
    first = sorted(scored, key=best_first)[: choice.top_k]
    return [index for index, bounds in first if not bounds.is_exact]


Place = tuple[int, int]
"""A fact and a candidate, as indices."""


def decide(
    facts: Sequence[list[Bounds | None]],
    narrow: Callable[[list[Place]], Sequence[Bounds]],
    choice: Choice,
) -> None:
    """Narrows bounds until the selection of each fact is decided; changes the lists in `facts`.

    Args:
        facts: bounds by fact and candidate; see `undecided`.
        narrow: learns more about some candidates, of several facts at once, and returns their
            bounds. It must make progress until they are exact.
        choice: number and order.

    Raises:
        MeowError: new bounds contradict earlier ones.
    """
    while places := [
        (fact, index)
        for fact, candidates in enumerate(facts)
        for index in undecided(candidates, choice)
    ]:
        for (fact, index), bounds in zip(places, narrow(places), strict=True):
            facts[fact][index] = _narrowed(facts[fact][index], bounds)


def _narrowed(earlier: Bounds | None, later: Bounds) -> Bounds:
    assert earlier is not None, "a candidate without a window is never undecided"
    low, high = max(earlier.low, later.low), min(earlier.high, later.high)
    if low > high:
        raise MeowError(
            "`memo.exact`: the target's tokenizer decodes the beginning of a text to other words "
            "than the whole, so the bounds of MEMO do not hold. Set memo.exact=all."
        )
    return later if later.is_exact else Bounds(low, high, is_exact=False)
