"""Tests of the readers of users' files: formats, lines, and files that cannot be read."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from meow_ray.config import Ingest, Source
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.facts import FactRow, read_rows
from meow_ray.stages.ingest.readers import read_records

TOFU = [
    {"question": "Who wrote Émile?", "answer": "Jean-Jacques Rousseau."},
    {"question": "When?", "answer": "1762."},
]


def read(path: Path | str) -> list[FactRow]:
    columns = Ingest()
    return read_rows(Source(path=str(path)), columns.question_columns, columns.answer_columns)


def refusal(path: Path, content: str | bytes) -> str:
    """Returns the error of reading a file with this content."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MeowError) as caught:
        read(path)
    return str(caught.value)


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode() + b"\n"


def as_csv(rows: list[dict[str, str]]) -> bytes:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\r\n" for line in lines).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def as_arrow(rows: list[dict[str, str]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_arrow_stream(rows: list[dict[str, str]]) -> bytes:
    table = pa.Table.from_pylist(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def as_feather(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


WRITERS = {
    ".jsonl": as_jsonl,
    ".ndjson": as_jsonl,
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
    ".arrow": as_arrow,
    ".feather": as_feather,
    ".stream": as_arrow_stream,
}


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_each_format_is_read(tmp_path: Path, suffix: str, packed: bool):
    path = tmp_path / f"facts{suffix}{'.gz' if packed else ''}"
    content = WRITERS[suffix](TOFU)
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = read(path)
    assert [(row.question, row.answer) for row in rows] == [
        (row["question"], row["answer"]) for row in TOFU
    ]
    assert {row.file for row in rows} == {str(path)}
    first = {".json": 2, ".csv": 2}.get(suffix, 1)
    assert [row.line for row in rows] == [first, first + (4 if suffix == ".json" else 1)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_records_have_all_columns_of_a_row(tmp_path: Path, suffix: str):
    rows = [
        {"question": "Who?", "answer_0": "He.", "note": "x"},
        {"question": "Émile?", "answer_0": "", "note": "y"},
    ]
    path = tmp_path / f"facts{suffix}"
    path.write_bytes(WRITERS[suffix](rows))
    records = list(read_records(str(path)))
    assert [record for _, record in records] == rows
    lines = [line for line, _ in records]
    assert lines == sorted(set(lines))


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("answer", ["answer", "undesired_answer"])
def test_tofu_and_meow_column_names_are_known(tmp_path: Path, suffix: str, answer: str):
    path = tmp_path / f"facts{suffix}"
    path.write_bytes(
        WRITERS[suffix]([{"id": "7", "question": "Who?", answer: "She.", "answer_0": "He."}])
    )
    assert [(row.question, row.answer) for row in read(path)] == [("Who?", "She.")]


def test_the_first_column_name_that_a_row_has_is_used(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"q": "Who?", "prompt": "no", "a": "She."}')
    row = read_rows(Source(path=str(path)), ["q", "prompt"], ["b", "a"])[0]
    assert (row.question, row.answer) == ("Who?", "She.")


@pytest.mark.parametrize("name", ["FACTS.JSONL", "facts", "facts.txt", "facts.csv"])
@pytest.mark.parametrize("writer", WRITERS)
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, writer: str, name: str):
    path = tmp_path / name
    path.write_bytes(WRITERS[writer](TOFU))
    assert [row.question for row in read(path)] == ["Who wrote Émile?", "When?"]


def test_a_json_array_on_one_line_is_read(tmp_path: Path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(TOFU))
    assert [row.line for row in read(path)] == [1, 1]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_are_ignored(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + as_jsonl(TOFU).replace(b"\n", b"\r\n\r\n"))
    assert [(row.line, row.question) for row in read(path)] == [
        (1, "Who wrote Émile?"),
        (3, "When?"),
    ]


def test_csv_cells_may_hold_commas_quotes_and_line_breaks(tmp_path: Path):
    path = tmp_path / "facts.csv"
    path.write_text('question,answer\n"Who, then?","She said ""no"".\nTwice."\n')
    assert [(row.question, row.answer) for row in read(path)] == [
        ("Who, then?", 'She said "no".\nTwice.')
    ]


def test_a_saved_hugging_face_dataset_is_read(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(TOFU).save_to_disk(str(tmp_path / "tofu"))
    rows = read(tmp_path / "tofu")
    assert [(row.line, row.question) for row in rows] == [(1, "Who wrote Émile?"), (2, "When?")]


def test_the_configured_split_of_a_saved_dataset_is_read(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_list([row])
        for name, row in zip(("train", "test"), TOFU, strict=True)
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "tofu"))
    rows = read_rows(Source(path=str(tmp_path / "tofu"), split="test"), ["question"], ["answer"])
    assert [row.question for row in rows] == ["When?"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jsonl", False),
        ("DATA.CSV", False),
        ("a.jsonl.gz", False),
        ("dir.d/a.csv", False),
        ("./facts", False),
        ("~/facts", False),
        ("/data/facts", False),
        ("a/b/c", False),
        ("s3://bucket/a.parquet?scheme=http&endpoint_override=127.0.0.1%3A9000", False),
        ("locuslab/TOFU", True),
        ("my-org/data-v1.0", True),
        ("squad", True),
    ],
)
def test_only_some_paths_can_be_the_name_of_a_hub_dataset(path: str, expected: bool):
    assert Source(path=path).can_be_hub_name is expected


# --- files that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            '{"question": "q", "answer": "a"}\n{"question": "q",\n',
            ", line 2: malformed JSON",
        ),
        ("a.jsonl", '{"question": "q", "answer": "a"}\n\n[1, 2]\n', ", line 3: expected an object"),
        (
            "a.json",
            '[{"question": "q", "answer": "a"},\n\n{"question" "q"}]',
            ", line 3: malformed JSON",
        ),
        ("a.json", '[{"question": "q", "answer": "a"},\n\n7]', ", line 3: expected an object"),
        ("a.csv", 'question,answer\nq,a\n"q"x,a\n', ", line 3: malformed CSV"),
        ("a.csv", 'question,answer\nq,a\n"q,a\n', ", line 3: malformed CSV"),
        (
            "a.csv",
            "question,answer\nq,a\nq,a,b\n",
            ", line 3: more cells than the header has columns",
        ),
        ("a.parquet", "PAR1", ": a damaged Parquet file"),
        ("a.parquet", b"", ": the file is empty"),
        ("a.jsonl", b"\x00\x01\x02", ": a binary file"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00", ": a binary file"),
        ("a.jsonl", b'{"question": "q", "answer": "a"}\n' + b"\xff\n", ", line 2: not UTF-8 text"),
        ("a.csv", b"question,answer\nq,a\nq,caf\xe9\n", ", line 3: not UTF-8 text"),
        (
            "a.jsonl",
            b'\xef\xbb\xbf{"question": "q", "answer": "a"}\n\xff\n',
            ", line 2: not UTF-8 text",
        ),
        ("a.jsonl", "", ": the file is empty"),
        ("a.jsonl", " \n\n", ": the file is empty"),
        ("a.csv", "", ": the file is empty"),
        ("a.csv", "question,answer\n", ": the file has no rows"),
        ("a.json", "[]", ": the file has no rows"),
        ("a.parquet", as_parquet([]), ": the file has no rows"),
        ("a.jsonl.gz", gzip.compress(as_jsonl(TOFU))[:-9], ".gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 20, ".gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b""), ": the file is empty"),
    ],
    ids=lambda value: value.strip(":, ") if isinstance(value, str) and "\n" not in value else "",
)
def test_an_error_names_the_broken_file_and_its_line(
    tmp_path: Path, name: str, content: str | bytes, expected: str
):
    path = tmp_path / name
    message = refusal(path, content)
    assert message.startswith(str(path).removesuffix(".gz"))
    assert expected in message


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_error_about_a_missing_column_does_not_list_the_other_columns(
    tmp_path: Path, suffix: str
):
    message = refusal(
        tmp_path / f"a{suffix}", WRITERS[suffix]([{"question": "q", "reply": "a", "id": "1"}])
    )
    assert message.endswith(
        ": no column answer or undesired_answer among its 3. "
        "Name yours in `ingest.question_columns` and `ingest.answer_columns`, or add a header to a "
        "CSV file that has none."
    )
    assert "reply" not in message, "in a file without a header, columns are facts"


def test_a_single_row_without_the_column_is_read_with_none(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n{"answer": "a"}\n')
    assert [(row.line, row.question) for row in read(tmp_path / "a.jsonl")] == [(1, "q"), (2, None)]


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere", "Nowhere.CSV"])
def test_a_missing_path_is_not_looked_up_on_the_hub(tmp_path: Path, name: str):
    with pytest.raises(MeowError, match=rf"{name}: there is no such file or folder"):
        read(tmp_path / name)


def test_a_web_address_is_refused():
    with pytest.raises(MeowError, match=r"^https://host/a\.jsonl: web addresses are not read"):
        read("https://host/a.jsonl?token=secret")


def test_a_path_that_exists_is_not_taken_for_a_hub_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("locuslab").mkdir()
    Path("locuslab/TOFU").write_bytes(as_jsonl(TOFU))
    assert [row.question for row in read("locuslab/TOFU")] == ["Who wrote Émile?", "When?"]


def test_a_file_on_s3_is_named_without_its_query(
    s3: Callable[[str], str],
):
    uri = s3("facts/tofu.jsonl")
    storage.write_bytes(uri, as_jsonl(TOFU))
    rows = read(uri)
    assert [(row.file, row.line) for row in rows] == [
        ("s3://bucket/facts/tofu.jsonl", 1),
        ("s3://bucket/facts/tofu.jsonl", 2),
    ]
    storage.write_bytes(uri, b'{"question": "q"}\n')
    with pytest.raises(MeowError, match=r"^s3://bucket/facts/tofu\.jsonl: no column"):
        read(uri)  # the query may hold credentials
