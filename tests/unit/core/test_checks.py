"""Checks of a user's own table, in memory or in files: columns and keys."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core import checks, tables
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import TableSource
from meow_ray.errors import MeowError
from tests.support.tables import files_of

SourceOf = Callable[[pa.Table], TableSource]


def memo_of(*keys: tuple[str | None, int | None], **columns: Any) -> pa.Table:
    """Returns a `memo` table with these keys; a column that is None is left out."""
    rows = [{"fact_id": fact, "candidate_id": number, "memo": 0.5} for fact, number in keys]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["memo"])
    for name, values in columns.items():
        table = table.drop_columns([name] if name in table.column_names else [])
        table = table if values is None else table.append_column(name, values)
    return table


@pytest.fixture(params=["table", "files"])
def source_of(request: pytest.FixtureRequest, tmp_path: Path) -> SourceOf:
    """Turns a table into a source: the table itself, or two files."""
    if request.param == "table":
        return lambda table: table
    return lambda table: files_of(tmp_path, table.slice(0, 1), table.slice(1))


def check(source: TableSource) -> None:
    """Checks a `memo` table as a stage checks its input."""
    columns = source.schema if isinstance(source, pa.Table) else tables.columns(source)
    checks.check_columns(columns, "memo", SCHEMAS["memo"], "mine")
    checks.check_keys(source, "memo", "mine")


# --- columns ------------------------------------------------------------------------------------


def test_a_table_with_columns_of_the_right_kinds_is_accepted(source_of: SourceOf):
    columns = {
        "memo": pa.array([0.5, 0.25], pa.float32()),
        "candidate_id": pa.array([1, 0]),
        "ma": pa.array([1, 0]),
    }
    check(source_of(memo_of(("a", 0), ("a", 1), **columns)))


def test_a_column_of_dictionaries_is_accepted():
    check(memo_of(("a", 0), ("a", 1), question=pa.array(["Q", "Q"]).dictionary_encode()))


def test_a_column_of_nulls_is_accepted():
    check(memo_of(("a", 0), ("a", 1), cv=pa.nulls(2)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"text": None},
            r"^mine: column text is missing\. memo needs the columns fact_id, candidate_id",
        ),
        ({"text": None, "fact_id": None}, r"^mine: column fact_id, text is missing"),
        ({"memo": pa.array(["x", "y"])}, r"^mine: column memo is string, memo needs double\."),
        ({"fact_id": pa.array([1, 2])}, r"^mine: column fact_id is int64, memo needs string\."),
        (
            {"candidate_id": pa.array([0.0, 1.0])},
            r"^mine: column candidate_id is double, memo needs int32\.",
        ),
        (
            {"candidate_id": pa.array([True, False])},
            r"^mine: column candidate_id is bool, memo needs int32\.",
        ),
    ],
)
def test_a_missing_column_or_one_of_another_kind_is_an_error(
    source_of: SourceOf, columns: dict[str, Any], message: str
):
    with pytest.raises(MeowError, match=message):
        check(source_of(memo_of(("a", 0), ("a", 1), **columns)))


def test_names_that_differ_only_in_case_are_an_error():
    table = memo_of(("a", 0), MEMO=pa.array([0.5]))
    with pytest.raises(
        MeowError, match=r"^mine: more than one column is called memo, ignoring case"
    ):
        check(table)


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "column"),
    [((None, 0), "fact_id"), (("a", None), "candidate_id"), ((None, None), "fact_id")],
)
def test_an_empty_cell_in_the_key_is_an_error(
    source_of: SourceOf, key: tuple[str | None, int | None], column: str
):
    message = rf"^mine: column {column} has empty cells \(1\), but it is part of the key"
    with pytest.raises(MeowError, match=message):
        check(source_of(memo_of(("a", 1), ("b", 1), key)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            [("b", 1), ("b", 1)],
            "1 keys occur in more than one row, the first is fact_id=b, candidate_id=1",
        ),
        (
            [("b", 1), ("b", 0), ("b", 1), ("b", 0)],
            "2 keys occur in more than one row, the first is fact_id=b, candidate_id=0",
        ),
        (
            [("b", 1), ("a", 7), ("b", 1), ("a", 7), ("a", 7)],
            "2 keys .* the first is fact_id=a, candidate_id=7",
        ),
    ],
)
def test_a_key_in_two_rows_is_an_error_that_names_the_first(
    source_of: SourceOf, keys: list[tuple[str, int]], message: str
):
    with pytest.raises(MeowError, match=f"^mine: {message}"):
        check(source_of(memo_of(*keys)))


def test_a_key_in_two_rows_on_s3_is_an_error(s3: Callable[[str], str]):
    uris = files_of(s3("tables/twice"), memo_of(("a", 0)), memo_of(("a", 0)))
    message = r"^mine: 1 keys occur in more than one row, the first is fact_id=a"
    with pytest.raises(MeowError, match=message):
        check(uris)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["text", "memo", "fact_id"])
def test_a_second_file_that_lacks_a_column_is_an_error(tmp_path: Path, column: str):
    uris = files_of(tmp_path, memo_of(("a", 0)), memo_of(("b", 0)).drop_columns([column]))
    with pytest.raises(MeowError, match=r"1\.parquet"):
        check(uris)


def test_a_second_file_with_a_column_of_another_kind_is_an_error(tmp_path: Path):
    uris = files_of(tmp_path, memo_of(("a", 0)), memo_of(("b", 0), memo=pa.array(["x"])))
    with pytest.raises(MeowError, match=r"1\.parquet"):
        check(uris)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "content", [b"", b"this is no Parquet file", None], ids=["empty", "text", "absent"]
)
@pytest.mark.parametrize(
    "read", [tables.columns, tables.count_rows, check], ids=["columns", "count_rows", "check"]
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, number: int, content: bytes | None, read: Callable[[list[str]], Any]
):
    uris = files_of(tmp_path, memo_of(("a", 0)), memo_of(("b", 0)))
    Path(uris[number]).unlink()
    if content is not None:
        Path(uris[number]).write_bytes(content)
    with pytest.raises(MeowError, match=rf"{number}\.parquet"):
        read(uris)
