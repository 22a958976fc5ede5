"""What one step reads: tokenised pairs, grouped into items, and their micro-batches."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from meow_ray.models.prompts import IGNORE


@dataclass(frozen=True)
class Pair:
    """One tokenised question with its answer, both lists `[seq]`."""

    input_ids: list[int]
    labels: list[int]
    """The tokens of the answer; `IGNORE` at the tokens of the question."""
    log_probs: list[float] | None = None
    """Log-probabilities of the answer's tokens in the model before training."""
    is_fact: list[bool] | None = None
    """Whether each of the answer's tokens bears the fact."""
    shift: float = 0.0
    """By how much the floors of the answer are higher than those of its fact, in log-odds."""
    fact_id: str = ""
    row: int = 0
    """The row of the pair in the table of all pairs."""

    @cached_property
    def num_labels(self) -> int:
        """The number of tokens that a loss is computed on."""
        return sum(label != IGNORE for label in self.labels[1:])

    @cached_property
    def fact_mask(self) -> list[bool]:
        """Whether each token that a loss is computed on bears the fact; `[num_labels]`."""
        mask = self.is_fact or []
        return mask[len(mask) - self.num_labels :]


class Totals(NamedTuple):
    """The sizes of one role in a global batch."""

    tokens: int
    """Number of tokens that a loss is computed on."""
    sequences: int
    """Number of answers."""
    facts: int = 0
    """Number of these tokens that bear the fact."""


Item = dict[str, Pair]
"""The pairs that an objective compares: one of each role."""


def totals_of(batch: Sequence[Item]) -> dict[str, Totals]:
    """Returns the sizes of a global batch by role."""
    tokens: Counter[str] = Counter()
    facts: Counter[str] = Counter()
    for item in batch:
        for role, pair in item.items():
            tokens[role] += pair.num_labels
            facts[role] += sum(pair.fact_mask)
    return {role: Totals(count, len(batch), facts[role]) for role, count in tokens.items()}


def micro_batches(
    batch: Sequence[Item], rank: int, world_size: int, count: int
) -> list[list[Item]]:
    """Returns one worker's share of a batch as `count` micro-batches; some may be empty.

    Items are sorted by length, and all workers process items of similar length at the same time.
    This keeps padding and waiting short.
    """
    items = sorted(batch, key=_num_tokens, reverse=True)
    num_slots = world_size * count
    bounds = [len(items) * slot // num_slots for slot in range(num_slots + 1)]
    return [items[bounds[slot] : bounds[slot + 1]] for slot in range(rank, num_slots, world_size)]


def _num_tokens(item: Item) -> int:
    return sum(len(pair.input_ids) for pair in item.values())
