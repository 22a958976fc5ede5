"""Tests of the tables that `invert` writes: candidates, rejects, shortfall, and their figures."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.core.manifest import MAIN, REJECTS_FILE, SHORTFALL_FILE
from meow_ray.core.schema import CANDIDATE_REJECTS_SCHEMA, SCHEMAS, SHORTFALL_SCHEMA
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.stages.invert.candidates import write_candidates

CANDIDATE = pa.struct(
    {"text": pa.string(), "style": pa.string(), "attempt": pa.int32(), "seed": pa.int64()}
)
REJECT = pa.struct(
    {"text": pa.string(), "reason": pa.string(), "style": pa.string(), "attempt": pa.int32()}
)
RESULTS = pa.schema(
    {
        "fact_id": pa.string(),
        "question": pa.string(),
        "answer": pa.string(),
        "candidates": pa.list_(CANDIDATE),
        "rejects": pa.list_(REJECT),
        "distance": pa.float64(),
        "distinctness": pa.float64(),
        "left_out": pa.list_(pa.string()),
    }
)
"""The columns of facts after `InvertSteps`."""


def result(fact: str, texts: list[str], reasons: list[str], **fields: Any) -> dict[str, Any]:
    """Returns a row of `RESULTS`: a fact with these candidates, and rejects for these reasons."""
    candidates = [
        {"text": text, "style": "chat", "attempt": i, "seed": 7} for i, text in enumerate(texts)
    ]
    rejects = [
        {"text": f"not {i}", "reason": reason, "style": "chat", "attempt": 0}
        for i, reason in enumerate(reasons)
    ]
    row = {
        "fact_id": fact,
        "question": f"{fact}?",
        "answer": f"{fact}!",
        "candidates": candidates,
        "rejects": rejects,
    }
    return row | {"distance": 0.5, "distinctness": 0.25, "left_out": []} | fields


THREE_FACTS = [
    result("c", ["x", "y"], ["loop"], left_out=["seed", "judge.n"]),
    result("a", ["it's z"], ["loop", "meta", "loop"], distance=1.0, distinctness=None),
    result("b", [], [], distance=None, distinctness=None, left_out=["seed"]),
]


def write(
    folder: Path, on_shortfall: str = "keep", rows: list[dict[str, Any]] = THREE_FACTS
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """Writes the tables, where a fact needs two candidates; returns the figures and the tables."""
    results = pa.Table.from_pylist(rows, schema=RESULTS)
    paths = {name: str(folder / name) for name in (MAIN, REJECTS_FILE, SHORTFALL_FILE)}
    summary = write_candidates(
        Query("SELECT * FROM results", {"results": results}),
        wanted=2,
        on_shortfall=on_shortfall,
        generator="o'model",
        paths=paths,
    )
    return summary, {name: pq.read_table(path) for name, path in paths.items()}


def test_candidates_are_numbered_and_sorted(tmp_path: Path):
    _, tables = write(tmp_path)
    assert tables[MAIN].schema == SCHEMAS["candidates"]
    a = {"fact_id": "a", "question": "a?", "answer": "a!", "seed": 7, "generator": "o'model"}
    c = {"fact_id": "c", "question": "c?", "answer": "c!", "seed": 7, "generator": "o'model"}
    assert tables[MAIN].to_pylist() == [
        a | {"candidate_id": 0, "inverted_answer": "it's z", "attempt": 0},
        c | {"candidate_id": 0, "inverted_answer": "x", "attempt": 0},
        c | {"candidate_id": 1, "inverted_answer": "y", "attempt": 1},
    ]


def test_rejects_are_numbered_and_sorted(tmp_path: Path):
    _, tables = write(tmp_path)
    assert tables[REJECTS_FILE].schema == CANDIDATE_REJECTS_SCHEMA
    made = {"attempt": 0, "style": "chat"}
    assert tables[REJECTS_FILE].to_pylist() == [
        made | {"fact_id": "a", "number": 0, "reason": "loop", "text": "not 0"},
        made | {"fact_id": "a", "number": 1, "reason": "meta", "text": "not 1"},
        made | {"fact_id": "a", "number": 2, "reason": "loop", "text": "not 2"},
        made | {"fact_id": "c", "number": 0, "reason": "loop", "text": "not 0"},
    ]


def test_the_shortfall_lists_facts_with_too_few_and_the_reasons(tmp_path: Path):
    _, tables = write(tmp_path)
    assert tables[SHORTFALL_FILE].schema == SHORTFALL_SCHEMA
    assert tables[SHORTFALL_FILE].to_pylist() == [
        {"fact_id": "a", "num_candidates": 1, "reasons": "loop 2, meta 1"},
        {"fact_id": "b", "num_candidates": 0, "reasons": "nothing was proposed"},
    ]


def test_the_figures_for_the_manifest(tmp_path: Path):
    assert write(tmp_path)[0] == {
        "facts": 3,
        "facts_with_enough": 1,
        "facts_with_none": 1,
        "candidates": 3,
        "mean_distance": 0.75,
        "mean_distinctness": 0.25,
        "rejected_by_rule": {"loop": 3, "meta": 1},
        "left_out": {"judge.n": 1, "seed": 2},
        "facts_short": {"a": 1, "b": 0},
    }


def test_drop_leaves_out_facts_with_too_few(tmp_path: Path):
    summary, tables = write(tmp_path, "drop")
    assert tables[MAIN]["fact_id"].to_pylist() == ["c", "c"]
    assert tables[SHORTFALL_FILE]["fact_id"].to_pylist() == ["a", "b"], "they are still listed"
    assert summary["facts_with_enough"] == 1


def test_fail_names_facts_with_too_few_and_writes_nothing(tmp_path: Path):
    with pytest.raises(MeowError) as caught:
        write(tmp_path, "fail")
    assert str(caught.value) == (
        "`invert`: 2 of 3 facts have fewer than 2 inverted facts:\n"
        "  a: 1 of 2 (loop 2, meta 1)\n"
        "  b: 0 of 2 (nothing was proposed)\n"
        "Set `invert.on_shortfall` to keep or drop to continue with the answers so far, or set "
        "`invert.model` to a larger model."
    )
    assert not list(tmp_path.iterdir())


def test_fail_writes_the_tables_if_each_fact_has_enough(tmp_path: Path):
    _, tables = write(tmp_path, "fail", THREE_FACTS[:1])
    assert tables[MAIN].num_rows == 2


def test_no_candidate_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(
        MeowError,
        match=r"no valid inverted facts for any of 1 facts \(rejects by rule: \{'meta': 2\}\)",
    ):
        write(tmp_path, rows=[result("a", [], ["meta", "meta"])])


def test_nothing_left_after_dropping_is_an_error(tmp_path: Path):
    with pytest.raises(MeowError, match=r"too few valid inverted facts for each of 2 facts"):
        write(tmp_path, "drop", THREE_FACTS[1:])
