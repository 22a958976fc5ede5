"""The tensors of a micro-batch for one forward pass: packed into one row, or padded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from meow_ray.models.prompts import IGNORE
from meow_ray.stages.train.items import Item, Pair


@dataclass(frozen=True)
class Layout:
    """A micro-batch as a model reads it. All fields but `roles` hold tensors."""

    inputs: dict[str, Any]
    """`input_ids` `[rows, width]`, with `position_ids` (packed) or `attention_mask` (padded)."""
    rows: Any
    """`[tokens]`: the rows of the positions that predict the tokens of a loss."""
    columns: Any
    """`[tokens]`: the columns of these positions."""
    labels: Any
    """`[tokens]`: the tokens of a loss."""
    owners: Any
    """`[tokens]`: the pair that a token belongs to, counted from 0 within its role."""
    log_probs: Any | None
    """`[tokens]`, NaN for roles without log-probabilities; None if no role has any."""
    roles: dict[str, tuple[slice, int]]
    """The tokens and the number of pairs of each role."""


@dataclass(frozen=True)
class _Label:
    """A token that a loss is computed on."""

    token: int
    pair: int
    """The number of its pair in the micro-batch."""
    position: int
    """The position in the pair that predicts it."""


def lay_out(items: Sequence[Item], pad: int, device: Any, *, packed: bool) -> Layout:
    """Returns the pairs of some items as tensors for one forward pass, role by role.

    Args:
        items: a micro-batch with at least one item.
        pad: the token that fills padded rows.
        device: the device of the tensors.
        packed: whether the pairs follow one another in a single row. Otherwise each has a padded
            row.
    """
    import torch

    def tensor(values: Any, dtype: Any = torch.long) -> Any:
        return torch.tensor(values, dtype=dtype, device=device)

    roles = list(items[0])
    pairs = [item[role] for role in roles for item in items]
    labels = _labels(pairs)
    inputs = _packed_inputs(pairs) if packed else _padded_inputs(pairs, pad)
    if packed:
        starts = [0, *accumulate(len(pair.input_ids) for pair in pairs)]
        rows = [0] * len(labels)
        columns = [starts[label.pair] + label.position for label in labels]
    else:
        rows = [label.pair for label in labels]
        columns = [label.position for label in labels]
    log_probs = _log_probs(pairs)
    return Layout(
        inputs={name: tensor(values) for name, values in inputs.items()},
        rows=tensor(rows),
        columns=tensor(columns),
        labels=tensor([label.token for label in labels]),
        owners=tensor([label.pair % len(items) for label in labels]),
        log_probs=None if log_probs is None else tensor(log_probs, torch.float32),
        roles=_token_slices(items, roles),
    )


def _labels(pairs: Sequence[Pair]) -> list[_Label]:
    """Returns the tokens of all pairs that a loss is computed on."""
    return [
        _Label(token=token, pair=number, position=position)
        for number, pair in enumerate(pairs)
        for position, token in enumerate(pair.labels[1:])
        if token != IGNORE
    ]


def _packed_inputs(pairs: Sequence[Pair]) -> dict[str, list[list[int]]]:
    """Returns one row with all pairs; positions start from 0 at each of them."""
    return {
        "input_ids": [[token for pair in pairs for token in pair.input_ids]],
        "position_ids": [[t for pair in pairs for t in range(len(pair.input_ids))]],
    }


def _padded_inputs(pairs: Sequence[Pair], pad: int) -> dict[str, list[list[int]]]:
    """Returns one row per pair, filled up to the length of the longest; padding is masked."""
    lengths = [len(pair.input_ids) for pair in pairs]
    width = max(lengths)
    return {
        "input_ids": [pair.input_ids + [pad] * (width - len(pair.input_ids)) for pair in pairs],
        "attention_mask": [[1] * length + [0] * (width - length) for length in lengths],
    }


def _log_probs(pairs: Sequence[Pair]) -> list[float] | None:
    """Returns the log-probabilities of all labels, NaN if unknown; None if all are unknown."""
    if not any(pair.log_probs for pair in pairs):
        return None
    return [p for pair in pairs for p in pair.log_probs or [math.nan] * pair.num_labels]


def _token_slices(items: Sequence[Item], roles: Sequence[str]) -> dict[str, tuple[slice, int]]:
    """Returns the tokens of each role, which are consecutive, and the number of its pairs."""
    counts = [sum(item[role].num_labels for item in items) for role in roles]
    ends = [0, *accumulate(counts)]
    return {
        role: (slice(ends[number], ends[number + 1]), len(items))
        for number, role in enumerate(roles)
    }
