"""Tests of the candidates table that is made of a user's own rows."""

from typing import Any

import pytest

from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.invert.own_candidates import complete


def numbered(*rows: Any) -> list[tuple[int, Any]]:
    """Returns (line, row) pairs."""
    return list(enumerate(rows, start=1))


def candidate(inverted: Any = "B", **fields: Any) -> dict[str, Any]:
    """Returns a row with one inverted answer; a field that is None is absent."""
    row = {"question": "Q", "answer": "A", "inverted_answer": inverted} | fields
    return {name: value for name, value in row.items() if value is not None}


def ids_and_texts(*rows: Any) -> list[tuple[int, str | None]]:
    """Returns (candidate_id, inverted_answer) of the table of these rows."""
    table = complete(numbered(*rows), "mine")
    return list(
        zip(table["candidate_id"].to_pylist(), table["inverted_answer"].to_pylist(), strict=True)
    )


def test_a_row_needs_only_question_answer_and_inverted_answer():
    table = complete(
        numbered(candidate(" E\u0301 ", note="x"), candidate("F", note="y")), "mine.parquet"
    )
    assert table.schema == SCHEMAS["candidates"]
    rest = {"question": "Q", "answer": "A", "attempt": 0, "seed": 0, "generator": "external"}
    assert table.to_pylist() == [
        rest | {"fact_id": fact_id("Q", "A"), "candidate_id": 0, "inverted_answer": "É"},
        rest | {"fact_id": fact_id("Q", "A"), "candidate_id": 1, "inverted_answer": "F"},
    ]


def test_the_candidates_of_each_fact_count_from_0():
    rows = [
        candidate("w", question="Q", answer="A"),
        candidate("x", question="R", answer="A"),
        candidate("y", question="Q", answer="B"),
        candidate("z", question="R", answer="A"),
    ]
    assert ids_and_texts(*rows) == [(0, "w"), (0, "x"), (0, "y"), (1, "z")]


def test_columns_of_the_file_are_not_replaced():
    rows = [
        candidate("x", candidate_id=7, seed=5, generator="me", attempt=1, fact_id="mine"),
        candidate("y", candidate_id=9, seed=6, generator="you", attempt=2, fact_id="mine"),
    ]
    table = complete(numbered(*rows), "mine")
    for row, expected in zip(table.to_pylist(), rows, strict=True):
        assert row == expected
    assert complete(numbered(*table.to_pylist()), "mine").equals(table)


def test_the_true_answer_may_be_called_undesired_answer():
    table = complete(numbered(candidate(answer=None, undesired_answer=" A ")), "mine")
    assert table["answer"].to_pylist() == ["A"]
    both = complete(numbered(candidate(answer="A", undesired_answer="another")), "mine")
    assert both["answer"].to_pylist() == ["A"], "`answer` is preferred"


def test_numbered_columns_are_candidates_in_the_order_of_their_numbers():
    wide = {
        "question": "Q",
        "undesired_answer": "A",
        "answer_10": "z",
        "answer_2": "y",
        "answer_0": "x",
    }
    noise = {"answer_0_rouge1": 0.5, "answer_": "no", "answer_x": "no", "my_answer_1": "no"}
    assert ids_and_texts(wide | noise) == [(0, "x"), (1, "y"), (2, "z")]


def test_both_forms_of_rows_of_a_fact_are_counted_together():
    wide = {"question": "Q", "answer": "A", "answer_0": "x", "answer_1": "y"}
    assert ids_and_texts(wide, candidate("z"), wide | {"question": "R"}) == [
        (0, "x"),
        (1, "y"),
        (2, "z"),
        (0, "x"),
        (1, "y"),
    ]


@pytest.mark.parametrize("inverted", [{}, {"inverted_answer": None}], ids=["absent", "null"])
def test_a_row_without_an_inverted_answer_is_the_true_answer_alone(inverted: dict[str, Any]):
    row = {"question": "Q", "answer": "A"} | inverted
    table = complete(numbered(row, candidate("x", question="R")), "mine")
    assert table["candidate_id"].to_pylist() == [TRUE_ANSWER, 0]
    assert table["inverted_answer"].to_pylist() == [None, "x"]
    assert complete(numbered(*table.to_pylist()), "mine").equals(table)


NOT_AN_ID = r"^mine, line 1: candidate_id must be a non-negative integer, at most 2147483647\.$"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([candidate("x", answer=None)], r"^mine, line 1: answer is missing"),
        ([candidate("x", question=None)], r"^mine, line 1: question is missing"),
        ([candidate("x"), candidate(" ")], r"^mine, line 2: inverted_answer is empty"),
        ([candidate("x"), candidate("y", answer="")], r"^mine, line 2: answer is empty"),
        ([candidate(7)], r"^mine, line 1: inverted_answer is .* not a text"),
        ([candidate("x", question=1)], r"^mine, line 1: question is .* not a text"),
        (
            [{"question": "Q", "answer": "A", "answer_0": "x", "answer_1": " "}],
            r"^mine, line 1: answer_1 is empty",
        ),
        ([candidate("x", candidate_id="first")], NOT_AN_ID),
        ([candidate("x", seed="lucky")], r"^mine, line 1: seed must be a non-negative integer"),
        ([candidate("x", candidate_id=-1)], NOT_AN_ID),
        ([candidate("x", attempt=-1)], r"^mine, line 1: attempt must be a non-negative integer"),
        ([candidate("x", candidate_id=1.5)], NOT_AN_ID),
        ([candidate("x", candidate_id=True)], NOT_AN_ID),
        ([candidate("x", candidate_id=2**40)], NOT_AN_ID),
        ([candidate("x", seed=2**70)], r"^mine, line 1: seed must be a non-negative integer"),
        ([candidate("x", fact_id=7)], r"^mine, line 1: fact_id"),
        ([candidate("x", generator=7)], r"^mine, line 1: generator"),
        ([candidate("\ud800")], r"^mine, line 1: inverted_answer"),
        (
            [candidate("x", fact_id="a"), candidate("y", question="R", fact_id="a")],
            r"^mine, line 2: fact_id a names two different",
        ),
        ([candidate("x"), "a text"], r"^mine, line 2: expected an object"),
        ([], r"^mine: the file has no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(rows: list[Any], message: str):
    with pytest.raises(MeowError, match=message):
        complete(numbered(*rows), "mine")


def test_numbers_may_be_text_as_in_a_csv_file():
    assert ids_and_texts(candidate("x", candidate_id="7", attempt="1", seed="5")) == [(7, "x")]
