"""The floating-point operations of a decoder, and the utilisation of a device.

Model FLOPs utilisation is the rate of the operations that the model needs, divided by the bfloat16
matrix rate of the device, which the check `limits` measures. The operations are those of PaLM
(arXiv 2204.02311, appendix B): 6·N per token for training with N parameters, and 12·L·H·Q·T for
attention, with L layers, H heads of size Q and sequences of T tokens. Two refinements make N
precise:

- The input embedding is a look-up, so it does not count. The output layer counts for the tokens
  whose logits a loss reads.
- A frozen weight needs no gradient, so that it costs 4 operations per token instead of 6 (LoRA).

Padding does not count, nor does what gradient checkpointing computes again: both lower utilisation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that decide how many operations it takes."""

    body: int
    """Parameters without the input embedding and the output layer."""
    head: int
    """Parameters of the output layer."""
    layers: int
    attention_width: int
    """Number of heads times the size of a head."""

    @property
    def parameters(self) -> int:
        """Parameters that multiply something for a token."""
        return self.body + self.head


def sizes_of(model: Any) -> Sizes:
    """Returns the sizes of a Llama of transformers."""
    config = model.config
    table = config.vocab_size * config.hidden_size
    tables = 1 if config.tie_word_embeddings else 2
    total = sum(parameter.numel() for parameter in model.parameters())
    return Sizes(
        body=total - tables * table,
        head=table,
        layers=config.num_hidden_layers,
        attention_width=config.num_attention_heads * config.head_dim,
    )


def forward_flops(sizes: Sizes, lengths: Sequence[int], predicted: int) -> int:
    """Returns the operations of one forward pass.

    Args:
        sizes: the model.
        lengths: tokens of each sequence, without padding.
        predicted: tokens whose logits are needed.
    """
    matrices = 2 * (sizes.body * sum(lengths) + sizes.head * predicted)
    return matrices + 4 * sizes.layers * sizes.attention_width * _squares(lengths)


def training_flops(
    sizes: Sizes, lengths: Sequence[int], predicted: int, adapter: int | None = None
) -> int:
    """Returns the operations of one forward and backward pass.

    Args:
        sizes: the model, without an adapter.
        lengths: tokens of each sequence, without padding.
        predicted: tokens whose logits a loss reads.
        adapter: parameters of a LoRA adapter if the model is frozen; None if it is trained itself.
    """
    per_weight = 6 if adapter is None else 4
    matrices = per_weight * (sizes.body * sum(lengths) + sizes.head * predicted)
    matrices += 6 * (adapter or 0) * sum(lengths)
    return matrices + 12 * sizes.layers * sizes.attention_width * _squares(lengths)


def _squares(lengths: Sequence[int]) -> int:
    return sum(length * length for length in lengths)
