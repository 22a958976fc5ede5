"""The scores that MEMO is compared with: MA, ES and EL."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.memo.score import (
    extraction_likelihood,
    extraction_strength,
    memorization_accuracy,
)

GREEDY = [
    ("", None, None),
    ("1", 1.0, 1.0),
    ("0", 0.0, 0.0),
    ("1111", 1.0, 1.0),
    ("0000", 0.0, 0.0),
    ("1110", 3 / 4, 0.0),
    ("0111", 3 / 4, 3 / 4),
    ("1101", 3 / 4, 1 / 4),
    ("01101", 3 / 5, 1 / 5),
    ("10011", 3 / 5, 2 / 5),
]
"""Which tokens are greedy, MA and ES."""


@pytest.mark.parametrize(("greedy", "accuracy", "strength"), GREEDY)
def test_accuracy_counts_all_greedy_tokens_and_strength_those_at_the_end(
    greedy: str, accuracy: float | None, strength: float | None
):
    is_greedy = [mark == "1" for mark in greedy]
    assert memorization_accuracy(is_greedy) == accuracy
    assert extraction_strength(is_greedy) == strength


@given(st.lists(st.booleans(), min_size=1))
def test_strength_is_the_share_of_the_longest_greedy_suffix(greedy: list[bool]):
    least = min(k for k in range(len(greedy) + 1) if all(greedy[k:]))
    assert extraction_strength(greedy) == pytest.approx(1 - least / len(greedy))


@pytest.mark.parametrize(
    ("labels", "continuations", "n", "expected"),
    [
        pytest.param([[1, 2, 3, 4]], [[1, 2, 3, 4]], 2, 1.0, id="all"),
        pytest.param([[1, 2, 3, 4]], [[1, 2, 9, 3]], 2, 1 / 3, id="one of three"),
        pytest.param([[1, 2, 3, 4]], [[3, 4, 1, 2]], 2, 2 / 3, id="anywhere in the label"),
        pytest.param([[1, 2, 3]], [[1, 1, 9]], 1, 2 / 3, id="each repetition counts"),
        pytest.param([[1, 2, 3, 4]], [[1, 2, 3, 4]], 4, 1.0, id="n is the length"),
        pytest.param([[1, 2, 3, 4]], [[1, 2, 3, 4]], 5, None, id="n exceeds the length"),
        pytest.param([[1, 2, 3]], [[1, 2, 3, 9, 9, 9]], 2, 1.0, id="longer than the label"),
        pytest.param([[1, 2]], [[9, 9, 1, 2]], 2, 0.0, id="only after the label's length"),
        pytest.param([[1, 2, 3, 4]], [[1, 2]], 2, 1.0, id="shorter than the label"),
        pytest.param([[1, 2, 3, 4]], [[1]], 2, 0.0, id="shorter than n"),
        pytest.param([[1, 2, 3, 4]], [[]], 2, 0.0, id="empty continuation"),
        pytest.param(
            [[1, 2, 3], [2, 3], [3]],
            [[1, 2, 3], [9, 9], [3]],
            2,
            1 / 2,
            id="mean without a short label",
        ),
        pytest.param([[1, 2, 3], [3]], [[9, 9, 9], [3]], 3, 0.0, id="a short label that matches"),
        pytest.param([[3], []], [[3], []], 2, None, id="only short labels"),
        pytest.param([], [], 2, None, id="no window"),
    ],
)
def test_extraction_likelihood_by_hand(
    labels: list[list[int]], continuations: list[list[int]], n: int, expected: float | None
):
    likelihood = extraction_likelihood(labels, continuations, n)
    assert likelihood == (None if expected is None else pytest.approx(expected))
