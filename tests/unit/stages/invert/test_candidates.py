from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.core.manifest import MAIN, REJECTS_FILE
from meow_ray.core.manifest import SHORTFALL_SCHEMA as SHORTFALL_FILE
from meow_ray.core.schema import CANDIDATE_REJECTS_SCHEMA, SCHEMAS, SHORTFALL_SCHEMA, TRUE_ANSWER
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.invert.candidates import write
from meow_ray.stages.invert.own_candidates import complete

# --- what a generator wrote ----------------------------------------------------------------------

RESULTS = pa.schema(
    [
        ("fact_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        (
            "candidates",
            pa.list_(
                pa.struct(
                    {
                        "text": pa.string(),
                        "style": pa.string(),
                        "attempt": pa.int32(),
                        "seed": pa.int64(),
                    }
                )
            ),
        ),
        (
            "rejects",
            pa.list_(
                pa.struct(
                    {
                        "text": pa.string(),
                        "reason": pa.string(),
                        "style": pa.string(),
                        "attempt": pa.int32(),
                    }
                )
            ),
        ),
        ("distance", pa.float64()),
        ("distinctness", pa.float64()),
    ]
)


def result(fact: str, texts: list[str], reasons: list[str], **fields: Any) -> dict[str, Any]:
    candidates = [
        {"text": text, "style": "chat", "attempt": i, "seed": 7} for i, text in enumerate(texts)
    ]
    rejects = [
        {"text": f"not {i}", "reason": r, "style": "chat", "attempt": 0}
        for i, r in enumerate(reasons)
    ]
    row = {
        "fact_id": fact,
        "question": f"{fact}?",
        "answer": f"{fact}!",
        "candidates": candidates,
        "rejects": rejects,
    }
    return row | {"distance": 0.5, "distinctness": 0.25} | fields


ASKED = [
    result("c", ["x", "y"], ["loop"]),
    result("a", ["it's z"], ["loop", "meta", "loop"], distance=1.0, distinctness=None),
    result("b", [], [], distance=None, distinctness=None),
]


def written(
    tmp_path: Path, on_shortfall: str = "keep", rows: Any = ASKED
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    table = pa.Table.from_pylist(list(rows), schema=RESULTS)
    paths = {name: str(tmp_path / name) for name in (MAIN, REJECTS_FILE, SHORTFALL_FILE)}
    summary = write(
        Query("SELECT * FROM results", {"results": table}), 2, on_shortfall, "o'model", paths
    )
    return summary, {name: pq.read_table(path) for name, path in paths.items()}


def test_candidates_rejects_and_shortfall_are_tables_beside_each_other(tmp_path: Path):
    _, tables = written(tmp_path)
    assert tables[MAIN].schema == SCHEMAS["candidates"]
    made = {"attempt": 0, "seed": 7, "generator": "o'model"}
    assert tables[MAIN].to_pylist() == [
        {
            "fact_id": "a",
            "candidate_id": 0,
            "question": "a?",
            "answer": "a!",
            "inverted_answer": "it's z",
            **made,
        },
        {
            "fact_id": "c",
            "candidate_id": 0,
            "question": "c?",
            "answer": "c!",
            "inverted_answer": "x",
            **made,
        },
        {
            "fact_id": "c",
            "candidate_id": 1,
            "question": "c?",
            "answer": "c!",
            "inverted_answer": "y",
            **made,
        }
        | {"attempt": 1},
    ]
    assert tables[REJECTS_FILE].schema == CANDIDATE_REJECTS_SCHEMA
    assert [
        (r["fact_id"], r["number"], r["reason"], r["text"])
        for r in tables[REJECTS_FILE].to_pylist()
    ] == [
        ("a", 0, "loop", "not 0"),
        ("a", 1, "meta", "not 1"),
        ("a", 2, "loop", "not 2"),
        ("c", 0, "loop", "not 0"),
    ]
    assert tables[SHORTFALL_FILE].schema == SHORTFALL_SCHEMA
    assert tables[SHORTFALL_FILE].to_pylist() == [
        {"fact_id": "a", "num_candidates": 1, "reasons": "loop 2, meta 1"},
        {"fact_id": "b", "num_candidates": 0, "reasons": "nothing was proposed"},
    ]


def test_the_summary_counts(tmp_path: Path):
    assert written(tmp_path)[0] == {
        "facts": 3,
        "facts_with_enough": 1,
        "facts_with_none": 1,
        "candidates": 3,
        "mean_distance": 0.75,
        "mean_distinctness": 0.25,
        "rejected_by_rule": {"loop": 3, "meta": 1},
        "facts_short": {"a": 1, "b": 0},
    }


def test_facts_with_too_few_are_dropped_if_wanted(tmp_path: Path):
    summary, tables = written(tmp_path, "drop")
    assert tables[MAIN]["fact_id"].to_pylist() == ["c", "c"]
    assert tables[SHORTFALL_FILE]["fact_id"].to_pylist() == ["a", "b"], "they are still listed"
    assert summary["facts_with_enough"] == 1


def test_facts_with_too_few_fail_the_stage_if_wanted(tmp_path: Path):
    with pytest.raises(MeowError) as caught:
        written(tmp_path, "fail")
    said = str(caught.value)
    assert said.startswith("2 of 3 facts have fewer than 2 inverted facts:\n  a: 1")
    assert "loop 2, meta 1" in said
    assert "b: 0" in said
    assert "a!" not in said
    assert not list(tmp_path.iterdir())
    assert written(tmp_path, "fail", ASKED[:1])[1][MAIN].num_rows == 2


def test_no_candidate_at_all_is_an_error(tmp_path: Path):
    with pytest.raises(
        MeowError,
        match=r"no valid inverted facts for any of 1 facts \(rejects by rule: \{'meta': 2\}\)",
    ):
        written(tmp_path, rows=[result("a", [], ["meta", "meta"])])


def test_nothing_left_after_dropping_is_an_error(tmp_path: Path):
    with pytest.raises(MeowError, match=r"too few valid inverted facts for each of 2 facts"):
        written(tmp_path, "drop", ASKED[1:])


# --- a user's own candidates --------------------------------------------------------------------


def numbered(*rows: Any) -> list[tuple[int, Any]]:
    return list(enumerate(rows, start=1))


def own(inverted: Any = "B", **fields: Any) -> dict[str, Any]:
    """A row of one inverted answer; a field that is None is absent."""
    row = {"question": "Q", "answer": "A", "inverted_answer": inverted} | fields
    return {name: value for name, value in row.items() if value is not None}


def ids_and_texts(*rows: Any) -> list[tuple[int, str | None]]:
    table = complete(numbered(*rows), "mine")
    return list(
        zip(table["candidate_id"].to_pylist(), table["inverted_answer"].to_pylist(), strict=True)
    )


def test_question_answer_and_inverted_answer_are_enough():
    table = complete(numbered(own(" E\u0301 ", note="x"), own("F", note="y")), "mine.parquet")
    assert table.schema == SCHEMAS["candidates"]
    rest = {"question": "Q", "answer": "A", "attempt": 0, "seed": 0, "generator": "external"}
    assert table.to_pylist() == [
        rest | {"fact_id": fact_id("Q", "A"), "candidate_id": 0, "inverted_answer": "É"},
        rest | {"fact_id": fact_id("Q", "A"), "candidate_id": 1, "inverted_answer": "F"},
    ]


def test_candidates_are_counted_for_each_fact():
    rows = [
        own(text, question=q, answer=a) for q, a, text in zip("QRQR", "AABA", "wxyz", strict=True)
    ]
    assert ids_and_texts(*rows) == [(0, "w"), (0, "x"), (0, "y"), (1, "z")]


def test_what_is_given_is_kept():
    given = [
        own("x", candidate_id=7, seed=5, generator="me", attempt=1, fact_id="mine"),
        own("y", candidate_id=9, seed=6, generator="you", attempt=2, fact_id="mine"),
    ]
    table = complete(numbered(*given), "mine")
    for row, expected in zip(table.to_pylist(), given, strict=True):
        assert row == expected
    assert complete(numbered(*table.to_pylist()), "mine").equals(table)


def test_the_true_answer_may_have_the_authors_name():
    table = complete(numbered(own(answer=None, undesired_answer=" A ")), "mine")
    assert table["answer"].to_pylist() == ["A"]
    both = complete(numbered(own(answer="A", undesired_answer="another")), "mine")
    assert both["answer"].to_pylist() == ["A"], "`answer` wins"


def test_a_wide_row_has_one_candidate_a_column_in_the_order_of_their_numbers():
    wide = {
        "question": "Q",
        "undesired_answer": "A",
        "answer_10": "z",
        "answer_2": "y",
        "answer_0": "x",
    }
    noise = {"answer_0_rouge1": 0.5, "answer_": "no", "answer_x": "no", "my_answer_1": "no"}
    assert ids_and_texts(wide | noise) == [(0, "x"), (1, "y"), (2, "z")]


def test_wide_and_long_rows_of_a_fact_are_counted_together():
    wide = {"question": "Q", "answer": "A", "answer_0": "x", "answer_1": "y"}
    assert ids_and_texts(wide, own("z"), wide | {"question": "R"}) == [
        (0, "x"),
        (1, "y"),
        (2, "z"),
        (0, "x"),
        (1, "y"),
    ]


@pytest.mark.parametrize("inverted", [{}, {"inverted_answer": None}], ids=["absent", "null"])
def test_a_row_without_an_inverted_answer_asks_for_the_true_one_alone(inverted: dict[str, Any]):
    row = {"question": "Q", "answer": "A"} | inverted
    table = complete(numbered(row, own("x", question="R")), "mine")
    assert table["candidate_id"].to_pylist() == [TRUE_ANSWER, 0]
    assert table["inverted_answer"].to_pylist() == [None, "x"]
    assert complete(numbered(*table.to_pylist()), "mine").equals(table)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([own("x", answer=None)], r"^mine, line 1: answer is missing"),
        ([own("x", question=None)], r"^mine, line 1: question is missing"),
        ([own("x"), own(" ")], r"^mine, line 2: inverted_answer is empty"),
        ([own("x"), own("y", answer="")], r"^mine, line 2: answer is empty"),
        ([own(7)], r"^mine, line 1: inverted_answer is .* not a text"),
        ([own("x", question=1)], r"^mine, line 1: question is .* not a text"),
        (
            [{"question": "Q", "answer": "A", "answer_0": "x", "answer_1": " "}],
            r"^mine, line 1: answer_1 is empty",
        ),
        ([own("x", candidate_id="first")], r"^mine, line 1: candidate_id"),
        ([own("x", seed="lucky")], r"^mine, line 1: seed"),
        ([own("x", candidate_id=-1)], r"^mine, line 1: candidate_id"),
        ([own("x", attempt=-1)], r"^mine, line 1: attempt"),
        ([own("x", candidate_id=1.5)], r"^mine, line 1: candidate_id"),
        ([own("x", candidate_id=True)], r"^mine, line 1: candidate_id"),
        ([own("x", candidate_id=2**40)], r"^mine, line 1: candidate_id"),
        ([own("x", seed=2**70)], r"^mine, line 1: seed"),
        ([own("x", fact_id=7)], r"^mine, line 1: fact_id"),
        ([own("x", generator=7)], r"^mine, line 1: generator"),
        ([own("\ud800")], r"^mine, line 1: inverted_answer"),
        (
            [own("x", fact_id="a"), own("y", question="R", fact_id="a")],
            r"^mine, line 2: fact_id a names two different",
        ),
        ([own("x"), "a text"], r"^mine, line 2: expected an object"),
        ([], r"^mine: the file has no rows"),
    ],
)
def test_candidates_that_cannot_be_used_are_refused(rows: list[Any], said: str):
    with pytest.raises(MeowError, match=said):
        complete(numbered(*rows), "mine")


def test_the_numbers_of_a_csv_file_are_written_as_text():
    assert ids_and_texts(own("x", candidate_id="7", attempt="1", seed="5")) == [(7, "x")]
