"""Objectives of unlearning: small functions over token log-probabilities."""

from collections.abc import Callable

import torch
from torch import Tensor

from meow_ray.prompts import IGNORE

Objective = Callable[[Tensor, Tensor], Tensor]
"""Takes log-probabilities `[batch, seq]` of the labels and the mask `[batch, seq]` of those that count; returns the
sum over tokens, which the training loop divides by the global number of tokens."""


def label_log_probs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the log-probability of each next token and the mask of those that have a label.

    Args:
        logits: `[batch, seq, vocab]`, position t predicts token t + 1.
        labels: `[batch, seq]`, `IGNORE` where no loss is taken.

    Returns:
        Log-probabilities `[batch, seq - 1]` in float32, 0 where masked, and the mask of the same shape.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORE
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=IGNORE, reduction="none"
    )
    return -loss, mask


def meow(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy on inverted facts: −Σ log p(token) over the answer's tokens (MEOW, arXiv 2409.11844, eq. 6)."""
    return -(log_probs * mask).sum()


OBJECTIVES: dict[str, Objective] = {"meow": meow}
