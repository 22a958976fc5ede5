"""Bounds of MEMO hold for every continuation, and a selection under bounds is the full one."""

import unicodedata
from functools import cache
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Memo, Select
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.errors import MeowError
from meow_ray.models.text import most_rouge_tokens, rouge, rouge_tokens, settled
from meow_ray.stages.memo.bounds import (
    Beginning,
    Bounds,
    Choice,
    Counts,
    Place,
    decide,
    memo_bounds,
    score_range,
    undecided,
    window_bounds,
)
from meow_ray.stages.memo.contest import most_words_of_a_token
from meow_ray.stages.select.selection import select
from tests.support.memo import tokenizer_of_words
from tests.support.tiny import byte_tokenizer

VARIANTS = st.builds(
    Memo,
    rouge=st.sampled_from(["rouge1", "rouge2", "rougeL"]),
    statistic=st.sampled_from(["precision", "recall", "f1"]),
)
PIECES = st.sampled_from(
    [
        *(
            "run",
            "ning",
            " run",
            " ca",
            " n't",
            "n",
            "'t",
            "'",
            "’s",
            " Ann",
            " is",
            " Émile",
            "\u0301",
        ),
        *(
            "e",
            " ",
            ", ",
            ".",
            "_",
            "-",
            "中",
            "文",
            "Łódź",
            "ź",
            "7",
            " 19",
            "54",
            "🙂",
            "👍🏽",
            "\u200d",
        ),
        *("K", "İ", "ﷺ", "한", "ᄒ", "ᅡ", "𝅗𝅥", "\ufffd"),
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


@cache
def tokenizers() -> tuple[Any, ...]:
    """Returns a tokenizer of words and their pieces, and one of bytes."""
    return tokenizer_of_words(), byte_tokenizer()


# --- words of a beginning -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("", "")),
        ("Paris", ("", "Paris")),
        ("Paris is", ("", "Paris is")),
        ("Paris is the", ("Paris is", " the")),
        ("Paris is the ", ("Paris is", " the ")),
        ("I can. And", ("I can", ". And")),
        ("he ca n'", ("he", " ca n'")),
        ("中文中文中文", ("中文", "中文中文")),
        ("🙂🙂🙂🙂🙂🙂", ("", "🙂🙂🙂🙂🙂🙂")),
    ],
)
def test_words_at_the_end_are_not_settled(text: str, expected: tuple[str, str]):
    assert settled(text) == expected


@given(TEXTS | st.text(max_size=20), TEXTS | st.text(max_size=20))
def test_settled_words_stay_whatever_follows(beginning: str, more: str):
    head, rest = settled(beginning)
    assert head + rest == unicodedata.normalize("NFC", beginning)
    words = rouge_tokens(head)
    whole = rouge_tokens(beginning + more)
    assert whole[: len(words)] == words
    assert len(whole) <= len(words) + most_rouge_tokens(rest) + most_rouge_tokens(more)


@given(st.lists(TEXTS | st.text(max_size=5), max_size=5))
def test_a_text_has_at_most_as_many_words_as_its_parts(parts: list[str]):
    assert len(rouge_tokens("".join(parts))) <= sum(map(most_rouge_tokens, parts))


# --- bounds of a score --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "statistic", "expected"),
    [
        (Counts(2, 4, 5, 6), "precision", (2 / 10, 5 / 7)),
        (Counts(2, 4, 5, 1), "precision", (2 / 5, 3 / 5)),
        (Counts(2, 4, 5, 6), "recall", (2 / 5, 1.0)),
        (Counts(2, 4, 5, 1), "recall", (2 / 5, 3 / 5)),
        (Counts(2, 4, 5, 6), "f1", (4 / 15, 10 / 12)),
        (Counts(0, 0, 5, 9), "precision", (0.0, 1.0)),
        (Counts(0, 9, 5, 0), "precision", (0.0, 0.0)),
        (Counts(0, 3, 0, 9), "precision", (0.0, 0.0)),
    ],
)
def test_ranges_by_hand(counts: Counts, statistic: Any, expected: tuple[float, float]):
    assert score_range(counts, statistic) == pytest.approx(expected)


@given(TEXTS, TEXTS, TEXTS, VARIANTS)
def test_the_true_score_is_within_its_bounds(label: str, beginning: str, more: str, spec: Memo):
    most = most_rouge_tokens(more)
    (result,) = rouge([label], [beginning + more])
    score = getattr(result[spec.rouge], spec.statistic)
    ((low, high),) = window_bounds([label], [Beginning(beginning, max(1, most))], spec)
    assert low - 1e-12 <= score <= high + 1e-12
    bounds = memo_bounds([label], [Beginning(beginning, max(1, most))], spec)
    assert bounds.low <= score <= bounds.high
    assert not bounds.is_exact


@given(
    st.integers(0, 1),
    TEXTS,
    st.lists(st.integers(0, 261), max_size=16),
    st.integers(0, 16),
    VARIANTS,
)
def test_bounds_hold_for_the_tokens_of_a_tokenizer(
    which: int, label: str, tokens: list[int], known: int, spec: Memo
):
    tokenizer = tokenizers()[which]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    beginning = tokenizer.decode(tokens[:known], skip_special_tokens=True)
    further = len(tokens[known:]) * most_words_of_a_token(tokenizer)
    (result,) = rouge([label], [whole])
    score = getattr(result[spec.rouge], spec.statistic)
    bounds = memo_bounds([label], [Beginning(beginning, further)], spec)
    assert bounds.low <= score <= bounds.high
    assert bounds.is_exact == (further == 0)
    if bounds.is_exact:
        assert bounds.low == bounds.high == score


def test_an_answer_whose_windows_are_known_is_exact():
    labels = ["born in Lima", "in Lima"]
    known = [Beginning("born in Peru", 0), Beginning("in Lima", 0)]
    bounds = memo_bounds(labels, known, Memo())
    assert bounds == Bounds(pytest.approx((2 / 3 + 1) / 2), bounds.low, True)
    open_window = [known[0], Beginning("in Lima, of course", 8)]
    low, high, is_exact = memo_bounds(labels, open_window, Memo())
    assert (low, high) == pytest.approx(((2 / 3 + 2 / 12) / 2, (2 / 3 + 2 / 3) / 2))
    assert not is_exact


# --- selection under bounds ---------------------------------------------------------------------

Scores = list[float | None]
VALUES = st.sampled_from([None, 0.0, 0.25, 0.5, 0.5, 1.0]) | st.floats(0, 1)


def selected(scores: Scores, spec: Select) -> list[dict[str, Any]]:
    """Returns the rows that `select` writes for one fact."""
    rows = [
        {"fact_id": "a", "candidate_id": i, "question": "a?", "text": str(i), "memo": value}
        for i, value in enumerate([0.5, *scores], start=TRUE_ANSWER)
    ]
    with select(pa.Table.from_pylist(rows, schema=SCHEMAS["memo"]), spec).batches() as reader:
        return list(reader.read_all().to_pylist())


class Oracle:
    """Narrows bounds in steps of its own, and counts the candidates that it is asked about."""

    def __init__(self, facts: list[Scores], steps: int) -> None:
        self.facts = facts
        self.steps = steps
        self.asked: dict[Place, int] = {}

    def first(self) -> list[list[Bounds | None]]:
        return [
            [None if score is None else Bounds(0.0, 1.0, False) for score in scores]
            for scores in self.facts
        ]

    def narrow(self, places: list[Place]) -> list[Bounds]:
        narrowed = []
        for fact, index in places:
            times = self.asked[fact, index] = self.asked.get((fact, index), 0) + 1
            score = self.facts[fact][index]
            assert score is not None
            left = 1 - times / self.steps
            low, high = score - left * score, score + left * (1 - score)
            narrowed.append(
                Bounds(low, high, False) if times < self.steps else Bounds(score, score, True)
            )
        return narrowed


@given(
    st.lists(st.lists(VALUES, max_size=6), max_size=3),
    st.integers(1, 4),
    st.sampled_from(["largest", "smallest"]),
    st.integers(1, 3),
)
def test_a_selection_under_bounds_is_the_full_selection(
    facts: list[Scores], top_k: int, order: Any, steps: int
):
    oracle = Oracle(facts, steps)
    bounds = oracle.first()
    decide(bounds, oracle.narrow, Choice(top_k, order))
    spec = Select(top_k=top_k, order=order)
    for scores, known in zip(facts, bounds, strict=True):
        exact: Scores = [b.low if b is not None and b.is_exact else None for b in known]
        assert selected(exact, spec) == selected(scores, spec)
        assert undecided(known, Choice(top_k, order)) == []


def test_only_candidates_that_can_be_selected_are_asked_about():
    scores: Scores = [0.9, 0.2, 0.8, 0.1, 0.3]
    oracle = Oracle([scores], steps=4)
    bounds = oracle.first()
    decide(bounds, oracle.narrow, Choice(2, "largest"))
    exact = [i for i, b in enumerate(bounds[0]) if b is not None and b.is_exact]
    assert exact == [0, 2]
    assert max(oracle.asked[0, i] for i in (1, 3, 4)) < 4


def test_equal_scores_need_the_lower_candidate_only():
    known = [Bounds(0.5, 0.5, True), Bounds(0.1, 0.5, False), Bounds(0.1, 0.6, False)]
    assert undecided(known[:2], Choice(1, "largest")) == []
    assert undecided(known, Choice(1, "largest")) == [2]
    assert undecided([known[1], known[0]], Choice(1, "largest")) == [0]


def test_bounds_that_contradict_each_other_are_an_error():
    bounds: list[list[Bounds | None]] = [[Bounds(0.0, 0.4, False)]]
    with pytest.raises(MeowError, match=r"^`memo\.exact`: .*Set memo\.exact=all\.$"):
        decide(bounds, lambda places: [Bounds(0.5, 0.5, True)], Choice(1, "largest"))
