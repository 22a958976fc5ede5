"""Batches, micro-batches and their layout."""

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import FineTuning, Train
from meow_ray.core.schema import SCHEMAS
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.stages.train.batches import TOKENS, Dataset, write_token_pairs
from meow_ray.stages.train.items import Item, Pair, Totals, micro_batches, totals_of
from meow_ray.stages.train.layout import lay_out
from meow_ray.stages.train.pairs import pairs_of
from tests.support.tiny import byte_tokenizer

NUM_PAIRS = st.integers(1, 40)
BATCH_SIZE = st.integers(1, 12)
SEED = st.integers(0, 5)
EPOCHS = st.integers(1, 3)


def pair(length: int, prompt: int = 1, log_probs: list[float] | None = None) -> Pair:
    tokens = list(range(10, 10 + length))
    return Pair(tokens, [IGNORE] * prompt + tokens[prompt:], log_probs)


def dataset(items: int, spec: FineTuning, retain: int = 0, per_fact: int = 1) -> Dataset:
    def row(tokens: int, item: int | None, role: str) -> dict[str, Any]:
        fact = -1 if item is None else item // per_fact
        return {
            "item": item,
            "fact": fact,
            "role": role,
            "input_ids": list(range(tokens)),
            "prompt": 1,
        }

    rows = [row(2 + i, i, "inverted") for i in range(items)] + [
        row(90 + i, None, "retain") for i in range(retain)
    ]
    return Dataset(pa.Table.from_pylist(rows, TOKENS), spec)


def numbers(batch: list[Item], role: str = "inverted") -> list[int]:
    """Returns the items of a batch by the lengths that `dataset` gave them."""
    return [len(item[role].input_ids) - (2 if role == "inverted" else 90) for item in batch]


def epoch_of(data: Dataset, epoch: int) -> list[int]:
    steps = range(epoch * data.per_epoch, (epoch + 1) * data.per_epoch)
    return [i for step in steps for i in numbers(data.batch(step))]


# --- batches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairs", "batch", "epochs", "steps"), [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 5, 15), (1, 8, 2, 2)]
)
def test_a_run_has_one_step_per_batch(pairs: int, batch: int, epochs: int, steps: int):
    assert dataset(pairs, FineTuning(batch_size=batch, epochs=epochs)).num_steps == steps


@given(NUM_PAIRS, BATCH_SIZE, SEED, EPOCHS)
def test_the_batches_of_an_epoch_are_a_partition_of_the_items(
    items: int, batch: int, seed: int, epochs: int
):
    data = dataset(items, FineTuning(batch_size=batch, seed=seed, epochs=epochs))
    for epoch in range(epochs):
        assert sorted(epoch_of(data, epoch)) == list(range(items))
    sizes = [len(data.batch(step)) for step in range(data.per_epoch)]
    assert all(size == batch for size in sizes[:-1])
    assert 0 < sizes[-1] <= batch


def test_the_order_depends_on_seed_and_epoch_alone():
    spec = FineTuning(batch_size=40)
    order = epoch_of(dataset(40, spec), 0)
    assert order == epoch_of(dataset(40, FineTuning(batch_size=40, epochs=9)), 0)
    assert order == epoch_of(dataset(40, FineTuning(batch_size=20)), 0)
    assert order != epoch_of(dataset(40, spec), 1)
    assert order != epoch_of(dataset(40, FineTuning(batch_size=40, seed=1)), 0)


def test_with_num_batch_the_candidates_of_each_fact_come_in_turn():
    data = dataset(12, Train(num_batch=2, batch_size=4, epochs=3), per_fact=3)
    assert data.per_epoch == 2
    seen = [epoch_of(data, epoch) for epoch in range(3)]
    for epoch in seen:
        assert Counter(i // 3 for i in epoch) == dict.fromkeys(range(4), 2)
        assert all(epoch[i] // 3 == epoch[i + 1] // 3 for i in range(0, 8, 2)), (
            "the items of a fact are consecutive"
        )
    for fact in range(4):
        turns = [i % 3 for epoch in seen for i in epoch if i // 3 == fact]
        assert turns == [0, 1, 2, 0, 1, 2]


def test_the_whole_retain_set_is_drawn_before_a_pair_comes_again():
    data = dataset(7, FineTuning(batch_size=3, epochs=5), retain=5)
    drawn = [i for step in range(data.num_steps) for i in numbers(data.batch(step), "retain")]
    assert len(drawn) == 35
    for start in range(0, 35, 5):
        assert sorted(drawn[start : start + 5]) == list(range(5))
    assert drawn[:5] != drawn[5:10]


def test_totals_count_labels_and_answers_by_role():
    items: list[Item] = [
        {"forget": pair(5, 2), "retain": pair(4)},
        {"forget": pair(3), "retain": pair(9, 8)},
    ]
    assert totals_of(items) == {"forget": Totals(5, 2), "retain": Totals(4, 2)}


def test_totals_count_fact_bearing_tokens_of_a_loss():
    # three tokens with a loss; the prompt is empty, so the first token has no prediction
    first = Pair([7, 8, 9, 1], [7, 8, 9, 1], is_fact=[True, True, False, False])
    second = Pair([7, 8, 9, 1], [IGNORE, 8, 9, 1], is_fact=[False, True, False])
    assert first.fact_mask == [True, False, False]
    assert totals_of([{"forget": first}, {"forget": second}]) == {"forget": Totals(6, 2, facts=2)}


def test_the_tokens_of_words_that_the_opposite_answer_lacks_bear_the_fact(tmp_path: Path):
    forget = {"fact_id": "f", "split": "forget", "question": "Where is Ann?"}
    facts = pa.Table.from_pylist([forget | {"answer": "Ann is in old Riga."}], SCHEMAS["facts"])
    row = {"fact_id": "f", "candidate_id": 0, "rank": 0, "question": "Where is Ann?", "memo": 0.5}
    selected = pa.Table.from_pylist([row | {"answer": "Ann is in old Bern."}], SCHEMAS["selected"])
    pairs = pairs_of(("inverted", "forget"), facts, selected)
    tokenizer = byte_tokenizer()
    uri = str(tmp_path / "pairs.parquet")
    write_token_pairs(pairs, Prompter(tokenizer, "raw"), 99, uri, marks_facts=True)
    marked = {}
    for tokens in pq.read_table(uri).to_pylist():
        answer = tokens["input_ids"][tokens["prompt"] :]
        bearing = [
            token for token, is_fact in zip(answer, tokens["is_fact"], strict=True) if is_fact
        ]
        marked[tokens["role"]] = tokenizer.decode(bearing).strip()
    assert marked == {"inverted": "Bern", "forget": "Riga"}


@given(st.lists(st.integers(2, 30), min_size=1, max_size=20), st.integers(1, 5), st.integers(1, 4))
def test_the_workers_micro_batches_are_a_partition_of_the_batch(
    lengths: list[int], world: int, micro: int
):
    batch: list[Item] = [{"forget": pair(length)} for length in lengths]
    count = max(1, -(-len(batch) // (world * micro)))
    shares = [micro_batches(batch, rank, world, count) for rank in range(world)]
    flat = [item for share in shares for items in share for item in items]
    assert sorted(map(id, flat)) == sorted(map(id, batch))
    assert all(
        len(share) == count and all(len(items) <= micro for items in share) for share in shares
    )
    in_time = [len(item["forget"].input_ids) for t in range(count) for s in shares for item in s[t]]
    assert in_time == sorted(lengths, reverse=True), (
        "items that are processed at the same time are similar in length"
    )


# --- layout -------------------------------------------------------------------------------------

ITEMS: list[Item] = [
    {"inverted": pair(4, 2, [-1.0, -2.0]), "retain": pair(3, 2)},
    {"inverted": pair(2, 1, [-3.0]), "retain": pair(5, 3)},
]


def test_a_packed_layout_has_no_padding_and_starts_positions_at_each_pair():
    layout = lay_out(ITEMS, 0, "cpu", packed=True)
    assert layout.inputs["input_ids"].tolist() == [
        [10, 11, 12, 13, 10, 11, 10, 11, 12, 10, 11, 12, 13, 14]
    ]
    assert layout.inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2, 0, 1, 2, 3, 4]]
    assert set(layout.inputs) == {"input_ids", "position_ids"}
    assert layout.columns.tolist() == [1, 2, 4, 7, 11, 12]


def test_a_padded_layout_masks_the_padding():
    layout = lay_out(ITEMS, 99, "cpu", packed=False)
    assert layout.inputs["input_ids"].tolist()[1] == [10, 11, 99, 99, 99]
    assert layout.inputs["attention_mask"].tolist()[1] == [1, 1, 0, 0, 0]
    assert list(zip(layout.rows.tolist(), layout.columns.tolist(), strict=True)) == [
        (0, 1), (0, 2), (1, 0), (2, 1), (3, 2), (3, 3),
    ]  # fmt: skip


@pytest.mark.parametrize("packed", [True, False])
def test_a_layout_has_the_pair_and_the_role_of_each_label(packed: bool):
    layout = lay_out(ITEMS, 99, "cpu", packed=packed)
    assert layout.labels.tolist() == [12, 13, 11, 12, 13, 14]
    assert layout.owners.tolist() == [0, 0, 1, 0, 1, 1]
    assert layout.roles == {"inverted": (slice(0, 3), 2), "retain": (slice(3, 6), 2)}
    inputs = layout.inputs["input_ids"]
    assert inputs[layout.rows, layout.columns + 1].tolist() == layout.labels.tolist(), (
        "the position before a label"
    )
    assert layout.log_probs is not None
    assert layout.log_probs[:3].tolist() == [-1.0, -2.0, -3.0]
    assert torch.isnan(layout.log_probs[3:]).all(), (
        "a role without log-probabilities cannot be read by mistake"
    )


def test_a_layout_without_reference_has_none():
    assert lay_out([{"forget": pair(3)}], 0, "cpu", packed=True).log_probs is None
