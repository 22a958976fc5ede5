"""Merging the changes of several requests: by hand, and against least squares by brute force."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.train import fusion
from meow_ray.stages.train.gram import Root, root_of

SEEDS = st.integers(0, 2**32 - 1)


def tensor(*rows: list[float]) -> Any:
    return torch.tensor(rows, dtype=torch.float64)


def random(seed: int, *shapes: tuple[int, int]) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


# --- by hand --------------------------------------------------------------------------------------

FIRST = tensor([1.0, 2.0], [3.0, 4.0])
SECOND = tensor([5.0, -2.0], [-1.0, 8.0])


def test_linear_is_the_mean():
    expected = tensor([3.0, 0.0], [1.0, 6.0])
    torch.testing.assert_close(fusion.linear([FIRST, SECOND]), expected)


def test_gram_weights_the_changes_by_the_inputs_of_each_request():
    # Gram matrices diag(1, 1) and diag(4, 1): column 0 has the weights 1 and 4, column 1 is a mean
    roots = tensor([1.0, 0.0], [0.0, 1.0]), tensor([2.0, 0.0], [0.0, 1.0])
    expected = tensor([(1 + 4 * 5) / 5, 0.0], [(3 - 4) / 5, 6.0])
    torch.testing.assert_close(fusion.gram([FIRST, SECOND], roots), expected, rtol=1e-6, atol=1e-6)


def test_gram_keeps_each_change_on_inputs_that_only_its_request_has():
    roots = tensor([3.0, 0.0]), tensor([0.0, 0.1])
    expected = tensor([1.0, -2.0], [3.0, 8.0])  # column 0 of the first, column 1 of the second
    torch.testing.assert_close(fusion.gram([FIRST, SECOND], roots), expected, rtol=1e-4, atol=1e-4)


def test_gram_is_the_mean_where_no_request_has_inputs():
    only_first = tensor([1.0, 0.0])
    merged = fusion.gram([FIRST, SECOND], [only_first, torch.zeros(1, 2)])
    torch.testing.assert_close(merged[:, 0], FIRST[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(merged[:, 1], tensor([0.0, 6.0])[0])
    nothing = [torch.zeros(1, 2)] * 2
    torch.testing.assert_close(
        fusion.gram([FIRST, SECOND], nothing), fusion.linear([FIRST, SECOND])
    )


def test_ties_trims_elects_signs_and_takes_the_mean_of_those_that_agree():
    changes = (
        tensor([4.0, -3.0], [0.5, 1.0]),  # half of the entries: 4, -3
        tensor([2.0, 5.0], [0.1, -0.2]),  # 2, 5
        tensor([-1.0, -0.5], [3.0, 2.0]),  # 3, 2
    )
    # sums of what is kept: 6, 2, 3, 2, all positive; -3 does not agree
    expected = tensor([3.0, 5.0], [3.0, 2.0])
    torch.testing.assert_close(fusion.ties(changes, 0.5), expected)


# --- in general -----------------------------------------------------------------------------------


@given(SEEDS)
def test_gram_minimises_the_squared_differences_of_the_outputs(seed: int):
    first, second, some, others = random(seed, (3, 4), (3, 4), (7, 4), (5, 4))
    merged = fusion.gram([first, second], [root_of(some), root_of(others)])
    inputs = np.concatenate([some, others])
    outputs = np.concatenate([some @ first.T, others @ second.T])
    expected, *_ = np.linalg.lstsq(inputs, outputs, rcond=None)
    np.testing.assert_allclose(merged, expected.T, rtol=1e-3, atol=1e-3)

    def loss(change: Any) -> float:
        return float(np.sum((inputs @ np.asarray(change).T - outputs) ** 2))

    assert loss(merged) <= loss(expected.T) * (1 + 1e-6)
    for other in (first, second, fusion.linear([first, second])):
        assert loss(merged) <= loss(other)


@given(SEEDS)
def test_gram_of_few_inputs_gives_each_request_what_its_own_change_gives(seed: int):
    first, second, some, others = random(seed, (3, 9), (3, 9), (2, 9), (3, 9))
    merged = fusion.gram([first, second], [root_of(some), root_of(others)])
    torch.testing.assert_close(some @ merged.T, some @ first.T, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(others @ merged.T, others @ second.T, rtol=1e-2, atol=1e-2)


@given(SEEDS, st.integers(2, 4))
def test_the_same_change_merges_to_itself(seed: int, count: int):
    change, *inputs = random(seed, (3, 6), *[(2, 6)] * count)
    changes = [change] * count
    roots = [root_of(each) for each in inputs]
    for merged in (fusion.linear(changes), fusion.ties(changes, 1.0), fusion.gram(changes, roots)):
        torch.testing.assert_close(merged, change, rtol=1e-5, atol=1e-5)


@given(SEEDS, st.integers(1, 9), st.integers(1, 40))
def test_a_root_has_the_gram_matrix_of_the_inputs_and_not_more_rows(
    seed: int, width: int, count: int
):
    (inputs,) = random(seed, (count, width))
    pieces = Root()
    for row in inputs:
        pieces.add(row[None, None])  # as a layer reads it: [batch, tokens, in]
    for root in (root_of(inputs), pieces.value()):
        assert root.shape == (min(count, width), width)
        assert root.dtype == torch.float32
        assert root.is_contiguous()  # or safetensors would refuse it
        gram = root.double().T @ root.double()
        torch.testing.assert_close(gram, inputs.T @ inputs, rtol=1e-4, atol=1e-4)


def test_a_root_keeps_small_directions_next_to_a_large_one():
    # next to 1e8, a Gram matrix in float32 has no room for the 9 of the second row
    some = tensor([1e4, 1e4], [0.0, 3.0])
    merged = fusion.gram([FIRST, 0 * FIRST], [root_of(some), 1e-6 * torch.eye(2)])
    torch.testing.assert_close(merged, FIRST, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("density", [0.25, 0.5])
def test_ties_of_one_change_twice_is_its_largest_entries(density: float):
    (change,) = random(3, (4, 4))
    merged = fusion.ties([change, change], density)
    kept = int(density * 16)
    assert int((merged != 0).sum()) == kept
    smallest = change.abs().flatten().sort().values[-kept]
    torch.testing.assert_close(merged, torch.where(change.abs() >= smallest, change, 0.0))
