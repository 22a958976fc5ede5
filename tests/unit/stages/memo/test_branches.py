"""Token windows: branches and the answer give the greedy continuation of each window."""

from collections.abc import Sequence
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Memo
from meow_ray.stages.memo.score import assemble, branches, token_cuts

END = None

CutSequence = tuple["HashModel", list[int], list[int], list[int]]
"""A model, a sequence of tokens, the positions of windows, and their limits."""


class HashModel:
    """A model whose next token, 0 to 2 or END, is a hash of all tokens before it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def next_token(self, prefix: Sequence[int]) -> int | None:
        drawn = crc32(bytes([*self.seed.to_bytes(4), *prefix])) // 7 % 7
        return END if drawn == 6 else drawn % 3

    def generate(self, prefix: Sequence[int], limit: int) -> list[int]:
        """Returns the greedy continuation, generated token by token."""
        tokens: list[int] = []
        while len(tokens) < limit:
            token = self.next_token([*prefix, *tokens])
            if token is END:
                break
            tokens.append(token)
        return tokens

    def teacher_force(self, sequence: Sequence[int]) -> tuple[list[bool], bool]:
        """Returns which tokens of a sequence are greedy, and whether the greedy end follows it."""
        is_greedy = [self.next_token(sequence[:i]) == token for i, token in enumerate(sequence)]
        return is_greedy, self.next_token(sequence) is END


@st.composite
def cut_sequences(draw: st.DrawFn) -> CutSequence:
    """Draws a model and a sequence that follows the model at some positions."""
    model = HashModel(draw(st.integers(0, 2**32 - 1)))
    sequence: list[int] = []
    for drawn in draw(st.lists(st.none() | st.integers(0, 2), max_size=12)):
        token = model.next_token(sequence) if drawn is None else drawn
        sequence.append(0 if token is END else token)
    cuts = sorted(draw(st.sets(st.integers(0, len(sequence)))))
    limits = draw(st.lists(st.integers(1, 14), min_size=len(cuts), max_size=len(cuts)))
    return model, sequence, cuts, limits


@pytest.mark.parametrize(
    ("length", "spec", "expected"),
    [
        (0, {}, []),
        (1, {}, []),
        (4, {}, [1, 2, 3]),
        (7, {"stride": 3}, [1, 4]),
        (8, {"stride": 3}, [1, 4, 7]),
        (3, {"stride": 9}, [1]),
    ],
)
def test_token_cuts_stop_before_the_end(length: int, spec: dict[str, int], expected: list[int]):
    assert list(token_cuts(length, Memo(window="token", **spec))) == expected


@given(cut_sequences(), st.integers(0, 5))
def test_branches_and_the_answer_give_the_greedy_continuation_of_each_cut(
    case: CutSequence, surplus: int
):
    model, sequence, cuts, limits = case
    is_greedy, ends = model.teacher_force(sequence)
    needed = branches(is_greedy, ends, cuts, limits)
    generated = {at: model.generate(sequence[:at], n + surplus) for at, n in needed.items()}
    expected = [
        model.generate(sequence[:cut], limit) for cut, limit in zip(cuts, limits, strict=True)
    ]
    assert assemble(sequence, is_greedy, cuts, limits, generated) == expected


@given(cut_sequences())
def test_the_model_generates_only_from_mismatches_and_only_as_many_tokens_as_a_window_needs(
    case: CutSequence,
):
    model, sequence, cuts, limits = case
    is_greedy, ends = model.teacher_force(sequence)
    for at, tokens in branches(is_greedy, ends, cuts, limits).items():
        assert at == len(sequence) or not is_greedy[at]
        assert at < len(sequence) or not ends
        needs_of_windows = [
            limit - (at - cut)
            for cut, limit in zip(cuts, limits, strict=True)
            if cut <= at and all(is_greedy[cut:at])
        ]
        assert tokens == max(needs_of_windows) > 0


@given(st.integers(0, 9), st.lists(st.integers(1, 20), min_size=9, max_size=9))
def test_a_memorised_answer_that_ends_needs_no_generation(length: int, limits: list[int]):
    assert branches([True] * length, True, range(length), limits[:length]) == {}


@given(st.integers(1, 9))
def test_a_memorised_answer_needs_no_generation_up_to_the_length_of_its_label(length: int):
    cuts = range(1, length)
    assert branches([True] * length, False, cuts, [length - cut for cut in cuts]) == {}


def test_branches_by_hand():
    is_greedy = [True, False, True, True, False, True]
    cuts = [1, 2, 3, 4, 5]
    assert branches(is_greedy, True, cuts, [9] * 5) == {1: 9, 4: 9}
    assert branches(is_greedy, False, cuts, [9] * 5) == {1: 9, 4: 9, 6: 8}
    assert branches(is_greedy, False, cuts, [2, 2, 3, 1, 1]) == {1: 2, 4: 2}


def test_assembled_continuations_by_hand():
    is_greedy = [True, False, True, True, False, True]
    cuts, limits = [1, 2, 3, 4, 5], [2, 9, 1, 9, 9]
    generated = {1: [7, 7, 7], 4: [8], 6: []}
    continuations = assemble([0, 1, 2, 3, 4, 5], is_greedy, cuts, limits, generated)
    assert continuations == [[7, 7], [2, 3, 8], [3], [8], [5]]
