"""What a training step reads: the global batch of a step, its cut into micro-batches, their layout."""

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa

from meow_ray.config import FineTuning, Train
from meow_ray.core import storage, tables
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models.prompts import IGNORE, Prompter

PIECE = 4096
"""Pairs that are tokenised at once."""
TOKENS = pa.schema(
    [
        ("item", pa.int32()),
        ("fact", pa.int32()),
        ("role", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt", pa.int32()),
        ("log_probs", pa.list_(pa.float64())),
    ]
)
"""`pairs.PAIRS` as a worker reads them: `fact` is a number, `prompt` the tokens of the question."""


@dataclass(frozen=True)
class Pair:
    """One tokenised question with its answer, both lists `[seq]`."""

    input_ids: list[int]
    labels: list[int]
    """`IGNORE` over the question."""
    log_probs: list[float] | None = None
    """Of the answer's tokens in the model before training."""

    @cached_property
    def num_labels(self) -> int:
        """The tokens that a loss is taken on."""
        return sum(label != IGNORE for label in self.labels[1:])


Item = dict[str, Pair]
"""What an objective compares: one pair of each role."""


@storage.retry_transient
def write(pairs: Query, prompter: Prompter, max_length: int, uri: str) -> None:
    """Tokenises `pairs.PAIRS` into a Parquet file of `TOKENS`, piece by piece.

    Raises:
        MeowError: a pair is longer than `max_length`, or its `log_probs` are not those of its tokens.
    """
    with pairs.batches() as reader:
        tables.write_stream(_tokenised(reader, prompter, max_length), TOKENS, uri)


def _tokenised(
    rows: Iterable[pa.RecordBatch], prompter: Prompter, max_length: int
) -> Iterator[pa.Table]:
    fact, name = -1, None
    for batch in (whole.slice(i, PIECE) for whole in rows for i in range(0, whole.num_rows, PIECE)):
        found = prompter.encode_pairs(batch["question"].to_pylist(), batch["answer"].to_pylist())
        columns = batch.select(["item", "role", "fact_id", "log_probs"]).to_pylist()
        for row, (ids, labels) in zip(columns, found, strict=True):
            fact, name = fact + (row["fact_id"] != name), row["fact_id"]
            row |= {"fact": fact, "input_ids": ids, "prompt": labels.count(IGNORE)}
            if len(ids) > max_length:
                raise MeowError(
                    f"The pair of the fact {name} has {len(ids)} tokens, `max_length` is {max_length}; raise it."
                )
            if row["log_probs"] is not None and len(row["log_probs"]) != len(ids) - row["prompt"]:
                raise MeowError(
                    f"`reference` has {len(row['log_probs'])} log-probabilities of an answer of the fact {name}, "
                    f"which has {len(ids) - row['prompt']} tokens: it is of another model or template."
                )
        yield pa.Table.from_pylist(columns, TOKENS)


@dataclass(frozen=True)
class Dataset:
    """All pairs of a run; the batch of a step is a function of the seed and the step alone."""

    pairs: pa.Table
    """`TOKENS`: item by item, each with its roles in order, then the retain set."""
    spec: FineTuning

    @cached_property
    def roles(self) -> list[str]:
        """The roles of an item."""
        first = self.pairs.slice(0, 16).to_pylist()
        return [row["role"] for row in first if row["item"] == 0]

    @cached_property
    def num_retain(self) -> int:
        """Pairs of the retain set, which belong to no item."""
        return int(self.pairs["item"].null_count)

    @cached_property
    def num_items(self) -> int:
        """What an epoch goes through."""
        return (int(self.pairs.num_rows) - self.num_retain) // len(self.roles)

    @cached_property
    def _starts(self) -> Any:
        """The first item of each fact, and the end: the items of a fact stand together."""
        import numpy as np

        fact = self.pairs["fact"].to_numpy()[: self.num_items * len(self.roles) : len(self.roles)]
        return np.append(np.flatnonzero(np.diff(fact, prepend=-1)), len(fact))

    @cached_property
    def per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self._order(0)) // self.spec.batch_size)

    @cached_property
    def num_steps(self) -> int:
        """Optimiser steps of a whole run."""
        return self.spec.epochs * self.per_epoch

    def item(self, number: int) -> Item:
        """Returns an item by its number."""
        first = number * len(self.roles)
        return {role: self._pair(first + i) for i, role in enumerate(self.roles)}

    def batch(self, step: int) -> list[Item]:
        """Returns the global batch of a step, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        order, start = self._order(epoch), position * self.spec.batch_size
        chosen = order[start : start + self.spec.batch_size]
        if not self.num_retain:
            return [self.item(i) for i in chosen]
        drawn = epoch * len(order) + start
        return [
            self.item(i) | {"retain": self._retained(drawn + offset)}
            for offset, i in enumerate(chosen)
        ]

    def _order(self, epoch: int) -> Sequence[int]:
        times = self.spec.num_batch if isinstance(self.spec, Train) else None
        if times is None:
            return _shuffled(self.num_items, f"{self.spec.seed}/{epoch}")
        starts = self._starts.tolist()
        facts = (
            range(*starts[i : i + 2])
            for i in _shuffled(len(starts) - 1, f"{self.spec.seed}/{epoch}")
        )
        return array(
            "i",
            (
                items[(epoch * times + turn) % len(items)]
                for items in facts
                for turn in range(times)
            ),
        )

    def _retained(self, number: int) -> Pair:
        """Returns the retain pair that is drawn as the `number`th: all of them in a new order, again and again."""
        again, position = divmod(number, self.num_retain)
        first = len(self.roles) * self.num_items
        return self._pair(
            first + _shuffled(self.num_retain, f"{self.spec.seed}/retain/{again}")[position]
        )

    def _pair(self, row: int) -> Pair:
        found = self.pairs.slice(row, 1).to_pylist()[0]
        ids, prompt = found["input_ids"], found["prompt"]
        return Pair(ids, [IGNORE] * prompt + ids[prompt:], found["log_probs"])


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: str) -> Sequence[int]:
    order = array("i", range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 - not for secrets
    return order


def totals(batch: Sequence[Item]) -> dict[str, tuple[int, int]]:
    """Returns for each role the tokens that a loss is taken on, and the answers, of a batch."""
    tokens: Counter[str] = Counter()
    for item in batch:
        for role, pair in item.items():
            tokens[role] += pair.num_labels
    return {role: (count, len(batch)) for role, count in tokens.items()}


def micro_batches(
    batch: Sequence[Item], rank: int, world_size: int, count: int
) -> list[list[Item]]:
    """Returns one worker's share of a batch as `count` micro-batches; some may be empty.

    Items of about one length stand together, at the same time on all workers, so that little is padded and nobody
    waits long.
    """
    items = sorted(
        batch, key=lambda item: sum(len(pair.input_ids) for pair in item.values()), reverse=True
    )
    slots = world_size * count
    bounds = [len(items) * slot // slots for slot in range(slots + 1)]
    return [items[bounds[slot] : bounds[slot + 1]] for slot in range(rank, slots, world_size)]
