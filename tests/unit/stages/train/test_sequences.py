"""Sums, means and log-probabilities of the answers of a micro-batch."""

import pytest
import torch
from torch import Tensor

from meow_ray.stages.train.losses import Sequences
from tests.support.answers import VOCAB


def three_answers(logits: Tensor | None = None, **reference: Tensor) -> Sequences:
    """Returns answers of two, one and three tokens, in a global batch of 12 tokens in 4 answers."""
    logits = torch.zeros(6, VOCAB) if logits is None else logits
    return Sequences(
        logits=logits,
        labels=torch.tensor([0, 3, 4, 1, 1, 2]),
        owner=torch.tensor([0, 0, 1, 2, 2, 2]),
        num_sequences=3,
        total_tokens=12,
        total_sequences=4,
        **reference,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_equal_log_softmax_at_the_token_in_float32(dtype: torch.dtype):
    logits = (5 * torch.randn(6, VOCAB, generator=torch.Generator().manual_seed(0))).to(dtype)
    answers = three_answers(logits)
    expected = torch.log_softmax(logits.float(), -1).gather(1, answers.labels[:, None])[:, 0]
    assert answers.log_probs.dtype == torch.float32
    torch.testing.assert_close(answers.log_probs, expected)


def test_log_probabilities_by_hand():
    rows = [
        [0.5, 0.125, 0.125, 0.125, 0.125],
        [0.2, 0.2, 0.2, 0.3, 0.1],
        *[[0.1, 0.2, 0.3, 0.1, 0.3]] * 4,
    ]
    probs = three_answers(torch.tensor(rows).log()).log_probs.exp()
    torch.testing.assert_close(probs, torch.tensor([0.5, 0.3, 0.3, 0.2, 0.2, 0.3]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_summed_and_averaged_by_answer(dtype: torch.dtype):
    answers, values = three_answers(), torch.tensor([1, 2, 4, 8, 16, 33], dtype=dtype)
    assert answers.sum_by_sequence(values).tolist() == [3, 4, 57]
    assert answers.mean_by_sequence(values).tolist() == [1.5, 4, 19]
    assert answers.sum_by_sequence(values).dtype == answers.mean_by_sequence(values).dtype == dtype


def test_the_gradient_of_a_mean_by_answer_is_shared_by_its_tokens():
    values = torch.zeros(6, requires_grad=True)
    weights = torch.tensor([1.0, 10.0, 300.0])
    (three_answers().mean_by_sequence(values) * weights).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 10, 100, 100, 100]


def test_a_mean_is_divided_by_the_size_of_the_global_batch():
    answers = three_answers()
    assert answers.token_mean(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])).item() == 24 / 12
    assert answers.sequence_mean(torch.tensor([1.0, 2.0, 3.0])).item() == 6 / 4


def test_the_log_ratio_sums_over_an_answer():
    before = torch.tensor([0.5, 0.5, 1.0, 0.25, 0.5, 1.0])
    ratios = three_answers(reference_log_probs=before.log()).log_ratio.exp()
    torch.testing.assert_close(ratios, torch.tensor([0.2**2 / 0.25, 0.2, 0.2**3 / 0.125]))
