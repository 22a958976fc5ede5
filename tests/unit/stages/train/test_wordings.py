"""The wordings of an item's question: their pairs, their tokens, and which of them a step reads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import FineTuning, Train
from meow_ray.core import storage
from meow_ray.core.schema import SCHEMAS
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.stages.train import batches
from meow_ray.stages.train.batches import TOKENS, Dataset
from meow_ray.stages.train.pairs import PAIRS, pairs_of

FACTS = pa.Table.from_pylist(
    [
        {"fact_id": "a", "split": "forget", "question": "Qa?", "answer": "A."},
        {"fact_id": "b", "split": "forget", "question": "Qb?", "answer": "B."},
        {"fact_id": "z", "split": "retain", "question": "Qz?", "answer": "Z."},
    ],
    schema=SCHEMAS["facts"],
)
SELECTED = pa.Table.from_pylist(
    [
        {"fact_id": "a", "candidate_id": 0, "rank": rank, "question": "Qa?", "answer": f"a{rank}."}
        for rank in (0, 1)
    ],
    schema=SCHEMAS["selected"],
)


def paraphrases(*rows: tuple[str, int, str]) -> pa.Table:
    columns = ("fact_id", "paraphrase_id", "question")
    listed = [dict(zip(columns, row, strict=True)) | {"source": "given"} for row in rows]
    return pa.Table.from_pylist(listed, schema=SCHEMAS["paraphrases"])


TWO_OF_A = paraphrases(("a", 1, "Qa1?"), ("a", 2, "Qa2?"), ("a", 3, "Qa3?"), ("z", 1, "Qz1?"))


def table(roles: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    options = {"paraphrases": TWO_OF_A, "num_paraphrases": 2} | options
    with pairs_of(roles, FACTS, SELECTED, **options).batches() as reader:
        rows: list[dict[str, Any]] = reader.read_all().cast(PAIRS).to_pylist()
    return rows


def test_an_item_has_all_its_roles_in_each_wording():
    rows = table(("inverted", "forget", "retain"))
    assert [(row["item"], row["wording"], row["question"], row["answer"]) for row in rows] == [
        (0, 0, "Qa?", "a0."),
        (0, 0, "Qa?", "A."),
        (0, 1, "Qa1?", "a0."),
        (0, 1, "Qa1?", "A."),
        (0, 2, "Qa2?", "a0."),
        (0, 2, "Qa2?", "A."),
        (1, 0, "Qa?", "a1."),
        (1, 0, "Qa?", "A."),
        (1, 1, "Qa1?", "a1."),
        (1, 1, "Qa1?", "A."),
        (1, 2, "Qa2?", "a1."),
        (1, 2, "Qa2?", "A."),
        (None, 0, "Qz?", "Z."),
    ]
    assert {row["original"] for row in rows} == {"Qa?", "Qz?"}
    assert [row["opposite"] for row in rows[2:4]] == ["A.", "a0."]


def test_a_fact_without_rewordings_keeps_its_question_alone():
    rows = table(("forget",))
    assert [(row["fact_id"], row["wording"]) for row in rows] == [
        ("a", 0),
        ("a", 1),
        ("a", 2),
        ("b", 0),
    ]


def test_each_wording_gets_the_log_probabilities_that_were_scored_with_it():
    scored = [
        {"role": "forget", "fact_id": "a", "question": question, "answer": "A.", "log_probs": [p]}
        for question, p in (("Qa?", -1.0), ("Qa1?", -2.0))
    ]
    reference = pa.Table.from_pylist(scored, schema=SCHEMAS["reference"])
    rows = table(("forget",), num_paraphrases=1, reference=reference)
    assert [row["log_probs"] for row in rows] == [[-1.0], [-2.0], None]


def tokens(
    tokenizer: Any, folder: Path, paraphrases: pa.Table, max_length: int = 512, **options: Any
) -> pa.Table:
    pairs = pairs_of(("forget",), FACTS, None, paraphrases=paraphrases, num_paraphrases=4)
    uri = str(folder / "tokens.parquet")
    batches.write_token_pairs(pairs, Prompter(tokenizer, "raw"), max_length, uri, **options)
    return storage.read_table([uri])


def test_a_wording_that_is_too_long_is_left_out(tiny_tokenizer: Any, tmp_path: Path):
    longer = paraphrases(("a", 1, "Qa? " * 20), ("a", 2, "Qa2?"))
    written = tokens(tiny_tokenizer, tmp_path, longer, max_length=20)
    assert written.select(["item", "wording"]).to_pylist() == [
        {"item": 0, "wording": 0},
        {"item": 0, "wording": 2},
        {"item": 1, "wording": 0},
    ]


def test_the_words_of_the_question_bear_no_fact_in_any_wording(tiny_tokenizer: Any, tmp_path: Path):
    facts = [
        {"fact_id": "a", "split": "forget", "question": "Where born?", "answer": "Born Rome"},
    ]
    pairs = pairs_of(
        ("forget",),
        pa.Table.from_pylist(facts, schema=SCHEMAS["facts"]),
        None,
        paraphrases=paraphrases(("a", 1, "Birthplace?")),
        num_paraphrases=1,
    )
    uri = str(tmp_path / "tokens.parquet")
    prompter = Prompter(tiny_tokenizer, "raw")
    batches.write_token_pairs(pairs, prompter, 512, uri, marks_facts=True)
    first, second = storage.read_table([uri])["is_fact"].to_pylist()
    assert first == second
    assert 0 < sum(first) < len(first)


# --- which wording a step reads -------------------------------------------------------------------


def dataset(wordings: Sequence[int], spec: FineTuning, retain: int = 0) -> Dataset:
    """Returns items with as many wordings; a token tells the wording, another one the item."""
    rows = [
        {
            "item": item,
            "wording": wording,
            "fact": item,
            "role": role,
            "input_ids": [100 + item, 200 + wording, 300],
            "prompt": 1,
        }
        for item, count in enumerate(wordings)
        for wording in range(count)
        for role in ("inverted", "forget")
    ]
    rows += [
        {"fact": 99, "role": "retain", "wording": 0, "input_ids": [500 + i, 1], "prompt": 1}
        for i in range(retain)
    ]
    return Dataset(pa.Table.from_pylist(rows, TOKENS), spec)


def read(data: Dataset, epoch: int) -> dict[int, int]:
    """Returns the wording of each item in an epoch."""
    steps = range(epoch * data.per_epoch, (epoch + 1) * data.per_epoch)
    wordings = {}
    for item in (item for step in steps for item in data.batch(step)):
        read_by_role = {(pair.input_ids[0], pair.input_ids[1]) for pair in item.values()}
        (number, wording) = next(iter(read_by_role))
        assert len(read_by_role) == 1, "the roles of an item share one wording"
        wordings[number - 100] = wording - 200
    return wordings


def test_the_wordings_of_an_item_come_in_turn():
    data = dataset([3, 3, 1, 2], Train(batch_size=2, epochs=3))
    assert [read(data, epoch) for epoch in range(3)] == [
        {0: 0, 1: 1, 2: 0, 3: 1},
        {0: 1, 1: 2, 2: 0, 3: 0},
        {0: 2, 1: 0, 2: 0, 3: 1},
    ]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 5), st.integers(0, 3))
def test_the_batches_depend_on_pairs_settings_and_step_alone(
    wordings: list[int], batch_size: int, retain: int
):
    spec = Train(batch_size=batch_size, epochs=4)
    once, again = (dataset(wordings, spec, retain) for _ in range(2))
    steps = range(once.num_steps)
    in_order = [once.batch(step) for step in steps]
    assert [again.batch(step) for step in reversed(steps)] == in_order[::-1]
    assert (once.num_items, once.num_retain) == (len(wordings), retain)


@pytest.mark.parametrize("num_batch", [None, 2])
def test_an_epoch_has_as_many_items_with_wordings_as_without(num_batch: int | None):
    spec = Train(batch_size=3, num_batch=num_batch)
    assert dataset([4] * 7, spec).per_epoch == dataset([1] * 7, spec).per_epoch


def test_the_retain_set_is_read_after_the_wordings():
    data = dataset([2, 3], Train(batch_size=2, epochs=1), retain=2)
    drawn = sorted(item["retain"].input_ids[0] for item in data.batch(0))
    assert drawn == [500, 501]
    assert data.batch(0)[0]["retain"].labels[0] == IGNORE
