"""The sample of facts that a suite evaluates."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.core.schema import SCHEMAS
from meow_ray.stages.evaluate.suites import sample

IDS = [f"{i:02}" for i in range(20)]


def facts_table(ids: list[str]) -> pa.Table:
    rows = [{"fact_id": i, "split": "retain", "question": f"{i}?", "answer": i} for i in ids]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])


@given(st.permutations(IDS), st.integers(1, 19), st.integers(0, 3))
def test_a_sample_does_not_depend_on_the_order_of_the_rows(ids: list[str], count: int, seed: int):
    drawn = sample(facts_table(ids), count, seed)
    assert drawn.equals(sample(facts_table(IDS), count, seed))
    assert drawn.num_rows == count == len(set(drawn["fact_id"].to_pylist()))


@given(st.integers(2, 19), st.integers(0, 3))
def test_a_smaller_sample_is_the_beginning_of_a_larger_one(count: int, seed: int):
    table = facts_table(IDS)
    larger = sample(table, count, seed)
    assert larger.slice(0, count - 1).equals(sample(table, count - 1, seed))


@pytest.mark.parametrize("count", [None, 20, 50])
def test_a_sample_of_at_least_as_many_facts_is_all_of_them(count: int | None):
    assert sample(facts_table(IDS), count, 0).equals(facts_table(IDS))


def test_the_seed_draws_the_sample():
    assert not sample(facts_table(IDS), 5, 0).equals(sample(facts_table(IDS), 5, 1))
