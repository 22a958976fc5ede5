"""The tokenised pairs of a run, and the global batch of each step."""

import random
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import pyarrow as pa

from meow_ray.config import FineTuning, Train
from meow_ray.core import storage, tables
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.models.text import novel_words
from meow_ray.stages.train.items import Item, Pair

PIECE = 4096
"""Number of pairs that are tokenised at once."""
TOKENS = pa.schema(
    [
        ("item", pa.int32()),
        ("wording", pa.int32()),
        ("fact", pa.int32()),
        ("fact_id", pa.string()),
        ("role", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("prompt", pa.int32()),
        ("log_probs", pa.list_(pa.float64())),
        ("is_fact", pa.list_(pa.bool_())),
        ("shift", pa.float64()),
    ]
)
"""`pairs.PAIRS` after tokenisation.

The rows of an item are those of its question (wording 0), then those of each further wording that
fits. `fact` is the number of the fact, and `prompt` is the number of tokens before the answer.
`is_fact` tells which tokens of the answer bear the fact; it is null if no objective reads it.
`shift` is null for answers whose floors are those of their fact.
"""


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

    A further wording of an item's question is left out if it makes one of its pairs too long.

    Raises:
        MeowError: a pair is longer than `max_length`, or its `log_probs` do not match its tokens.
    """
    with pairs.batches() as reader:
        rows = _fitting(_tokenised(reader, prompter, marks_facts), max_length)
        tables.write_stream(_tables(rows), TOKENS, uri)


def _tables(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    """Yields rows as tables of at most `PIECE` rows."""
    while piece := list(islice(rows, PIECE)):
        yield pa.Table.from_pylist(piece, TOKENS)


def _tokenised(
    batches: Iterable[pa.RecordBatch], prompter: Prompter, marks_facts: bool
) -> Iterator[dict[str, Any]]:
    """Yields pairs as rows of `TOKENS`; a new number of a fact begins where `fact_id` changes."""
    fact_number = -1
    fact_id = None
    for piece in _pieces(batches):
        encoded = prompter.encode_pairs(piece["question"].to_pylist(), piece["answer"].to_pylist())
        rows = piece.select(
            ["item", "wording", "role", "fact_id", "log_probs", "shift"]
        ).to_pylist()
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
            yield row


def _fitting(rows: Iterable[dict[str, Any]], max_length: int) -> Iterator[dict[str, Any]]:
    """Yields rows of `TOKENS` without further wordings of which a pair is too long.

    Raises:
        MeowError: see `_check_row`.
    """
    for (_, wording), pairs in groupby(rows, key=itemgetter("item", "wording")):
        fitting = _fitting_wording if wording else _checked
        yield from fitting(pairs, max_length)


def _fitting_wording(pairs: Iterable[dict[str, Any]], max_length: int) -> Iterator[dict[str, Any]]:
    """Yields the pairs of a further wording, one for each role, unless one is too long."""
    rows = list(pairs)
    if all(len(row["input_ids"]) <= max_length for row in rows):
        yield from _checked(rows, max_length)


def _checked(rows: Iterable[dict[str, Any]], max_length: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        _check_row(row, max_length)
        yield row


def _fact_mask(prompter: Prompter, pair: Mapping[str, Any]) -> list[bool]:
    """Returns which tokens of an answer bear the fact.

    These are the tokens of words that neither the question nor the opposite answer of the item
    has. An answer without such words is compared with the question alone. Another wording of the
    question counts together with the question itself.
    """
    question, answer, opposite = pair["question"], pair["answer"], pair["opposite"]
    if pair["wording"]:
        question = f"{pair['original']}\n{question}"
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
    """`TOKENS`: the items, each with its wordings and roles in order, then the retain set."""
    spec: FineTuning

    @cached_property
    def roles(self) -> list[str]:
        """The roles of an item, in order."""
        first = self.pairs.slice(0, 16).to_pylist()
        return [row["role"] for row in first if row["item"] == 0 and not row["wording"]]

    @cached_property
    def num_retain(self) -> int:
        """The number of pairs of the retain set; they belong to no item."""
        return int(self.pairs["item"].null_count)

    @cached_property
    def num_items(self) -> int:
        """The number of items."""
        return len(self._rows) - 1

    @cached_property
    def _rows(self) -> Any:
        """The first row of each item, then that of the retain set."""
        import numpy as np

        num_rows = int(self.pairs.num_rows) - self.num_retain
        items = self.pairs["item"].slice(0, num_rows).to_numpy()
        return np.append(np.flatnonzero(np.diff(items, prepend=-1)), num_rows)

    @cached_property
    def _starts(self) -> Any:
        """The first item of each fact, then the number of items.

        The items of a fact are consecutive.
        """
        import numpy as np

        facts = self.pairs["fact"].to_numpy()[self._rows[:-1]]
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

    def item(self, number: int, epoch: int = 0) -> Item:
        """Returns the item with this number, from 0, in the wording of an epoch.

        All wordings of its question come in turn. In one epoch, the items begin with different
        ones, so that a batch has all kinds.
        """
        num_roles = len(self.roles)
        start, end = (int(row) for row in self._rows[number : number + 2])
        num_wordings = (end - start) // num_roles
        first = start + (number + epoch) % num_wordings * num_roles
        return {role: self.pair(first + i) for i, role in enumerate(self.roles)}

    def batch(self, step: int) -> list[Item]:
        """Returns the global batch of a step, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        order = self._order(epoch)
        start = position * self.spec.batch_size
        numbers = order[start : start + self.spec.batch_size]
        items = [self.item(number, epoch) for number in numbers]
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
        return self.pair(int(self._rows[-1]) + order[position])

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
        shift=row["shift"] or 0.0,
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
