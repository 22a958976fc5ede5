"""The schemas of all tables, and casting a table to the schema of its artifact."""

from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core.checks import check_columns, conform
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.errors import MeowError

FACTS = {
    "fact_id": ["a", "b"],
    "split": ["forget", "retain"],
    "question": ["A?", "B?"],
    "answer": ["A", "B"],
}


def facts(**columns: Any) -> pa.Table:
    return pa.table(FACTS | columns)


@pytest.mark.parametrize("artifact", SCHEMAS)
def test_each_artifact_has_a_key_among_its_columns(artifact: str):
    assert set(KEYS[artifact]) <= set(SCHEMAS[artifact].names)
    empty = SCHEMAS[artifact].empty_table()
    assert conform(empty, artifact).equals(empty)


@pytest.mark.parametrize(
    ("artifact", "columns"),
    [
        ("facts", ["fact_id", "split", "question", "answer"]),
        (
            "candidates",
            [
                "fact_id",
                "candidate_id",
                "question",
                "answer",
                "inverted_answer",
                "attempt",
                "seed",
                "generator",
            ],
        ),
        (
            "memo",
            [
                "fact_id",
                "candidate_id",
                "question",
                "text",
                "memo",
                "rouge1",
                "rouge2",
                "rougeL",
                "cv",
                "num_windows",
            ],
        ),
        ("selected", ["fact_id", "candidate_id", "rank", "question", "answer", "memo"]),
        ("metrics", ["suite", "metric", "model", "value", "low", "high", "num_examples"]),
    ],
)
def test_an_artifact_has_these_columns(artifact: str, columns: list[str]):
    assert SCHEMAS[artifact].names == columns


def test_columns_are_in_the_order_of_the_schema_and_others_come_last():
    table = pa.table({"note": ["x", "y"], **dict(reversed(FACTS.items()))})
    assert conform(table, "facts").column_names == [
        "fact_id",
        "split",
        "question",
        "answer",
        "note",
    ]


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_other_kinds_of_text_are_cast(kind: pa.DataType):
    table = facts(question=pa.array(["A?", "B?"]).cast(kind))
    assert conform(table, "facts").equals(facts())


def test_numbers_are_cast_if_that_loses_nothing():
    rows = {
        "fact_id": ["a"],
        "candidate_id": pa.array([3], pa.int64()),
        "rank": pa.array([0.0]),
        "question": ["?"],
    }
    table = conform(
        pa.table({**rows, "answer": ["x"], "memo": pa.array([1], pa.int8())}), "selected"
    )
    assert table.schema == SCHEMAS["selected"]
    assert table.to_pylist()[0] | {"question": None} == {
        "fact_id": "a",
        "candidate_id": 3,
        "rank": 0,
        "question": None,
        "answer": "x",
        "memo": 1.0,
    }


@pytest.mark.parametrize(
    "rank", [pa.array([0.5]), pa.array([2**40]), pa.array(["first"]), pa.array([[0]])]
)
def test_a_column_of_another_type_is_named(rank: pa.Array):
    table = SCHEMAS["selected"].empty_table().to_pydict() | {"rank": rank}
    columns = {name: table[name] if name == "rank" else pa.nulls(1) for name in table}
    message = (
        rf"^mine\.parquet: column rank is {rank.type}, selected needs int32\. Cast the column\.$"
    )
    with pytest.raises(MeowError, match=message):
        conform(pa.table(columns), "selected", "mine.parquet")


def test_missing_columns_are_named():
    message = (
        r"^mine: column split, answer is missing\. "
        r"facts needs the columns fact_id, split, question, answer\.$"
    )
    with pytest.raises(MeowError, match=message):
        conform(facts().drop_columns(["split", "answer"]), "facts", "mine")


def test_a_key_in_two_rows_is_an_error_that_names_the_first():
    with pytest.raises(
        MeowError, match="table facts: 1 keys occur in more than one row, the first is fact_id=a"
    ):
        conform(facts(fact_id=["a", "a"]), "facts")
    rows = [{"fact_id": "a", "candidate_id": i} for i in (0, 1, 1, 2, 2)]
    with pytest.raises(
        MeowError, match="2 keys occur in more than one row, the first is fact_id=a, candidate_id="
    ):
        conform(pa.Table.from_pylist(rows, schema=SCHEMAS["memo"]), "memo")


def test_rows_may_agree_in_a_part_of_the_key():
    rows = [{"fact_id": fact, "candidate_id": i} for fact in "ab" for i in (-1, 0, 1)]
    assert conform(pa.Table.from_pylist(rows, schema=SCHEMAS["memo"]), "memo").num_rows == 6


def test_an_empty_cell_in_a_key_is_an_error():
    with pytest.raises(MeowError, match="mine: column fact_id has empty cells"):
        conform(facts(fact_id=["a", None]), "facts", "mine")


# --- columns without rows -------------------------------------------------------------------------


def selected(**kinds: pa.DataType | None) -> pa.Schema:
    """Returns the columns of `selected` with other types; a column that is None is left out."""
    fields = {field.name: field.type for field in SCHEMAS["selected"]} | kinds
    return pa.schema([(name, kind) for name, kind in fields.items() if kind is not None])


@pytest.mark.parametrize("artifact", SCHEMAS)
def test_the_columns_of_each_schema_pass_its_check(artifact: str):
    check_columns(SCHEMAS[artifact], artifact, SCHEMAS[artifact], "mine")


@pytest.mark.parametrize(
    "kinds",
    [
        {"question": pa.large_string()},
        {"question": pa.string_view()},
        {"question": pa.dictionary(pa.int8(), pa.large_string())},
        {"rank": pa.int8(), "candidate_id": pa.uint64()},
        {"memo": pa.float32()},
        {"memo": pa.null()},
        {"note": pa.list_(pa.int8())},
    ],
    ids=str,
)
def test_columns_of_the_same_kind_and_additional_ones_are_accepted(kinds: dict[str, pa.DataType]):
    check_columns(selected(**kinds), "selected", SCHEMAS["selected"], "mine")
    check_columns(pa.schema(list(selected(**kinds))[::-1]), "selected", SCHEMAS["selected"], "mine")


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (
            {"rank": None},
            r"^mine: column rank is missing\. selected needs the columns fact_id, candidate_id, ",
        ),
        ({"rank": None, "fact_id": None}, r"^mine: column fact_id, rank is missing"),
        (
            {"rank": pa.float64()},
            r"^mine: column rank is double, selected needs int32\. Cast the column\.$",
        ),
        (
            {"rank": pa.bool_()},
            r"^mine: column rank is bool, selected needs int32\. Cast the column\.$",
        ),
        (
            {"rank": pa.string()},
            r"^mine: column rank is string, selected needs int32\. Cast the column\.$",
        ),
        (
            {"answer": pa.binary()},
            r"^mine: column answer is binary, selected needs string\. Cast the column\.$",
        ),
        (
            {"answer": pa.list_(pa.string())},
            r"^mine: column answer is list<.*string>, selected needs string\. Cast the column\.$",
        ),
        (
            {"memo": pa.string()},
            r"^mine: column memo is string, selected needs double\. Cast the column\.$",
        ),
    ],
)
def test_a_missing_column_or_one_of_another_kind_is_an_error(
    kinds: dict[str, pa.DataType | None], message: str
):
    with pytest.raises(MeowError, match=message):
        check_columns(selected(**kinds), "selected", SCHEMAS["selected"], "mine")
