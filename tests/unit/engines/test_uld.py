"""The logits with which a target and its assistant answer, worked out by hand."""

import math

import pytest
import torch

from meow_ray.engines.uld import corrected
from meow_ray.models.uld import UldSettings

ASSISTANT = [8.0, -2.0, 4.0, 0.5, -1.0]


def answer(logits: list[float], weight: float, share: float) -> tuple[list[float], list[bool]]:
    values, filtered = corrected(
        torch.tensor([logits]), torch.tensor([ASSISTANT]), UldSettings(weight, share)
    )
    return values[0].tolist(), filtered[0].tolist()


def test_the_assistant_is_subtracted_from_what_the_target_finds_probable():
    # ln 4 = 1.39: the last three tokens have less than a quarter of the largest probability
    values, filtered = answer([5.0, 4.0, 3.0, 2.0, 1.0], -0.5, 0.25)
    assert values == [5 - 4, 4 + 1, 3, 2, 1]
    assert filtered == [False, False, True, True, True]


def test_a_share_of_the_vocabulary_is_never_filtered():
    # the two most probable of five tokens are kept, though the second has e^-9 of the largest
    values, filtered = answer([9.0, 0.0, -1.0, -2.0, -3.0], -0.5, 0.4)
    assert values == [9 - 4, 0 + 1, -1, -2, -3]
    assert filtered == [False, False, True, True, True]


def test_a_share_of_0_filters_no_token():
    values, filtered = answer([9.0, 0.0, -1.0, -2.0, -3.0], -2.0, 0.0)
    assert values == [9 - 16, 0 + 4, -1 - 8, -2 - 1, -3 + 2]
    assert not any(filtered)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_token_that_the_target_masks_stays_masked(share: float):
    values, filtered = answer([1.0, 1.0, 1.0, 1.0, -math.inf], -0.5, share)
    assert values == [1 - 4, 1 + 1, 1 - 2, 1 - 0.25, -math.inf]
    assert filtered == [False, False, False, False, True]


def test_a_uniform_assistant_changes_no_probability_of_unfiltered_tokens():
    z = torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(0))
    values, filtered = corrected(z, torch.full_like(z, 3.5), UldSettings(-0.8, 0.0))
    assert not filtered.any()
    torch.testing.assert_close(values.log_softmax(-1), z.log_softmax(-1))


def test_logits_in_16_bits_are_corrected_in_32():
    z = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    values, _ = corrected(z, torch.tensor([[1.01, 0.0]]), UldSettings(-0.1, 0.01))
    assert values.dtype == torch.float32
    assert values[0].tolist() == pytest.approx([0.899, 0.5], rel=1e-6)
