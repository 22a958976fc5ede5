"""Queries over tables and Parquet files, and what the footers of files tell."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from meow_ray.core import storage, tables
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from tests.support.tables import ROWS, SCHEMA, files_of, query


@pytest.mark.parametrize("sizes", [[24], [5, 19], [0, 10, 0, 14], [8, 8, 8]], ids=str)
def test_a_query_reads_several_files_as_one_table(tmp_path: Path, sizes: list[int]):
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [ROWS.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    uris = files_of(tmp_path, *parts)
    assert query(uris).rows() == ROWS.to_pylist()
    assert tables.count_rows(uris) == 24
    assert tables.columns(uris) == SCHEMA


def test_a_query_joins_tables_and_files(tmp_path: Path):
    notes = pa.table({"rank": [0, 2], "note": ["first", "last"]})
    sql = """
        SELECT fact_id, note FROM t JOIN notes USING (rank)
        WHERE fact_id < 'f02' ORDER BY fact_id, rank
    """
    rows = Query(sql, {"t": files_of(tmp_path, ROWS), "notes": notes}).rows()
    assert [tuple(row.values()) for row in rows] == [
        (fact, note) for fact in ("f00", "f01") for note in ("first", "last")
    ]


def test_a_query_streams_results_larger_than_a_row_group(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 4)
    many = pa.table({"i": range(10_000)})
    with Query("SELECT i FROM t ORDER BY i", {"t": many}).batches() as reader:
        batches = list(reader)
    assert len(batches) > 1
    assert pa.Table.from_batches(batches)["i"].to_pylist() == list(range(10_000))


def test_a_result_without_rows_has_columns(tmp_path: Path):
    sql = "SELECT fact_id, rank FROM t WHERE rank > 9"
    with query(files_of(tmp_path, ROWS), sql).batches() as reader:
        table = reader.read_all()
    assert (table.num_rows, table.column_names) == (0, ["fact_id", "rank"])
    assert query(ROWS.slice(0, 0)).rows() == []


def test_no_files_have_no_rows():
    assert tables.count_rows([]) == 0


def test_a_query_gives_no_warnings(recwarn: pytest.WarningsRecorder):
    query(ROWS).rows()
    assert [str(warning.message) for warning in recwarn] == []


@pytest.mark.parametrize("text", ["plain", "it's", "''", "a;b -- c"])
def test_a_text_literal_is_the_text_in_sql(text: str):
    assert Query(f"SELECT {tables.text_literal(text)} AS text", {}).rows() == [{"text": text}]


def test_a_missing_file_on_s3_is_named_without_the_query_of_its_uri(s3: Callable[[str], str]):
    with pytest.raises(MeowError) as caught:
        tables.count_rows([s3("tables/nowhere.parquet")])
    assert "tables/nowhere.parquet" in str(caught.value)
    assert "endpoint_override" not in str(caught.value)


def test_tables_on_s3_are_queried_and_written(s3: Callable[[str], str]):
    uris = files_of(s3("tables/in"), ROWS.slice(12), ROWS.slice(0, 12))
    assert tables.count_rows(uris) == 24
    assert tables.columns(uris) == SCHEMA
    out = s3("tables/out.parquet")
    assert tables.write_sorted(query(uris), out, SCHEMA, ("fact_id", "rank")) == 24
    assert storage.read_table([out]).equals(ROWS)
    tables.write_parts(query(uris), s3("tables/parts"), 10)
    assert storage.list_files(s3("tables/parts")) == [f"part-0000{i}.parquet" for i in range(3)]
