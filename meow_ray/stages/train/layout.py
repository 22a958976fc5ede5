"""How a micro-batch is laid out for a forward pass: packed into one row, or padded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from meow_ray.models.prompts import IGNORE
from meow_ray.stages.train.batches import Item


@dataclass(frozen=True)
class Layout:
    """A micro-batch as a model reads it; tensors in all but `roles`."""

    inputs: dict[str, Any]
    """`input_ids` `[rows, width]`, with `position_ids` (packed) or `attention_mask` (padded)."""
    rows: Any
    columns: Any
    """`[tokens]` each: where the tokens are predicted that a loss is taken on."""
    labels: Any
    """`[tokens]`."""
    owners: Any
    """`[tokens]`: the pair of its role, from 0, that a token belongs to."""
    log_probs: Any | None
    """`[tokens]`, not a number where a role has none; None if no role has them."""
    roles: dict[str, tuple[slice, int]]
    """The tokens and the number of pairs of each role."""


def layout(items: Sequence[Item], pad: int, device: Any, *, packed: bool) -> Layout:
    """Lays the pairs of some items out for one forward pass, role by role: end to end in one row, or padded."""
    import torch

    roles = list(items[0])
    pairs = [item[role] for role in roles for item in items]
    lengths = [len(pair.input_ids) for pair in pairs]
    starts = [0, *accumulate(lengths)]

    def tensor(values: Any, dtype: Any = torch.long) -> Any:
        return torch.tensor(values, dtype=dtype, device=device)

    found = [
        (i, t - 1, pair.labels[t], i % len(items))
        for i, pair in enumerate(pairs)
        for t in range(1, len(pair.labels))
        if pair.labels[t] != IGNORE
    ]
    number, position, labels, owners = (list(column) for column in zip(*found, strict=True))
    if packed:
        inputs = {
            "input_ids": tensor([[token for pair in pairs for token in pair.input_ids]]),
            "position_ids": tensor([[t for length in lengths for t in range(length)]]),
        }
        rows, columns = (
            [0] * len(found),
            [starts[i] + t for i, t in zip(number, position, strict=True)],
        )
    else:
        width = max(lengths)
        inputs = {
            "input_ids": tensor(
                [pair.input_ids + [pad] * (width - len(pair.input_ids)) for pair in pairs]
            ),
            "attention_mask": tensor([[1] * length + [0] * (width - length) for length in lengths]),
        }
        rows, columns = number, position
    counts = [sum(item[role].num_labels for item in items) for role in roles]
    ends = [0, *accumulate(counts)]
    known = any(pair.log_probs for pair in pairs)
    log_probs = [p for pair in pairs for p in pair.log_probs or [math.nan] * pair.num_labels]
    return Layout(
        inputs,
        tensor(rows),
        tensor(columns),
        tensor(labels),
        tensor(owners),
        tensor(log_probs, torch.float32) if known else None,
        {role: (slice(ends[i], ends[i + 1]), len(items)) for i, role in enumerate(roles)},
    )
