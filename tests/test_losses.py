import pytest
import torch

from meow_ray.losses import OBJECTIVES, label_log_probs, meow
from meow_ray.prompts import IGNORE

BATCH, SEQ, VOCAB = 3, 7, 11


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, SEQ, VOCAB, generator=generator).to(dtype)
    labels = torch.randint(VOCAB, (BATCH, SEQ), generator=generator)
    labels[0, :4] = IGNORE  # a prompt
    labels[1, 5:] = IGNORE  # padding
    labels[2] = IGNORE  # a worker's stand-in
    return logits, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_log_probabilities_equal_log_softmax_at_the_next_token_in_float32(dtype: torch.dtype):
    logits, labels = example(dtype)
    log_probs, mask = label_log_probs(logits, labels)
    expected = torch.log_softmax(logits.float(), -1)[:, :-1].gather(2, labels[:, 1:, None].clamp(min=0))[..., 0]
    assert log_probs.dtype == torch.float32
    assert log_probs.shape == mask.shape == (BATCH, SEQ - 1)
    torch.testing.assert_close(log_probs[mask], expected[mask])


def test_the_mask_is_where_the_next_token_has_a_label():
    logits, labels = example()
    log_probs, mask = label_log_probs(logits, labels)
    assert mask.tolist() == [
        [False, False, False, True, True, True],
        [True, True, True, True, False, False],
        [False] * 6,
    ]
    assert torch.count_nonzero(log_probs[~mask]) == 0


def test_a_log_probability_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 1.0, 1.0]]]))
    log_probs, _ = label_log_probs(logits, torch.tensor([[IGNORE, 1, 2]]))
    torch.testing.assert_close(log_probs.exp(), torch.tensor([[0.25, 0.8]]))


def test_meow_is_the_summed_cross_entropy_of_the_labels():
    logits, labels = example()
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1), ignore_index=IGNORE, reduction="sum"
    )
    torch.testing.assert_close(meow(*label_log_probs(logits, labels)), expected)
    assert OBJECTIVES["meow"] is meow


def test_a_step_down_meows_gradient_makes_the_labels_likelier():
    logits, labels = example()
    logits.requires_grad_()
    before, mask = label_log_probs(logits, labels)
    meow(before, mask).backward()
    assert logits.grad is not None
    after, _ = label_log_probs((logits - 0.1 * logits.grad).detach(), labels)
    assert (after[mask] > before[mask]).all()
    assert torch.count_nonzero(logits.grad[:, :-1][~mask]) == 0
    assert torch.count_nonzero(logits.grad[:, -1]) == 0


def test_a_batch_without_labels_costs_nothing_and_pulls_nowhere():
    logits, labels = example()
    logits.requires_grad_()
    loss = meow(*label_log_probs(logits, torch.full_like(labels, IGNORE)))
    loss.backward()
    assert loss.item() == 0
    assert torch.count_nonzero(logits.grad) == 0


def test_parts_of_a_batch_sum_to_the_whole():
    logits, labels = example()
    parts = [meow(*label_log_probs(logits[i : i + 1], labels[i : i + 1])) for i in range(BATCH)]
    torch.testing.assert_close(sum(parts), meow(*label_log_probs(logits, labels)))
