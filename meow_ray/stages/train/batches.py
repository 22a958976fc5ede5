"""The tokenised pairs of a run, the global batch of each step, and its micro-batches."""

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from meow_ray.config import FineTuning, Train
from meow_ray.core import storage, tables
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.models.text import novel_words

PIECE = 4096
"""Number of pairs that are tokenised at once."""
TOKENS = pa.schema(
    [
        ("item", pa.int32()),
        ("fact", pa.int32()),
        ("fact_id", pa.string()),
        ("role", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt", pa.int32()),
        ("log_probs", pa.list_(pa.float64())),
        ("is_fact", pa.list_(pa.bool_())),
    ]
)
"""`pairs.PAIRS` after tokenisation.

`fact` is the number of the fact, and `prompt` is the number of tokens before the answer. `is_fact`
tells which tokens of the answer bear the fact; it is null if no objective reads it.
"""


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


# --- tokenisation -------------------------------------------------------------------------------


@storage.retry_transient
def write_token_pairs(
    pairs: Query, prompter: Prompter, max_length: int, uri: str, *, marks_facts: bool = False
) -> None:
    """Tokenises `pairs.PAIRS` piece by piece into a Parquet file with the columns `TOKENS`.

    Args:
        pairs: the pairs.
        prompter: writes and tokenises the prompts of the model.
        max_length: the largest number of tokens of a pair.
        uri: the file to write.
        marks_facts: whether to fill `is_fact`.

    Raises:
        MeowError: a pair is longer than `max_length`, or its `log_probs` do not match its tokens.
    """
    with pairs.batches() as reader:
        pieces = _tokenised(reader, prompter, max_length, marks_facts)
        tables.write_stream(pieces, TOKENS, uri)


def _tokenised(
    batches: Iterable[pa.RecordBatch], prompter: Prompter, max_length: int, marks_facts: bool
) -> Iterator[pa.Table]:
    """Yields pairs as `TOKENS`; a new number of a fact begins where `fact_id` changes."""
    fact_number = -1
    fact_id = None
    for piece in _pieces(batches):
        encoded = prompter.encode_pairs(piece["question"].to_pylist(), piece["answer"].to_pylist())
        rows = piece.select(["item", "role", "fact_id", "log_probs"]).to_pylist()
        if marks_facts:
            for row, texts in zip(rows, piece.to_pylist(), strict=True):
                row["is_fact"] = _fact_mask(prompter, texts)
        for row, (input_ids, labels) in zip(rows, encoded, strict=True):
            if row["fact_id"] != fact_id:
                fact_id = row["fact_id"]
                fact_number += 1
            row["fact"] = fact_number
            row["input_ids"] = input_ids
            row["prompt"] = labels.count(IGNORE)
            _check_row(row, max_length)
        yield pa.Table.from_pylist(rows, TOKENS)


def _fact_mask(prompter: Prompter, pair: Mapping[str, Any]) -> list[bool]:
    """Returns which tokens of an answer bear the fact.

    These are the tokens of words that neither the question nor the opposite answer of the item
    has. An answer without such words is compared with the question alone.
    """
    question, answer, opposite = pair["question"], pair["answer"], pair["opposite"]
    if opposite is not None:
        stated = f"{question}\n{opposite}"
        if novel_words(answer, stated):
            return novel_token_mask(prompter, stated, answer)
    return novel_token_mask(prompter, question, answer)


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of record batches, at most `PIECE` at a time."""
    for batch in batches:
        for start in range(0, batch.num_rows, PIECE):
            yield batch.slice(start, PIECE)


def _check_row(row: Mapping[str, Any], max_length: int) -> None:
    """Refuses a pair that is too long, or whose log-probabilities do not match its tokens."""
    length = len(row["input_ids"])
    if length > max_length:
        raise MeowError(
            f"`max_length`: a pair of the fact {row['fact_id']} has {length} tokens (limit "
            f"{max_length}). Raise `max_length`."
        )
    if row["log_probs"] is None:
        return
    answer_length = length - row["prompt"]
    if len(row["log_probs"]) != answer_length:
        raise MeowError(
            f"`reference`: an answer of the fact {row['fact_id']} has {answer_length} tokens, but "
            f"{len(row['log_probs'])} log-probabilities. Compute `reference` with the same model "
            "and template."
        )


# --- batches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dataset:
    """All pairs of a run; a step's batch depends on the pairs, the settings and the step alone."""

    pairs: pa.Table
    """`TOKENS`: the items, each with its roles in order, then the retain set."""
    spec: FineTuning

    @cached_property
    def roles(self) -> list[str]:
        """The roles of an item, in order."""
        first = self.pairs.slice(0, 16).to_pylist()
        return [row["role"] for row in first if row["item"] == 0]

    @cached_property
    def num_retain(self) -> int:
        """The number of pairs of the retain set; they belong to no item."""
        return int(self.pairs["item"].null_count)

    @cached_property
    def num_items(self) -> int:
        """The number of items."""
        return (int(self.pairs.num_rows) - self.num_retain) // len(self.roles)

    @cached_property
    def _starts(self) -> Any:
        """The first item of each fact, then the number of items.

        The items of a fact are consecutive.
        """
        import numpy as np

        num_roles = len(self.roles)
        facts = self.pairs["fact"].to_numpy()[: self.num_items * num_roles : num_roles]
        first_items = np.flatnonzero(np.diff(facts, prepend=-1))
        return np.append(first_items, len(facts))

    @cached_property
    def per_epoch(self) -> int:
        """The number of optimiser steps of an epoch."""
        return -(-len(self._order(0)) // self.spec.batch_size)

    @cached_property
    def num_steps(self) -> int:
        """The number of optimiser steps of a run."""
        return self.spec.epochs * self.per_epoch

    def item(self, number: int) -> Item:
        """Returns the item with this number, from 0."""
        first = number * len(self.roles)
        return {role: self.pair(first + i) for i, role in enumerate(self.roles)}

    def batch(self, step: int) -> list[Item]:
        """Returns the global batch of a step, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        order = self._order(epoch)
        start = position * self.spec.batch_size
        numbers = order[start : start + self.spec.batch_size]
        items = [self.item(number) for number in numbers]
        if not self.num_retain:
            return items
        drawn_before = epoch * len(order) + start
        return [
            item | {"retain": self._retain_pair(drawn_before + offset)}
            for offset, item in enumerate(items)
        ]

    def _order(self, epoch: int) -> Sequence[int]:
        """Returns the numbers of an epoch's items, in the order in which its steps read them."""
        seed = f"{self.spec.seed}/{epoch}"
        num_batch = self.spec.num_batch if isinstance(self.spec, Train) else None
        if num_batch is None:
            return _shuffled(self.num_items, seed)
        starts = self._starts.tolist()
        facts = _shuffled(len(starts) - 1, seed)
        candidates = (range(starts[fact], starts[fact + 1]) for fact in facts)
        return array("i", _in_turn(candidates, num_batch, epoch))

    def _retain_pair(self, draw: int) -> Pair:
        """Returns the retain pair of a draw, counted from 0.

        All pairs are drawn once in a shuffled order, then all of them in another order, and so on.
        """
        pass_number, position = divmod(draw, self.num_retain)
        order = _shuffled(self.num_retain, f"{self.spec.seed}/retain/{pass_number}")
        first_row = len(self.roles) * self.num_items
        return self.pair(first_row + order[position])

    def pair(self, row_number: int) -> Pair:
        """Returns the pair in a row of the table."""
        return pair_of(self.pairs.slice(row_number, 1).to_pylist()[0], row_number)

    def rows_of(self, role: str) -> Sequence[int]:
        """Returns the rows of all pairs of a role."""
        import numpy as np

        is_role = self.pairs["role"].to_numpy(zero_copy_only=False) == role
        return [int(row) for row in np.flatnonzero(is_role)]


def pair_of(row: Mapping[str, Any], number: int) -> Pair:
    """Returns the pair in a row of `TOKENS`, with the number of the row."""
    input_ids = row["input_ids"]
    prompt = row["prompt"]
    return Pair(
        input_ids=input_ids,
        labels=[IGNORE] * prompt + input_ids[prompt:],
        log_probs=row["log_probs"],
        is_fact=row["is_fact"],
        fact_id=row["fact_id"] or "",
        row=number,
    )


def _in_turn(candidates: Iterable[Sequence[int]], num_batch: int, epoch: int) -> Iterator[int]:
    """Yields `num_batch` candidates of each fact; each epoch goes on after the one before.

    Args:
        candidates: the item numbers of each fact.
        num_batch: the number of items that an epoch takes from each fact.
        epoch: the epoch, from 0.

    Example:
        3 candidates, num_batch 2: epoch 0 takes 0, 1; epoch 1 takes 2, 0.

        >>> [list(_in_turn([range(3)], num_batch=2, epoch=epoch)) for epoch in (0, 1)]
        [[0, 1], [2, 0]]
    """
    for items in candidates:
        for turn in range(num_batch):
            yield items[(epoch * num_batch + turn) % len(items)]


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: str) -> Sequence[int]:
    """Returns the numbers from 0 to `count` - 1 in an order that depends on the seed alone."""
    order = array("i", range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 - not for secrets
    return order


def totals(batch: Sequence[Item]) -> dict[str, Totals]:
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
