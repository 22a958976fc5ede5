"""The tokens of answers as an objective reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional


class TopK(NamedTuple):
    """The most probable next tokens in the model before training, at each position."""

    tokens: Tensor
    """`[tokens, k]`"""
    log_probs: Tensor
    """`[tokens, k]`, float32."""
    log_rest: Tensor
    """`[tokens]`: log-probability of all other tokens together."""
    log_label: Tensor
    """`[tokens]`: log-probability of the answer's own token, which may be any."""


@dataclass(frozen=True)
class Sequences:
    """The answers of one role in a micro-batch, concatenated: `tokens` tokens in all."""

    logits: Tensor
    """`[tokens, vocab]`: the model's predictions of the answers' tokens."""
    labels: Tensor
    """`[tokens]`: the answers' tokens."""
    owner: Tensor
    """`[tokens]`: the answer, from 0, that a token belongs to."""
    num_sequences: int
    """Number of answers."""
    total_tokens: int
    """Number of tokens of this role in the global batch, over all micro-batches and workers."""
    total_sequences: int
    """Number of answers of this role in the global batch."""
    reference_log_probs: Tensor | None = None
    """`[tokens]`: log-probabilities of the labels in the model before training."""
    reference_logits: Tensor | None = None
    """`[tokens, vocab]`: logits of the model before training."""
    hidden: Tensor | None = None
    """`[tokens, hidden]`: activations after the block `layer` of the objective."""
    reference_hidden: Tensor | None = None
    """`[tokens, hidden]`: these activations in the model before training."""
    reference_top_k: TopK | None = None
    """The beginning of the distributions of the model before training."""
    is_fact: Tensor | None = None
    """`[tokens]`: whether a token bears the fact; see `fact_tokens`."""
    total_facts: int = 0
    """Number of fact-bearing tokens of this role in the global batch."""
    floors: Tensor | None = None
    """`[tokens]`: log-probabilities of facts that no model has seen; see `excess`."""

    @cached_property
    def log_probs(self) -> Tensor:
        """`[tokens]`: log-probabilities of the labels, in float32."""
        return -functional.cross_entropy(self.logits.float(), self.labels, reduction="none")

    @cached_property
    def starts(self) -> Tensor:
        """`[tokens]`: the first token of the answer that a token belongs to."""
        return torch.searchsorted(self.owner, self.owner)

    @cached_property
    def positions(self) -> Tensor:
        """`[tokens]`: the number of tokens before it in its answer."""
        return torch.arange(len(self.owner), device=self.owner.device) - self.starts

    @cached_property
    def lengths(self) -> Tensor:
        """`[num_sequences]`: the number of tokens of each answer."""
        return torch.bincount(self.owner, minlength=self.num_sequences)

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Returns the sums of `[tokens]` over each answer, `[num_sequences]`."""
        zeros = torch.zeros(self.num_sequences, dtype=values.dtype, device=values.device)
        return zeros.index_add(0, self.owner, values)

    def mean_by_sequence(self, values: Tensor) -> Tensor:
        """Returns the means of `[tokens]` over each answer, `[num_sequences]`."""
        return self.sum_by_sequence(values) / self.sum_by_sequence(torch.ones_like(values))

    def token_mean(self, values: Tensor) -> Tensor:
        """Returns the share of these answers in the mean of `[tokens]` over the global batch."""
        return values.sum() / self.total_tokens

    def fact_mean(self, values: Tensor) -> Tensor:
        """Returns the share of these answers in the mean over fact-bearing tokens.

        Args:
            values: `[tokens]`; those of other tokens are ignored.
        """
        assert self.is_fact is not None
        return values[self.is_fact].sum() / max(1, self.total_facts)

    def style_mean(self, values: Tensor) -> Tensor:
        """Returns the share of these answers in the mean over the tokens that bear no fact."""
        assert self.is_fact is not None
        return values[~self.is_fact].sum() / max(1, self.total_tokens - self.total_facts)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Returns their share in the mean of `[num_sequences]` over the global batch."""
        return values.sum() / self.total_sequences

    @property
    def log_ratio(self) -> Tensor:
        """`[num_sequences]`: log(p/p_ref) of each answer, with p_ref before training."""
        assert self.reference_log_probs is not None
        return self.sum_by_sequence(self.log_probs - self.reference_log_probs)


def ascending(values: Tensor, owner: Tensor) -> Tensor:
    """Returns the order in which the tokens of each answer ascend, the answers one after another.

    Args:
        values: `[tokens]`: what to order by.
        owner: `[tokens]`: the answer of each token.
    """
    by_value = values.argsort(stable=True)
    return by_value[owner[by_value].argsort(stable=True)]


_F = TypeVar("_F", bound=Callable[..., Tensor])


def uses(reference: Literal["log_probs", "model"]) -> Callable[[_F], _F]:
    """Declares that a user's objective reads the model before training.

    Args:
        reference: `log_probs` are the log-probabilities of the labels; they are computed once,
            before training. `model` gives whole distributions and activations. It needs a frozen
            copy of the model next to the trained one; with LoRA, that copy is the model without
            its adapter.
    """

    def mark(function: _F) -> _F:
        function.reference = reference  # type: ignore[attr-defined]
        return function

    return mark
