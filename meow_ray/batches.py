"""What a training step reads: pairs by role, the global batch of a step, its cut into micro-batches."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import FineTuning, Train
from meow_ray.errors import MeowError
from meow_ray.prompts import IGNORE, Prompter
from meow_ray.schema import SCHEMAS

PAIRS = pa.schema([("item", pa.int32()), *SCHEMAS["reference"]])
"""What training reads: the pairs of one item stand beside each other in a micro-batch; those of the retain set belong
to none. `log_probs` are those of the answer's tokens in the model before training."""


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


def pairs_of(
    roles: Sequence[str], facts: pa.Table | None, selected: pa.Table | None, idk_answers: Sequence[str] = ()
) -> pa.Table:
    """Returns the pairs that an objective trains on, as `PAIRS`: an item for each inverted fact, else for each fact.

    Raises:
        MeowError: a role has no rows.
    """
    forget = _split(facts, "forget")
    if "inverted" in roles:
        assert selected is not None
        items = selected.sort_by([("fact_id", "ascending"), ("rank", "ascending")]).to_pylist()
    else:
        items = [forget[fact] for fact in sorted(forget)]
    rows = []
    for number, item in enumerate(items):
        fact = item["fact_id"]
        for role in roles:
            if role == "retain":
                continue
            if role != "inverted" and fact not in forget:
                raise MeowError(f"The fact {fact} has inverted facts, but is not among the facts to forget.")
            source = item if role == "inverted" else forget[fact]
            answer = source["answer"]
            if role == "idk":
                answer = random.Random(fact).choice(idk_answers)  # noqa: S311 - not for secrets
            rows.append({"item": number, "role": role, **source, "answer": answer})
    if "retain" in roles:
        retain = _split(facts, "retain")
        if not retain:
            raise MeowError("The objective reads facts to keep, and there are none: set `ingest.retain`.")
        rows += [{"role": "retain", **retain[fact]} for fact in sorted(retain)]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def with_reference(pairs: pa.Table, reference: pa.Table, roles: Sequence[str]) -> pa.Table:
    """Fills `log_probs` of `PAIRS` from the table `reference`.

    Raises:
        MeowError: a pair of one of the roles is not there.
    """
    known = {(row["role"], row["fact_id"], row["answer"]): row["log_probs"] for row in reference.to_pylist()}
    rows = pairs.select(["role", "fact_id", "answer"]).to_pylist()
    found = [known.get((row["role"], row["fact_id"], row["answer"])) for row in rows]
    for row, values in zip(rows, found, strict=True):
        if values is None and row["role"] in roles:
            raise MeowError(
                f"`reference` has no log-probabilities of the role {row['role']} of the fact {row['fact_id']}."
            )
    return pairs.set_column(
        pairs.schema.get_field_index("log_probs"), "log_probs", pa.array(found, PAIRS.field("log_probs").type)
    )


def _split(facts: pa.Table | None, split: str) -> dict[str, dict[str, Any]]:
    if facts is None:
        return {}
    return {row["fact_id"]: row for row in facts.filter(pc.field("split") == split).to_pylist()}


@dataclass(frozen=True)
class Dataset:
    """All pairs of a run; the batch of a step is a function of the seed and the step alone."""

    items: list[Item]
    facts: list[list[int]]
    """The items of each fact."""
    retain: list[Pair]
    spec: FineTuning

    @cached_property
    def per_epoch(self) -> int:
        """Optimiser steps of an epoch."""
        return -(-len(self._order(0)) // self.spec.batch_size)

    @cached_property
    def num_steps(self) -> int:
        """Optimiser steps of a whole run."""
        return self.spec.epochs * self.per_epoch

    def batch(self, step: int) -> list[Item]:
        """Returns the global batch of a step, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        order, start = self._order(epoch), position * self.spec.batch_size
        chosen = order[start : start + self.spec.batch_size]
        if not self.retain:
            return [self.items[i] for i in chosen]
        drawn = epoch * len(order) + start
        return [self.items[i] | {"retain": self._retained(drawn + offset)} for offset, i in enumerate(chosen)]

    def _order(self, epoch: int) -> Sequence[int]:
        times = self.spec.num_batch if isinstance(self.spec, Train) else None
        if times is None:
            return _shuffled(len(self.items), f"{self.spec.seed}/{epoch}")
        facts = [self.facts[i] for i in _shuffled(len(self.facts), f"{self.spec.seed}/{epoch}")]
        return [items[(epoch * times + turn) % len(items)] for items in facts for turn in range(times)]

    def _retained(self, number: int) -> Pair:
        """Returns the retain pair that is drawn as the `number`th: all of them in a new order, again and again."""
        again, position = divmod(number, len(self.retain))
        return self.retain[_shuffled(len(self.retain), f"{self.spec.seed}/retain/{again}")[position]]


@lru_cache(maxsize=4)
def _shuffled(count: int, seed: str) -> Sequence[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)  # noqa: S311 - not for secrets
    return order


def load(table: pa.Table, prompter: Prompter, spec: FineTuning) -> Dataset:
    """Tokenises `PAIRS`.

    Raises:
        MeowError: there are none, or one is longer than `max_length`.
    """
    items: dict[int, Item] = {}
    facts: dict[str, dict[int, None]] = {}
    retain = []
    for row in table.to_pylist():
        pair = Pair(*prompter.encode_pair(row["question"], row["answer"]), row["log_probs"])
        if len(pair.input_ids) > spec.max_length:
            raise MeowError(
                f"The pair of the fact {row['fact_id']} has {len(pair.input_ids)} tokens, `max_length` is "
                f"{spec.max_length}; raise it."
            )
        if pair.log_probs is not None and len(pair.log_probs) != pair.num_labels:
            raise MeowError(
                f"`reference` has {len(pair.log_probs)} log-probabilities of an answer of the fact {row['fact_id']}, "
                f"which has {pair.num_labels} tokens: it is of another model or template."
            )
        if row["item"] is None:
            retain.append(pair)
        else:
            items.setdefault(row["item"], {})[row["role"]] = pair
            facts.setdefault(row["fact_id"], {})[row["item"]] = None
    if not items:
        raise MeowError("There is nothing to train on: no pair of question and answer came through.")
    return Dataset([items[i] for i in sorted(items)], [list(of) for of in facts.values()], retain, spec)


def totals(batch: Sequence[Item]) -> dict[str, tuple[int, int]]:
    """Returns for each role the tokens that a loss is taken on, and the answers, of a batch."""
    tokens: Counter[str] = Counter()
    for item in batch:
        for role, pair in item.items():
            tokens[role] += pair.num_labels
    return {role: (count, len(batch)) for role, count in tokens.items()}


def micro_batches(batch: Sequence[Item], rank: int, world_size: int, count: int) -> list[list[Item]]:
    """Returns one worker's share of a batch as `count` micro-batches; some may be empty.

    Items of about one length stand together, at the same time on all workers, so that little is padded and nobody
    waits long.
    """
    items = sorted(batch, key=lambda item: sum(len(pair.input_ids) for pair in item.values()), reverse=True)
    slots = world_size * count
    bounds = [len(items) * slot // slots for slot in range(slots + 1)]
    return [items[bounds[slot] : bounds[slot + 1]] for slot in range(rank, slots, world_size)]


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
        rows, columns = [0] * len(found), [starts[i] + t for i, t in zip(number, position, strict=True)]
    else:
        width = max(lengths)
        inputs = {
            "input_ids": tensor([pair.input_ids + [pad] * (width - len(pair.input_ids)) for pair in pairs]),
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
