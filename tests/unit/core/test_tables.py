import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meow_ray.core import checks, storage, tables
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError

WANTED = pa.schema([("fact_id", pa.string()), ("rank", pa.int32()), ("text", pa.string())])
KEY = ("fact_id", "rank")
SORTED = Query("SELECT * FROM t ORDER BY fact_id, rank", {})
"""All rows of `t`, sorted by the key."""


def table_of(keys: Sequence[tuple[str, int]], text: str = "text of {}/{}") -> pa.Table:
    rows = [{"fact_id": fact, "rank": rank, "text": text.format(fact, rank)} for fact, rank in keys]
    return pa.Table.from_pylist(rows, schema=WANTED)


KEYS = [(f"f{i:02}", rank) for i in range(8) for rank in range(3)]
ROWS = table_of(KEYS)


def query(source: TableSource, sql: str = SORTED.sql) -> Query:
    return Query(sql, {"t": source})


def files_of(folder: str | Path, *parts: pa.Table) -> list[str]:
    uris = [storage.join(str(folder), f"{i}.parquet") for i in range(len(parts))]
    for part, uri in zip(parts, uris, strict=True):
        storage.write_table(part, uri)
    return uris


def written(
    source: TableSource, uri: str | Path, sql: str = SORTED.sql, wanted: pa.Schema = WANTED
) -> pa.Table:
    """Writes `t` and reads it back."""
    rows = tables.write_sorted(query(source, sql), str(uri), wanted, KEY)
    table = storage.read_table([str(uri)])
    assert table.num_rows == rows
    return table


# --- queries ------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[24], [5, 19], [0, 10, 0, 14], [8, 8, 8]], ids=str)
def test_a_query_reads_several_files_as_one_table(tmp_path: Path, parts: list[int]):
    starts = [sum(parts[:i]) for i in range(len(parts))]
    uris = files_of(
        tmp_path, *(ROWS.slice(start, size) for start, size in zip(starts, parts, strict=True))
    )
    assert query(uris).rows() == ROWS.to_pylist()
    assert tables.count_rows(uris) == 24
    assert tables.columns(uris) == WANTED


def test_a_query_joins_tables_and_files(tmp_path: Path):
    notes = pa.table({"rank": [0, 2], "note": ["first", "last"]})
    sql = "SELECT fact_id, note FROM t JOIN notes USING (rank) WHERE fact_id < 'f02' ORDER BY fact_id, rank"
    found = Query(sql, {"t": files_of(tmp_path, ROWS), "notes": notes}).rows()
    assert [tuple(row.values()) for row in found] == [
        (f, n) for f in ("f00", "f01") for n in ("first", "last")
    ]


def test_a_query_streams_more_rows_than_a_group_has(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 4)
    many = pa.table({"i": range(10_000)})
    with Query("SELECT i FROM t ORDER BY i", {"t": many}).batches() as reader:
        batches = list(reader)
    assert len(batches) > 1
    assert pa.Table.from_batches(batches)["i"].to_pylist() == list(range(10_000))


def test_a_query_of_no_rows_has_columns(tmp_path: Path):
    with query(
        files_of(tmp_path, ROWS), "SELECT fact_id, rank FROM t WHERE rank > 9"
    ).batches() as reader:
        table = reader.read_all()
    assert (table.num_rows, table.column_names) == (0, ["fact_id", "rank"])
    assert query(ROWS.slice(0, 0)).rows() == []


def test_nothing_is_counted_where_there_are_no_files():
    assert tables.count_rows([]) == 0


def test_a_query_says_nothing_on_the_side(recwarn: pytest.WarningsRecorder):
    query(ROWS).rows()
    assert [str(warning.message) for warning in recwarn] == []


# --- writing ------------------------------------------------------------------------------------


def test_what_is_written_is_sorted_and_has_the_wanted_columns(tmp_path: Path):
    shuffled = ROWS.take(random.Random(0).sample(range(24), 24)).select(["text", "rank", "fact_id"])
    assert written(shuffled, tmp_path / "deep" / "folder" / "out.parquet").equals(ROWS)


def test_columns_are_cast_and_further_ones_kept_behind(tmp_path: Path):
    sql = "SELECT 1.5::DOUBLE AS ma, rank::BIGINT AS rank, *  EXCLUDE (rank), [rank] AS more FROM t ORDER BY fact_id, 2"
    table = written(ROWS, tmp_path / "out.parquet", sql)
    assert table.column_names == ["fact_id", "rank", "text", "ma", "more"]
    assert table.select(WANTED.names).equals(ROWS)
    assert table["ma"].to_pylist() == [1.5] * 24
    assert table["more"].to_pylist() == [[rank] for _, rank in KEYS]


@pytest.mark.parametrize("group", [5, 1 << 16])
def test_nothing_written_is_a_table_without_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int
):
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    table = written(
        ROWS.append_column("ma", pa.array([0.5] * 24)),
        tmp_path / "out.parquet",
        "FROM t WHERE rank > 9",
    )
    assert table.schema == WANTED.append(pa.field("ma", pa.float64()))
    assert table.num_rows == 0


@pytest.mark.parametrize(
    ("rows", "groups"), [(0, []), (4, [4]), (5, [5]), (6, [5, 1]), (24, [5, 5, 5, 5, 4])]
)
def test_row_groups_have_one_size_but_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, groups: list[int]
):
    monkeypatch.setattr(tables, "GROUP_ROWS", 5)
    written(ROWS.slice(0, rows), tmp_path / "out.parquet")
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == groups


@settings(max_examples=15)
@given(st.data(), st.sampled_from([3, 5, 1 << 16]))
def test_equal_rows_give_equal_bytes_whatever_files_and_batches_they_come_in(
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


def test_texts_longer_than_a_page_give_equal_bytes_whatever_batches_they_come_in(tmp_path: Path):
    draw, rows = random.Random(0), 20_000
    texts = ["".join(draw.choices("abcdefgh ", k=150)) for _ in range(rows)]
    table = pa.table(
        [[f"{i:06}" for i in range(rows)], [0] * rows, texts], names=WANTED.names
    ).cast(WANTED)
    for name, size in (("a", rows), ("b", 777), ("c", 5000)):
        chunks = pa.concat_tables([table.slice(i, size) for i in range(0, rows, size)])
        parts = query(chunks, "FROM t")
        assert tables.write_sorted(parts, str(tmp_path / name), WANTED, KEY) == rows
    content = {name: (tmp_path / name).read_bytes() for name in "abc"}
    assert content["a"] == content["b"] == content["c"]


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
def test_a_key_that_does_not_rise_is_noticed_also_between_two_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, keys: list[tuple[str, int]]
):
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    with pytest.raises(AssertionError, match=r"out\.parquet: rows out of order, or a key twice"):
        written(table_of(keys), tmp_path / "out.parquet", "FROM t")


@pytest.mark.parametrize("shift", [1, 2])
def test_a_key_that_does_not_rise_between_two_groups_of_real_size_is_noticed(
    tmp_path: Path, shift: int
):
    border = tables.GROUP_ROWS
    rising = f"SELECT 'f' AS fact_id, i::INTEGER AS rank, 'x' AS text FROM range({border + 2}) t(i) ORDER BY i"
    assert (
        tables.write_sorted(Query(rising, {}), str(tmp_path / "whole.parquet"), WANTED, KEY)
        == border + 2
    )
    falling = rising.replace("i::INTEGER", f"(i - if(i < {border}, 0, {shift}))::INTEGER")
    with pytest.raises(AssertionError, match="rows out of order, or a key twice"):
        tables.write_sorted(Query(falling, {}), str(tmp_path / "out.parquet"), WANTED, KEY)


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
def test_a_key_that_rises_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int, keys: list[tuple[str, int]]
):
    monkeypatch.setattr(tables, "GROUP_ROWS", group)
    assert written(table_of(keys), tmp_path / "out.parquet", "FROM t").equals(table_of(keys))
    assert written(table_of(keys[::-1]), tmp_path / "sorted.parquet").equals(table_of(keys))


@pytest.mark.parametrize(
    ("rows", "part", "sizes"),
    [(0, 5, []), (4, 5, [4]), (5, 5, [5]), (24, 5, [5, 5, 5, 5, 4]), (24, 100, [24])],
)
def test_parts_have_one_size_but_the_last_and_keep_the_order(
    tmp_path: Path, rows: int, part: int, sizes: list[int]
):
    sql = "FROM t ORDER BY rank DESC, fact_id"
    table = ROWS.slice(0, rows)
    tables.write_parts(query(table, sql), str(tmp_path), part)
    names = storage.list_files(str(tmp_path))
    assert names == [f"part-{i:05}.parquet" for i in range(len(sizes))]
    parts = [storage.read_table([str(tmp_path / name)]) for name in names]
    assert [one.num_rows for one in parts] == sizes
    assert [row for one in parts for row in one.to_pylist()] == query(table, sql).rows()


def test_parts_larger_than_a_stream_s_batches_are_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tables, "GROUP_ROWS", 100)
    tables.write_parts(
        Query("SELECT i FROM range(25_000) t(i) ORDER BY i", {}), str(tmp_path), 10_000
    )
    parts = [
        storage.read_table([str(tmp_path / name)]) for name in storage.list_files(str(tmp_path))
    ]
    assert [part.num_rows for part in parts] == [10_000, 10_000, 5_000]
    assert pa.concat_tables(parts)["i"].to_pylist() == list(range(25_000))


# --- a user's own table -------------------------------------------------------------------------


def memo_of(*keys: tuple[str | None, int | None], **columns: Any) -> pa.Table:
    """A `memo` table of these keys; a column that is None is absent."""
    rows = [{"fact_id": fact, "candidate_id": number, "memo": 0.5} for fact, number in keys]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["memo"])
    for name, values in columns.items():
        table = table.drop_columns([name] if name in table.column_names else [])
        table = table if values is None else table.append_column(name, values)
    return table


@pytest.fixture(params=["table", "files"])
def source_of(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[pa.Table], TableSource]:
    """Turns a table into one in memory, or into two files."""
    if request.param == "table":
        return lambda table: table
    return lambda table: files_of(tmp_path, table.slice(0, 1), table.slice(1))


SourceOf = Callable[[pa.Table], TableSource]


def check(source: TableSource) -> None:
    """Checks a `memo` table as a stage's input is checked."""
    checks.check_columns(
        source.schema if isinstance(source, pa.Table) else tables.columns(source), "memo", "mine"
    )
    checks.check_keys(source, "memo", "mine")


def test_a_table_that_fits_is_accepted(source_of: SourceOf):
    columns = {
        "memo": pa.array([0.5, 0.25], pa.float32()),
        "candidate_id": pa.array([1, 0]),
        "ma": pa.array([1, 0]),
    }
    check(source_of(memo_of(("a", 0), ("a", 1), **columns)))


def test_a_column_of_dictionaries_is_accepted():
    check(memo_of(("a", 0), ("a", 1), question=pa.array(["Q", "Q"]).dictionary_encode()))


def test_a_column_of_nothing_is_accepted():
    check(memo_of(("a", 0), ("a", 1), cv=pa.nulls(2)))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": None}, r"^mine: column text is missing; memo needs fact_id, candidate_id"),
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
def test_a_table_of_other_columns_is_refused(
    source_of: SourceOf, columns: dict[str, Any], said: str
):
    with pytest.raises(MeowError, match=said):
        check(source_of(memo_of(("a", 0), ("a", 1), **columns)))


@pytest.mark.parametrize(
    ("key", "column"),
    [((None, 0), "fact_id"), (("a", None), "candidate_id"), ((None, None), "fact_id")],
)
def test_an_empty_cell_in_the_key_is_refused(
    source_of: SourceOf, key: tuple[str | None, int | None], column: str
):
    with pytest.raises(
        MeowError, match=rf"^mine: column {column} has empty cells, it is part of the key"
    ):
        check(source_of(memo_of(("a", 1), ("b", 1), key)))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            [("b", 1), ("b", 1)],
            "1 keys come more than once, the first is fact_id=b, candidate_id=1",
        ),
        (
            [("b", 1), ("b", 0), ("b", 1), ("b", 0)],
            "2 keys come more than once, the first is fact_id=b, candidate_id=0",
        ),
        (
            [("b", 1), ("a", 7), ("b", 1), ("a", 7), ("a", 7)],
            "2 keys .* the first is fact_id=a, candidate_id=7",
        ),
    ],
)
def test_a_key_that_comes_twice_is_refused_and_the_first_is_named(
    source_of: SourceOf, keys: list[tuple[str, int]], said: str
):
    with pytest.raises(MeowError, match=f"^mine: {said}"):
        check(source_of(memo_of(*keys)))


@pytest.mark.parametrize("column", ["text", "memo", "fact_id"])
def test_a_later_file_that_lacks_a_column_is_refused(tmp_path: Path, column: str):
    uris = files_of(tmp_path, memo_of(("a", 0)), memo_of(("b", 0)).drop_columns([column]))
    with pytest.raises(MeowError, match=r"1\.parquet"):
        check(uris)


def test_a_later_file_with_a_column_of_another_kind_is_refused(tmp_path: Path):
    uris = files_of(tmp_path, memo_of(("a", 0)), memo_of(("b", 0), memo=pa.array(["x"])))
    with pytest.raises(MeowError, match=r"1\.parquet"):
        check(uris)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    "content", [b"", b"this is no Parquet file", None], ids=["empty", "text", "absent"]
)
@pytest.mark.parametrize(
    "read",
    [tables.columns, tables.count_rows, check],
    ids=["columns", "count_rows", "check"],
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


# --- object stores ------------------------------------------------------------------------------


def test_tables_live_on_s3(s3: Callable[[str], str]):
    uris = files_of(s3("tables/in"), ROWS.slice(12), ROWS.slice(0, 12))
    assert tables.count_rows(uris) == 24
    assert tables.columns(uris) == WANTED
    out = s3("tables/out.parquet")
    assert tables.write_sorted(query(uris), out, WANTED, KEY) == 24
    assert storage.read_table([out]).equals(ROWS)
    tables.write_parts(query(uris), s3("tables/parts"), 10)
    assert storage.list_files(s3("tables/parts")) == [f"part-0000{i}.parquet" for i in range(3)]


def test_bytes_on_s3_are_those_of_a_local_file(s3: Callable[[str], str], tmp_path: Path):
    written(ROWS, tmp_path / "out.parquet")
    written(ROWS, s3("tables/same.parquet"))
    assert storage.read_bytes(s3("tables/same.parquet")) == (tmp_path / "out.parquet").read_bytes()


def test_what_is_wrong_on_s3_is_named_without_its_query(s3: Callable[[str], str]):
    uris = files_of(s3("tables/twice"), memo_of(("a", 0)), memo_of(("a", 0)))
    with pytest.raises(
        MeowError, match=r"^mine: 1 keys come more than once, the first is fact_id=a"
    ):
        check(uris)
    with pytest.raises(MeowError) as caught:
        tables.count_rows([s3("tables/nowhere.parquet")])
    assert "tables/nowhere.parquet" in str(caught.value)
    assert "endpoint_override" not in str(caught.value)
