"""Selection by MEMO: which candidates are chosen, and the figures for the manifest."""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meow_ray.config import Select
from meow_ray.core import storage
from meow_ray.core.checks import conform
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.core.tables import TableSource
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.select.selection import count_undecided, select, summarize_selection

Scores = dict[str, list[float | None]]
"""MEMO by fact: that of the true answer, then those of candidates 0, 1, …"""

SCORES = st.dictionaries(
    st.sampled_from("abcd"),
    st.lists(st.sampled_from([None, math.nan, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=6),
    max_size=4,
)
ORDER = st.sampled_from(["largest", "smallest", "random"])


def rows_of(scores: Scores) -> list[dict[str, Any]]:
    return [
        {
            "fact_id": fact,
            "candidate_id": candidate_id,
            "question": f"{fact}?",
            "text": f"{fact}{candidate_id}",
            "memo": value,
        }
        for fact, values in scores.items()
        for candidate_id, value in enumerate(values, start=TRUE_ANSWER)
    ]


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMAS["memo"])


def selected(source: TableSource, spec: Select) -> pa.Table:
    with select(source, spec).batches() as reader:
        return reader.read_all().cast(SCHEMAS["selected"])


def chosen(scores: Scores, **spec: Any) -> dict[str, list[int]]:
    """Returns the chosen candidates by fact, in the order of their ranks."""
    by_fact: dict[str, list[int]] = {}
    for row in selected(table_of(rows_of(scores)), Select(**spec)).to_pylist():
        candidates = by_fact.setdefault(row["fact_id"], [])
        assert row["rank"] == len(candidates)
        candidates.append(row["candidate_id"])
    return by_fact


@pytest.mark.parametrize(
    ("scores", "spec", "expected"),
    [
        ({"a": [0.9, 0.1, 0.4, 0.3, 0.2]}, {"top_k": 2}, {"a": [1, 2]}),
        ({"a": [0.9, 0.1, 0.4, 0.3, 0.2]}, {"top_k": 2, "order": "smallest"}, {"a": [0, 3]}),
        ({"a": [0.9, 0.1, 0.4], "b": [0.0, 0.7, 0.6]}, {"top_k": 1}, {"a": [1], "b": [0]}),
        ({"a": [0.9, 0.5, 0.5, 0.5]}, {"top_k": 2}, {"a": [0, 1]}),
        ({"a": [0.9, 0.5, 0.5, 0.5]}, {"top_k": 2, "order": "smallest"}, {"a": [0, 1]}),
        ({"a": [0.9, 0.2, 0.5, 0.2]}, {"top_k": 3}, {"a": [1, 0, 2]}),
        ({"a": [0.9, None, 0.5, None, 0.6]}, {"top_k": 3}, {"a": [3, 1]}),
        ({"a": [0.9, None, 0.5, None, 0.6]}, {"top_k": 3, "order": "smallest"}, {"a": [1, 3]}),
        ({"a": [0.9, math.nan, 0.5, math.nan, 0.6]}, {"top_k": 3}, {"a": [3, 1]}),
        (
            {"a": [0.9, math.nan, 0.5, math.nan, 0.6]},
            {"top_k": 3, "order": "smallest"},
            {"a": [1, 3]},
        ),
        ({"a": [0.9, math.nan]}, {"top_k": 1, "order": "random"}, {}),
        ({"a": [0.9, 0.5], "b": [0.9, None], "c": [0.9]}, {"top_k": 3}, {"a": [0]}),
        ({"a": [None, 0.5]}, {"top_k": 1}, {"a": [0]}),
        ({}, {"top_k": 1}, {}),
        ({"a": [0.9]}, {"top_k": 1, "order": "random"}, {}),
    ],
)
def test_selection_by_hand(scores: Scores, spec: dict[str, Any], expected: dict[str, list[int]]):
    assert chosen(scores, **spec) == expected


def test_a_selected_row_carries_the_inverted_answer_and_its_memo():
    assert selected(table_of(rows_of({"a": [0.9, 0.1, 0.4]})), Select(top_k=1)).to_pylist() == [
        {
            "fact_id": "a",
            "candidate_id": 1,
            "rank": 0,
            "question": "a?",
            "answer": "a1",
            "memo": 0.4,
        }
    ]


def test_rows_are_sorted_by_fact_and_rank():
    scores: Scores = {fact: [0.9, 0.1, 0.4, 0.2] for fact in ("b", "a10", "B", "é", "a9")}
    table = selected(table_of(rows_of(scores)), Select(top_k=2))
    keys = list(zip(table["fact_id"].to_pylist(), table["rank"].to_pylist(), strict=True))
    assert keys == [(fact, rank) for fact in ("B", "a10", "a9", "b", "é") for rank in (0, 1)]


def test_the_summary_counts_facts_with_fewer_candidates():
    scores: Scores = {"a": [0.9, 0.1, 0.4], "b": [0.9, None, 0.4], "c": [0.9, math.nan], "d": [0.9]}
    table = table_of(rows_of(scores))
    spec = Select(top_k=2)
    assert summarize_selection(table, selected(table, spec), spec) == {
        "facts": 4,
        "facts_with_top_k": 1,
        "facts_with_fewer": 1,
        "facts_with_none": 2,
        "fewer": {"b": 1},
    }


def test_the_summary_names_a_limited_number_of_facts_and_counts_all():
    table = table_of(rows_of({fact: [0.9, 0.1] for fact in "edcba"}))
    spec = Select(top_k=2)
    summary = summarize_selection(table, selected(table, spec), spec, num_named=2)
    assert summary["fewer"] == {"a": 1, "b": 1}
    assert summary["facts_with_fewer"] == 5


def test_the_summary_of_an_empty_table_is_all_zeros():
    table = table_of([])
    spec = Select()
    assert summarize_selection(table, selected(table, spec), spec) == {
        "facts": 0,
        "facts_with_top_k": 0,
        "facts_with_fewer": 0,
        "facts_with_none": 0,
        "fewer": {},
    }


@settings(max_examples=15)
@given(st.data(), SCORES, st.integers(1, 4), ORDER)
def test_neither_the_order_of_the_rows_nor_their_files_matter(
    data: st.DataObject, scores: Scores, top_k: int, order: str
):
    rows = rows_of(scores)
    spec = Select(top_k=top_k, order=order)
    table = table_of(rows)
    expected = selected(table, spec)
    summary = summarize_selection(table, expected, spec)
    shuffled = table_of(data.draw(st.permutations(rows)))
    cuts = sorted([0, len(rows), *data.draw(st.lists(st.integers(0, len(rows)), max_size=3))])
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/{i}.parquet" for i in range(len(cuts) - 1)]
        for file, (first, last) in zip(files, pairwise(cuts), strict=True):
            storage.write_table(shuffled.slice(first, last - first), file)
        storage.write_table(expected, f"{folder}/selected.parquet")
        assert selected(shuffled, spec).equals(expected)
        assert selected(files, spec).equals(expected)
        assert summarize_selection(files, [f"{folder}/selected.parquet"], spec) == summary


@given(SCORES, st.integers(1, 4), ORDER)
def test_only_scored_candidates_are_chosen_and_as_many_as_there_are(
    scores: Scores, top_k: int, order: str
):
    table = selected(table_of(rows_of(scores)), Select(top_k=top_k, order=order))
    conform(table, "selected")
    assert TRUE_ANSWER not in table["candidate_id"].to_pylist()

    def can_be_chosen(value: float | None) -> bool:
        return order == "random" if value is None else not math.isnan(value)

    assert all(can_be_chosen(value) for value in table["memo"].to_pylist())
    for fact, values in scores.items():
        possible = sum(can_be_chosen(value) for value in values[1:])
        assert table["fact_id"].to_pylist().count(fact) == min(top_k, possible)


def test_a_random_order_chooses_answers_that_are_too_short_for_a_score():
    scores: Scores = {"a": [None, None, None]}
    assert chosen(scores, top_k=2) == {}
    assert sorted(chosen(scores, top_k=2, order="random")["a"]) == [0, 1]


def test_a_random_order_depends_on_the_seed_and_the_fact():
    scores: Scores = {fact: [0.9, *[0.5] * 8] for fact in "abcdefgh"}
    first = chosen(scores, order="random")
    assert first == chosen(scores, order="random")
    assert first != chosen(scores, order="random", seed=1)
    assert len({tuple(ids) for ids in first.values()}) > 1
    assert {i for ids in first.values() for i in ids} == set(range(8))


def test_a_random_order_depends_neither_on_the_scores_nor_on_other_facts():
    low: Scores = {"a": [0.9, 0.1, 0.2, 0.3, 0.4]}
    high: Scores = {"a": [0.1, 0.9, 0.8, 0.7, 0.6], "b": [0.9, 0.1]}
    assert chosen(low, order="random")["a"] == chosen(high, order="random")["a"]


@pytest.mark.parametrize(
    "values", [[0.0, 1.0, 2.0, 3.0], [9.0, 9.0, 9.0, 9.0]], ids=["rising", "equal"]
)
@pytest.mark.parametrize("name", ["ma", "rank", "answer", "key", "n", "selected"])
@pytest.mark.parametrize("order", ["largest", "smallest", "random"])
def test_additional_columns_of_memo_change_nothing(name: str, values: list[float], order: str):
    table = table_of(rows_of({"a": [0.9, 0.1, 0.4, 0.2]}))
    spec = Select(top_k=2, order=order)
    assert selected(table.append_column(name, pa.array(values)), spec).equals(selected(table, spec))


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint16()])
def test_the_widths_of_numbers_change_nothing(kind: pa.DataType):
    rows = [row for row in rows_of({"a": [0.75, 0.125, 0.5, 0.25]}) if row["candidate_id"] >= 0]
    table = table_of(rows)
    other = table.set_column(1, "candidate_id", table["candidate_id"].cast(kind))
    other = other.set_column(4, "memo", table["memo"].cast(pa.float32()))
    for order in ("largest", "random"):
        assert selected(other, Select(order=order)).equals(selected(table, Select(order=order)))


@pytest.mark.parametrize("order", ["largest", "smallest"])
def test_selection_from_the_authors_memo_file_equals_sorting_it(
    shared_data: Callable[[str], Path], order: str
):
    rows: list[dict[str, Any]] = []
    expected: dict[str, list[Any]] = {}
    for item in json.loads(shared_data("meow/memo_llama2_forget01.json").read_text()):
        fact = fact_id(item["question"], item["undesired_answer"])
        texts = [item["undesired_answer"], *(item[f"answer_{i}"] for i in range(4))]
        values = [item[f"answer_{i}_rouge1"] for i in range(4)]
        scores = [item["undesired_answer_rouge1"], *values]
        rows += [
            {
                "fact_id": fact,
                "candidate_id": candidate_id,
                "question": item["question"],
                "text": text,
                "memo": value,
            }
            for candidate_id, (text, value) in enumerate(
                zip(texts, scores, strict=True), start=TRUE_ANSWER
            )
        ]
        ranked = sorted(range(4), key=lambda i: values[i], reverse=order == "largest")
        expected[fact] = [(i, item[f"answer_{i}"], values[i]) for i in ranked[:3]]
    memo = table_of(rows[::-1])
    spec = Select(top_k=3, order=order)
    table = selected(memo, spec)
    candidates: dict[str, list[Any]] = {}
    for row in table.to_pylist():
        candidate = (row["candidate_id"], row["answer"], row["memo"])
        candidates.setdefault(row["fact_id"], []).append(candidate)
    assert candidates == expected
    assert table.num_rows == 120
    assert summarize_selection(memo, table, spec) == {
        "facts": 40,
        "facts_with_top_k": 40,
        "facts_with_fewer": 0,
        "facts_with_none": 0,
        "fewer": {},
    }


@pytest.mark.parametrize(
    ("bounds", "spec", "undecided"),
    [
        ([(0.9, 0.9), (0.1, 0.8), (0.5, 0.5)], {"top_k": 1}, 0),
        ([(0.9, 0.9), (0.1, 0.8), (0.5, 0.5)], {"top_k": 2}, 1),
        ([(0.9, 0.9), (0.1, 0.5), (0.5, 0.5)], {"top_k": 2}, 1),
        ([(0.9, 0.9), (0.5, 0.5), (0.1, 0.5)], {"top_k": 2}, 0),
        ([(0.9, 0.9), (0.1, 0.8), (0.5, 0.5)], {"top_k": 1, "order": "smallest"}, 1),
        ([(0.2, 0.2), (0.3, 0.8)], {"top_k": 1, "order": "smallest"}, 0),
        ([(0.2, 0.2), None], {"top_k": 2}, 0),
        ([(0.2, 0.2), (0.1, 0.1)], {"top_k": 4}, 0),
        ([(0.9, 0.9), (0.1, 0.8)], {"top_k": 2, "order": "random"}, 0),
    ],
)
def test_bounds_leave_a_selection_open_or_not(
    bounds: list[tuple[float, float] | None], spec: dict[str, Any], undecided: int
):
    scores: list[float | None] = [
        pair[0] if pair is not None and pair[0] == pair[1] else None for pair in bounds
    ]
    table = table_of(rows_of({"a": [None, *scores], "b": [0.5, 0.5]}))
    pairs = [(0.0, 1.0), *(pair or (None, None) for pair in bounds), (0.5, 0.5), (0.5, 0.5)]
    for name, values in zip(("memo_low", "memo_high"), zip(*pairs, strict=True), strict=True):
        table = table.append_column(name, pa.array(values, pa.float64()))
    assert count_undecided(table, Select(**spec)) == undecided
