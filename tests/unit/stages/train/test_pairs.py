"""The pairs that training reads, and their tokens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Train
from meow_ray.core import storage
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.stages.train import batches
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.pairs import PAIRS, pairs_of
from tests.support.tiny import chat

FACTS = [
    {"fact_id": "a", "split": "forget", "question": "Qa?", "answer": "A."},
    {"fact_id": "b", "split": "forget", "question": "Qb?", "answer": "B."},
    {"fact_id": "y", "split": "retain", "question": "Qy?", "answer": "Y."},
    {"fact_id": "z", "split": "retain", "question": "Qz?", "answer": "Z."},
]
SELECTED = [
    {
        "fact_id": fact,
        "candidate_id": 7,
        "rank": rank,
        "question": f"Q{fact}?",
        "answer": f"{fact}{rank}.",
        "memo": 0.5,
    }
    for fact in "ba"
    for rank in (1, 0)
]


def facts() -> pa.Table:
    return pa.Table.from_pylist(FACTS, schema=SCHEMAS["facts"])


def selected(rows: list[dict[str, Any]] | None = None) -> pa.Table:
    return pa.Table.from_pylist(SELECTED if rows is None else rows, schema=SCHEMAS["selected"])


def table(names: Sequence[str], *inputs: Any, **options: Any) -> pa.Table:
    with pairs_of(names, *inputs, **options).batches() as reader:
        return reader.read_all().cast(PAIRS)


def roles(*names: str) -> list[tuple[Any, ...]]:
    """Returns item, role, fact and answer of each pair."""
    rows = table(names, facts(), selected(), ("No idea.",)).to_pylist()
    return [(row["item"], row["role"], row["fact_id"], row["answer"]) for row in rows]


def test_an_item_is_an_inverted_fact_with_the_answers_it_is_compared_to():
    assert roles("inverted") == [
        (0, "inverted", "a", "a0."),
        (1, "inverted", "a", "a1."),
        (2, "inverted", "b", "b0."),
        (3, "inverted", "b", "b1."),
    ]
    assert roles("inverted", "forget")[:4] == [
        (0, "inverted", "a", "a0."),
        (0, "forget", "a", "A."),
        (1, "inverted", "a", "a1."),
        (1, "forget", "a", "A."),
    ]


def test_without_inverted_facts_an_item_is_a_fact_to_forget():
    assert roles("idk", "forget") == [
        (0, "idk", "a", "No idea."),
        (0, "forget", "a", "A."),
        (1, "idk", "b", "No idea."),
        (1, "forget", "b", "B."),
    ]


def test_the_retain_set_belongs_to_no_item():
    assert roles("forget", "retain")[2:] == [
        (None, "retain", "y", "Y."),
        (None, "retain", "z", "Z."),
    ]


def test_a_refusal_is_the_same_at_each_run_and_depends_on_the_fact():
    many = tuple(str(i) for i in range(50))
    first, again = (table(("idk",), facts(), None, many)["answer"].to_pylist() for _ in range(2))
    assert first == again
    assert len(set(first)) == 2


NEIGHBOURS = pa.Table.from_pylist(
    [
        {"fact_id": "a", "neighbour_id": 1, "kind": "neighbour", "question": "Qn?", "answer": "N."},
        {"fact_id": "", "neighbour_id": 0, "kind": "generic", "question": "Qg?", "answer": "G."},
    ],
    schema=SCHEMAS["neighbours"],
)


@pytest.mark.parametrize(
    ("retain", "retained"),
    [
        ("none", []),
        ("given", [("y", "Y."), ("z", "Z.")]),
        ("neighbours", [("/generic/0", "G."), ("a/neighbour/1", "N.")]),
        ("both", [("/generic/0", "G."), ("a/neighbour/1", "N."), ("y", "Y."), ("z", "Z.")]),
    ],
)
def test_the_retain_set_has_the_facts_and_the_neighbours_that_are_asked_for(
    retain: str, retained: list[tuple[str, str]]
):
    names = ("forget", "retain")
    rows = table(names, facts(), None, neighbours=NEIGHBOURS, retain=retain).to_pylist()
    assert [(row["fact_id"], row["answer"]) for row in rows if row["role"] == "retain"] == retained
    assert [row["fact_id"] for row in rows if row["role"] == "forget"] == ["a", "b"]


def test_inverted_facts_and_neighbours_need_no_facts():
    rows = table(
        ("inverted", "retain"), None, selected(), neighbours=NEIGHBOURS, retain="neighbours"
    ).to_pylist()
    assert [row["item"] for row in rows] == [0, 1, 2, 3, None, None]


def test_an_empty_table_of_neighbours_is_refused():
    empty = NEIGHBOURS.slice(0, 0)
    for retain in ("neighbours", "both"):
        with pytest.raises(MeowError) as error:
            table(("forget", "retain"), facts(), None, neighbours=empty, retain=retain)
        assert str(error.value) == (
            "`neighbours`: the table is empty, so there is nothing to retain. Write questions "
            "that name somebody or something, or set `train.retain` to given."
        )


def test_an_empty_retain_set_is_refused():
    with pytest.raises(MeowError) as refused:
        pairs_of(("forget", "retain"), facts().slice(0, 2), None)
    assert str(refused.value) == (
        "`ingest.retain`: the objective reads the retain set, which is empty. Name files of facts "
        "to retain."
    )


def test_inverted_facts_of_an_unknown_fact_are_refused():
    with pytest.raises(MeowError) as refused:
        pairs_of(("inverted", "forget"), facts(), selected([SELECTED[0] | {"fact_id": "c"}]))
    assert str(refused.value) == (
        "`selected`: the fact c has inverted facts, but it is not among the facts to forget. Use "
        "`facts` and `selected` of one run."
    )


def test_reference_log_probs_are_joined_by_role_fact_and_answer():
    rows = [
        {
            "role": "forget",
            "fact_id": fact,
            "question": "",
            "answer": f"{fact.upper()}.",
            "log_probs": [-1.0, -2.0],
        }
        for fact in "ab"
    ]
    rows.append(
        {"role": "inverted", "fact_id": "a", "question": "", "answer": "a1.", "log_probs": [-3.0]}
    )
    reference = pa.Table.from_pylist(rows, schema=SCHEMAS["reference"])
    inputs = (facts(), selected())
    names = ("inverted", "forget")
    scored = table(names, *inputs, reference=reference, compared=("forget",))
    assert scored["log_probs"].to_pylist() == [
        None,
        [-1.0, -2.0],
        [-3.0],
        [-1.0, -2.0],
        *([None, [-1.0, -2.0]] * 2),
    ]
    assert scored.drop_columns("log_probs").equals(table(names, *inputs).drop_columns("log_probs"))
    message = (
        r"`reference`: there are no log-probabilities for the role inverted of the fact [ab]\."
    )
    with pytest.raises(MeowError, match=message):
        table(names, *inputs, reference=reference, compared=names)


def tokens(
    pairs: Query, tokenizer: Any, template: str, folder: Path, max_length: int = 512
) -> pa.Table:
    uri = str(folder / "tokens.parquet")
    batches.write_token_pairs(pairs, Prompter(tokenizer, template), max_length, uri)
    return storage.read_table([uri])


def test_a_reference_of_another_model_is_refused(tiny_tokenizer: Any, tmp_path: Path):
    row = {"role": "forget", "fact_id": "a", "question": "", "answer": "A.", "log_probs": [-1.0]}
    reference = pa.Table.from_pylist([row], schema=SCHEMAS["reference"])
    pairs = pairs_of(("forget",), facts(), None, reference=reference)
    message = "an answer of the fact a has 3 tokens, but 1 log-probabilities"
    with pytest.raises(MeowError, match=message):
        tokens(pairs, tiny_tokenizer, "raw", tmp_path)


def test_a_pair_that_is_too_long_is_refused_with_its_fact(tiny_tokenizer: Any, tmp_path: Path):
    with pytest.raises(MeowError, match=r"a pair of the fact a has 8 tokens \(limit 5\)"):
        tokens(pairs_of(("forget",), facts(), None), tiny_tokenizer, "raw", tmp_path, 5)


def test_additional_columns_of_a_users_tables_are_not_read():
    wide = facts()
    for name in ("item", "number", "role", "position"):
        wide = wide.append_column(name, pa.array([7] * wide.num_rows))
    row = {
        "role": "forget",
        "fact_id": "a",
        "question": "",
        "answer": "A.",
        "log_probs": [-1.0],
        "number": 3,
        "item": 4,
    }
    names = ("inverted", "forget", "idk", "retain")
    reference = pa.Table.from_pylist([row])
    pairs = table(names, wide, selected(), ("No idea.",), reference=reference)
    assert pairs.drop_columns("log_probs").equals(
        table(names, facts(), selected(), ("No idea.",)).drop_columns("log_probs")
    )
    assert pairs["log_probs"].to_pylist().count([-1.0]) == 2


def test_a_fact_is_numbered_across_pieces(
    tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pairs = pairs_of(("inverted", "forget"), facts(), selected())
    whole = tokens(pairs, tiny_tokenizer, "raw", tmp_path)
    for piece in (1, 3):
        monkeypatch.setattr(batches, "PIECE", piece)
        assert tokens(pairs, tiny_tokenizer, "raw", tmp_path).equals(whole)


def test_tokens_mask_the_question_and_group_items(tiny_tokenizer: Any, tmp_path: Path):
    pairs = pairs_of(("inverted", "forget", "retain"), facts(), selected())
    data = Dataset(tokens(pairs, tiny_tokenizer, "chat", tmp_path), Train(batch_size=4))
    assert (data.roles, data.num_items, data.num_retain) == (["inverted", "forget"], 4, 2)
    assert data.pairs["fact"].to_pylist() == [0] * 4 + [1] * 4 + [2, 3]
    first = data.item(0)["forget"]
    assert tiny_tokenizer.decode(first.input_ids) == chat("Qa?") + "A.<|end|>"
    assert first.num_labels == 3

    def answers(role: str) -> list[str]:
        labels = [
            [label for label in item[role].labels if label != IGNORE] for item in data.batch(0)
        ]
        return sorted(map(tiny_tokenizer.decode, labels))

    assert answers("inverted") == [f"{text}.<|end|>" for text in ("a0", "a1", "b0", "b1")]
    assert answers("forget") == ["A.<|end|>"] * 2 + ["B.<|end|>"] * 2
    assert answers("retain") == ["Y.<|end|>"] * 2 + ["Z.<|end|>"] * 2
