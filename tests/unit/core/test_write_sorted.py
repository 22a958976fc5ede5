"""Writing the results of queries: sorted by a key, equal bytes for equal rows, and in parts."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meow_ray.core import storage, tables
from meow_ray.core.tables import Query, TableSource
from tests.support.tables import ALL_SORTED, KEY, KEYS, ROWS, SCHEMA, files_of, query, table_of


def written(source: TableSource, uri: str | Path, sql: str = ALL_SORTED) -> pa.Table:
    """Writes a query over the table `t` and reads the file."""
    num_rows = tables.write_sorted(query(source, sql), str(uri), SCHEMA, KEY)
    table = storage.read_table([str(uri)])
    assert table.num_rows == num_rows
    return table


# --- columns, row groups, bytes -----------------------------------------------------------------


def test_the_file_is_sorted_and_has_the_columns_of_the_schema_in_order(tmp_path: Path):
    shuffled = ROWS.take(random.Random(0).sample(range(24), 24)).select(["text", "rank", "fact_id"])
    assert written(shuffled, tmp_path / "deep" / "folder" / "out.parquet").equals(ROWS)


def test_columns_are_cast_and_other_columns_come_last(tmp_path: Path):
    sql = """
        SELECT 1.5::DOUBLE AS ma, rank::BIGINT AS rank, * EXCLUDE (rank), [rank] AS ranks
        FROM t ORDER BY fact_id, 2
    """
    table = written(ROWS, tmp_path / "out.parquet", sql)
    assert table.column_names == ["fact_id", "rank", "text", "ma", "ranks"]
    assert table.select(SCHEMA.names).equals(ROWS)
    assert table["ma"].to_pylist() == [1.5] * 24
    assert table["ranks"].to_pylist() == [[rank] for _, rank in KEYS]


@pytest.mark.parametrize("group", [5, 1 << 16])
def test_a_result_without_rows_is_written_with_its_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
):
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    with_ma = ROWS.append_column("ma", pa.array([0.5] * 24))
    table = written(with_ma, tmp_path / "out.parquet", "FROM t WHERE rank > 9")
    assert table.schema == SCHEMA.append(pa.field("ma", pa.float64()))
    assert table.num_rows == 0


@pytest.mark.parametrize(
    ("num_rows", "groups"), [(0, []), (4, [4]), (5, [5]), (6, [5, 1]), (24, [5, 5, 5, 5, 4])]
)
def test_all_row_groups_but_the_last_have_the_same_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rows: int, groups: list[int]
):
    monkeypatch.setattr(tables, "GROUP_ROWS", 5)
    written(ROWS.slice(0, num_rows), tmp_path / "out.parquet")
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == groups


@settings(max_examples=15)
@given(st.data(), st.sampled_from([3, 5, 1 << 16]))
def test_equal_rows_give_equal_bytes_for_any_files_and_batches(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, group: int
):
    folder = tmp_path_factory.mktemp("equal")
    shuffled = ROWS.take(data.draw(st.permutations(range(24))))
    cuts = sorted({0, 24, *data.draw(st.lists(st.integers(0, 24), max_size=4))})
    parts = [shuffled.slice(a, b - a) for a, b in pairwise(cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GROUP_ROWS", group)
        written(ROWS, folder / "a")
        written(pa.concat_tables(parts), folder / "b")
        written(files_of(folder, *parts), folder / "c")
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes() == (folder / "c").read_bytes()


def test_texts_longer_than_a_page_give_equal_bytes_for_any_batches(tmp_path: Path):
    generator = random.Random(0)
    num_rows = 20_000
    texts = ["".join(generator.choices("abcdefgh ", k=150)) for _ in range(num_rows)]
    ids = [f"{i:06}" for i in range(num_rows)]
    table = pa.table([ids, [0] * num_rows, texts], names=SCHEMA.names).cast(SCHEMA)
    for name, size in (("a", num_rows), ("b", 777), ("c", 5000)):
        chunks = pa.concat_tables([table.slice(i, size) for i in range(0, num_rows, size)])
        uri = str(tmp_path / name)
        assert tables.write_sorted(query(chunks, "FROM t"), uri, SCHEMA, KEY) == num_rows
    content = {name: (tmp_path / name).read_bytes() for name in "abc"}
    assert content["a"] == content["b"] == content["c"]


def test_a_file_on_s3_has_the_bytes_of_a_local_file(s3: Callable[[str], str], tmp_path: Path):
    written(ROWS, tmp_path / "out.parquet")
    written(ROWS, s3("tables/same.parquet"))
    assert storage.read_bytes(s3("tables/same.parquet")) == (tmp_path / "out.parquet").read_bytes()


# --- keys ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [1, 2, 3, 1 << 16])
@pytest.mark.parametrize(
    "keys",
    [
        [("a", 0), ("a", 0)],
        [("a", 0), ("a", 1), ("a", 1)],
        [("a", 0), ("a", 1), ("a", 2), ("a", 2)],
        [("a", 0), ("b", 1), ("b", 0)],
        [("a", 0), ("b", 0), ("a", 1)],
        [("b", 0), ("a", 1)],
    ],
    ids=str,
)
def test_a_key_that_does_not_increase_is_an_error_within_and_between_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, keys: list[tuple[str, int]]
):
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    with pytest.raises(AssertionError, match=r"out\.parquet: rows out of order, or a key twice"):
        written(table_of(keys), tmp_path / "out.parquet", "FROM t")


@pytest.mark.parametrize("shift", [1, 2])
def test_a_key_that_does_not_increase_between_groups_of_real_size_is_an_error(
    tmp_path: Path, shift: int
):
    border = tables.GROUP_ROWS
    increasing = f"""
        SELECT 'f' AS fact_id, i::INTEGER AS rank, 'x' AS text
        FROM range({border + 2}) t(i) ORDER BY i
    """
    num_rows = tables.write_sorted(
        Query(increasing, {}), str(tmp_path / "whole.parquet"), SCHEMA, KEY
    )
    assert num_rows == border + 2
    falling = increasing.replace("i::INTEGER", f"(i - if(i < {border}, 0, {shift}))::INTEGER")
    with pytest.raises(AssertionError, match="rows out of order, or a key twice"):
        tables.write_sorted(Query(falling, {}), str(tmp_path / "out.parquet"), SCHEMA, KEY)


@pytest.mark.parametrize("group", [1, 2, 1 << 16])
@pytest.mark.parametrize(
    "keys",
    [
        [],
        [("a", 5)],
        [("a", 5), ("b", 0)],
        [("a", 0), ("a", 1), ("b", 0)],
        [("B", 0), ("a", 0), ("b", 0), ("é", 0)],
    ],
    ids=str,
)
def test_a_key_that_increases_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, keys: list[tuple[str, int]]
):
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    assert written(table_of(keys), tmp_path / "out.parquet", "FROM t").equals(table_of(keys))
    assert written(table_of(keys[::-1]), tmp_path / "sorted.parquet").equals(table_of(keys))


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_rows", "part_rows", "sizes"),
    [(0, 5, []), (4, 5, [4]), (5, 5, [5]), (24, 5, [5, 5, 5, 5, 4]), (24, 100, [24])],
)
def test_all_parts_but_the_last_have_the_same_size_and_keep_the_order(
    tmp_path: Path, num_rows: int, part_rows: int, sizes: list[int]
):
    by_rank = query(ROWS.slice(0, num_rows), "FROM t ORDER BY rank DESC, fact_id")
    tables.write_parts(by_rank, str(tmp_path), part_rows)
    names = storage.list_files(str(tmp_path))
    assert names == [f"part-{i:05}.parquet" for i in range(len(sizes))]
    parts = [storage.read_table([str(tmp_path / name)]) for name in names]
    assert [part.num_rows for part in parts] == sizes
    assert [row for part in parts for row in part.to_pylist()] == by_rank.rows()


def test_parts_larger_than_the_batches_of_a_stream_are_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "GROUP_ROWS", 100)
    numbers = Query("SELECT i FROM range(25_000) t(i) ORDER BY i", {})
    tables.write_parts(numbers, str(tmp_path), 10_000)
    names = storage.list_files(str(tmp_path))
    parts = [storage.read_table([str(tmp_path / name)]) for name in names]
    assert [part.num_rows for part in parts] == [10_000, 10_000, 5_000]
    assert pa.concat_tables(parts)["i"].to_pylist() == list(range(25_000))
