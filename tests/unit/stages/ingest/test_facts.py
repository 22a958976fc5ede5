import gzip
import hashlib
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Ingest, Source
from meow_ray.core import storage
from meow_ray.core.schema import REJECTS_SCHEMA, SCHEMAS
from meow_ray.errors import MeowError
from meow_ray.stages.ingest import facts, readers
from meow_ray.stages.ingest.facts import Row

TEXT = st.text(st.characters(codec="utf-8"))
TOFU = [
    {"question": "Who wrote Émile?", "answer": "Jean-Jacques Rousseau."},
    {"question": "When?", "answer": "1762."},
]


def read(path: Path | str) -> list[Row]:
    columns = Ingest()
    return facts.read(Source(path=str(path)), columns.question_columns, columns.answer_columns)


def refusal(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MeowError) as caught:
        read(path)
    return str(caught.value)


def build(
    forget: list[Any],
    retain: list[Any] = (),
    limit: Callable[[str, str], str | None] = lambda q, a: None,
):
    """Builds from (question, answer) pairs; their lines count from 1."""
    rows = [
        [Row(name, i, *pair) for i, pair in enumerate(pairs, start=1)]
        for name, pairs in (("f.jsonl", forget), ("r.jsonl", retain))
    ]
    table, rejects = facts.build(*rows, limit)
    assert table.schema == SCHEMAS["facts"]
    assert rejects.schema == REJECTS_SCHEMA
    return table.to_pylist(), rejects.to_pylist()


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode() + b"\n"


def as_csv(rows: list[dict[str, str]]) -> bytes:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\r\n" for line in lines).encode()


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


WRITERS = {
    ".jsonl": as_jsonl,
    ".ndjson": as_jsonl,
    ".json": lambda rows: json.dumps(rows, indent=1).encode(),
    ".csv": as_csv,
    ".parquet": as_parquet,
}


# --- formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_file_of_each_format_gives_its_rows(tmp_path: Path, suffix: str, packed: bool):
    path = tmp_path / f"facts{suffix}{'.gz' if packed else ''}"
    content = WRITERS[suffix](TOFU)
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = read(path)
    assert [(row.question, row.answer) for row in rows] == [
        (row["question"], row["answer"]) for row in TOFU
    ]
    assert {row.file for row in rows} == {str(path)}
    first = {".jsonl": 1, ".ndjson": 1, ".json": 2, ".csv": 2, ".parquet": 1}[suffix]
    assert [row.line for row in rows] == [first, first + (4 if suffix == ".json" else 1)]


@pytest.mark.parametrize("suffix", WRITERS)
def test_records_are_the_rows_with_all_their_columns(tmp_path: Path, suffix: str):
    rows = [
        {"question": "Who?", "answer_0": "He.", "note": "x"},
        {"question": "Émile?", "answer_0": "", "note": "y"},
    ]
    path = tmp_path / f"facts{suffix}"
    path.write_bytes(WRITERS[suffix](rows))
    found = list(readers.read_records(str(path)))
    assert [record for _, record in found] == rows
    assert [line for line, _ in found] == sorted({line for line, _ in found})


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("answer", ["answer", "undesired_answer"])
def test_tofu_and_meow_column_names_are_known(tmp_path: Path, suffix: str, answer: str):
    path = tmp_path / f"facts{suffix}"
    path.write_bytes(
        WRITERS[suffix]([{"id": "7", "question": "Who?", answer: "She.", "answer_0": "He."}])
    )
    assert [(row.question, row.answer) for row in read(path)] == [("Who?", "She.")]


def test_the_first_of_the_column_names_wins(tmp_path: Path):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"q": "Who?", "prompt": "no", "a": "She."}')
    row = facts.read(Source(path=str(path)), ["q", "prompt"], ["b", "a"])[0]
    assert (row.question, row.answer) == ("Who?", "She.")


def test_a_json_array_on_one_line_is_read_too(tmp_path: Path):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(TOFU))
    assert [row.line for row in read(path)] == [1, 1]


def test_blank_lines_windows_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path: Path):
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


def test_a_saved_dataset_of_several_splits_gives_the_wanted_one(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    splits = {
        name: datasets.Dataset.from_list([row])
        for name, row in zip(("train", "test"), TOFU, strict=True)
    }
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "tofu"))
    rows = facts.read(Source(path=str(tmp_path / "tofu"), split="test"), ["question"], ["answer"])
    assert [row.question for row in rows] == ["When?"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.jsonl", True),
        ("a.jsonl.gz", True),
        ("dir.d/a.csv", True),
        ("s3://bucket/a.parquet", True),
        ("s3://bucket/a.parquet?scheme=http&endpoint_override=127.0.0.1%3A9000", True),
        ("locuslab/TOFU", False),
        ("folder", False),
    ],
)
def test_a_source_is_a_file_by_its_suffix(path: str, expected: bool):
    assert Source(path=path).is_file is expected


# --- files that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
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
        (
            "a.json",
            '{"question": "q", "answer": "a"}',
            ": a .json file must hold an array of objects",
        ),
        ("a.csv", 'question,answer\nq,a\n"q"x,a\n', ", line 3: malformed CSV"),
        ("a.csv", 'question,answer\nq,a\n"q,a\n', ", line 3: malformed CSV"),
        (
            "a.csv",
            "question,answer\nq,a\nq,a,b\n",
            ", line 3: more cells than the header has columns",
        ),
        ("a.parquet", "PAR1", ": not a Parquet file"),
        ("a.parquet", b"", ": not a Parquet file"),
        ("a.jsonl", b"\x00\x01\x02", ": a binary file"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00", ", line 1: not UTF-8 text"),
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
        ("a.jsonl.gz", b"plain", ".gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(as_jsonl(TOFU))[:-9], ".gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b"")[:10] + b"\xff" * 20, ".gz: not a whole gzip file"),
        ("a.jsonl.gz", gzip.compress(b""), ": the file is empty"),
    ],
    ids=lambda value: value.strip(":, ") if isinstance(value, str) and "\n" not in value else "",
)
def test_a_broken_file_is_named_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
):
    path = tmp_path / name
    message = refusal(path, content)
    assert message.startswith(str(path).removesuffix(".gz"))
    assert said in message


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_missing_column_is_named_without_those_that_are_there_which_may_be_facts(
    tmp_path: Path, suffix: str
):
    message = refusal(
        tmp_path / f"a{suffix}", WRITERS[suffix]([{"question": "q", "reply": "a", "id": "1"}])
    )
    assert "no column answer or undesired_answer among its 3" in message
    assert "reply" not in message
    assert "ingest.answer_columns" in message


def test_a_single_row_without_the_column_is_a_row_to_reject(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n{"answer": "a"}\n')
    assert [(row.line, row.question) for row in read(tmp_path / "a.jsonl")] == [(1, "q"), (2, None)]


def test_what_is_neither_file_nor_dataset_is_refused(tmp_path: Path):
    with pytest.raises(MeowError, match=r"nowhere\.jsonl: there is no such file"):
        read(tmp_path / "nowhere.jsonl")
    pytest.importorskip("datasets")
    with pytest.raises(MeowError, match="nowhere: neither a file nor a Hugging Face dataset"):
        read(tmp_path / "nowhere")


# --- rows ---------------------------------------------------------------------------------------


def test_facts_have_id_split_question_and_answer():
    table, rejects = build([("Who?", "She.")], [("When?", "Now.")])
    assert rejects == []
    assert table == [
        {
            "fact_id": facts.fact_id("Who?", "She."),
            "split": "forget",
            "question": "Who?",
            "answer": "She.",
        },
        {
            "fact_id": facts.fact_id("When?", "Now."),
            "split": "retain",
            "question": "When?",
            "answer": "Now.",
        },
    ]


def test_a_fact_id_is_what_the_design_says():
    expected = hashlib.sha256("Who wrote Émile?\x1fJean-Jacques Rousseau.".encode()).hexdigest()[
        :16
    ]
    assert facts.fact_id("Who wrote Émile?", "Jean-Jacques Rousseau.") == expected
    assert facts.fact_id("a", "b") == hashlib.sha256(b"a\x1fb").hexdigest()[:16]


@given(TEXT, TEXT)
def test_a_fact_id_does_not_depend_on_the_unicode_form(question: str, answer: str):
    nfc, nfd = (
        tuple(unicodedata.normalize(form, text) for text in (question, answer))
        for form in ("NFC", "NFD")
    )
    expected = hashlib.sha256("\x1f".join(nfc).encode()).hexdigest()[:16]
    assert facts.fact_id(question, answer) == facts.fact_id(*nfc) == facts.fact_id(*nfd) == expected


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_every_row_becomes_a_fact_in_nfc_or_a_reject(pairs: list[tuple[str, str]]):
    table, rejects = build(pairs)
    assert len(table) + len(rejects) == len(pairs)
    assert len({row["fact_id"] for row in table}) == len(table)
    for row in table:
        assert row["question"] == unicodedata.normalize("NFC", row["question"]).strip() != ""
        assert row["answer"] == unicodedata.normalize("NFC", row["answer"]).strip() != ""
        assert row["fact_id"] == facts.fact_id(row["question"], row["answer"])


def test_text_is_composed_and_trimmed_but_keeps_its_case():
    table, rejects = build(
        [(" WHO wrote E\u0301mile? ", "\tROUSSEAU\n"), ("Who wrote Émile?", "Rousseau")]
    )
    assert rejects == []
    assert [(row["question"], row["answer"]) for row in table] == [
        ("WHO wrote Émile?", "ROUSSEAU"),
        ("Who wrote Émile?", "Rousseau"),
    ]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((None, "a"), "question is missing"),
        (("q", None), "answer is missing"),
        (("", "a"), "question is empty"),
        (("q", " \n\t"), "answer is empty"),
        (("q", 7), "answer is not a text but int"),
        ((["q"], "a"), "question is not a text but list"),
        (("q", b"a"), "answer is not a text but bytes"),
        (("q", True), "answer is not a text but bool"),
        (("Who?", "She."), f"duplicate of fact {facts.fact_id('Who?', 'She.')}"),
        ((" Who?", "She.\n"), f"duplicate of fact {facts.fact_id('Who?', 'She.')}"),
    ],
)
def test_an_unfit_row_is_rejected_with_its_line_and_reason(pair: tuple[Any, Any], reason: str):
    table, rejects = build([("Who?", "She."), pair, ("When?", "Now.")])
    assert [row["question"] for row in table] == ["Who?", "When?"]
    assert rejects == [{"file": "f.jsonl", "line": 2, "split": "forget", "reason": reason}]


def test_half_a_surrogate_pair_is_rejected_and_not_a_crash():
    table, rejects = build([("Who?", json.loads(r'"\ud83d"')), ("When?", "Now.")])
    assert [row["question"] for row in table] == ["When?"]
    assert [row["line"] for row in rejects] == [1]


def test_a_fact_to_forget_and_to_keep_is_rejected_from_the_retain_set():
    table, rejects = build([("Who?", "She.")], [("When?", "Now."), ("Who?", "She.")])
    assert [(row["question"], row["split"]) for row in table] == [
        ("Who?", "forget"),
        ("When?", "retain"),
    ]
    reason = f"duplicate of fact {facts.fact_id('Who?', 'She.')} of the forget set"
    assert rejects == [{"file": "r.jsonl", "line": 2, "split": "retain", "reason": reason}]


def test_a_row_that_is_too_long_is_rejected_with_the_limit():
    table, rejects = build(
        [("Who?", "She."), ("Who?", "x" * 9)], limit=lambda q, a: "too long" if len(a) > 8 else None
    )
    assert len(table) == 1
    assert [(row["line"], row["reason"]) for row in rejects] == [(2, "too long")]


def test_a_file_on_s3_is_named_without_its_query_which_may_carry_credentials(
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
        read(uri)
