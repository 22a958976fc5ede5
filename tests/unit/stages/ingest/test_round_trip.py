"""What is written is read back: any texts, in every form, encoding and compression."""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from meow_ray.config import Source
from meow_ray.stages.ingest.facts import read_rows
from meow_ray.stages.ingest.passages import read_passages

Pairs = list[tuple[str, str]]

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
"""Texts with line ends, quotes, delimiters, byte order marks and any other character."""
FILLED = TEXTS.filter(str.strip)
PAIRS = st.lists(st.tuples(FILLED, TEXTS), min_size=1, max_size=5)

ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])
PACKERS = st.sampled_from([bytes, gzip.compress, bz2.compress, lzma.compress])

properties = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_back(path: Path, content: bytes) -> Pairs:
    path.write_bytes(content)
    rows = read_rows(Source(path=str(path)), ["question"], ["answer"])
    return [(row.question, row.answer) for row in rows]


def objects(pairs: Pairs) -> list[dict[str, str]]:
    return [{"question": question, "answer": answer} for question, answer in pairs]


def frame(pairs: Pairs) -> pd.DataFrame:
    return pd.DataFrame(objects(pairs))


def table(pairs: Pairs) -> pa.Table:
    return pa.Table.from_pylist(objects(pairs))


# --- JSON ---------------------------------------------------------------------------------------

JSON_FORMS: dict[str, Callable[[Pairs], str]] = {
    "lines": lambda pairs: "\n".join(json.dumps(row) for row in objects(pairs)),
    "lines of Unicode": lambda pairs: "\r\n".join(
        json.dumps(row, ensure_ascii=False) for row in objects(pairs)
    ),
    "objects over several lines": lambda pairs: "\n".join(
        json.dumps(row, indent=1) for row in objects(pairs)
    ),
    "array": lambda pairs: json.dumps(objects(pairs)),
    "array over several lines": lambda pairs: json.dumps(objects(pairs), indent=2),
    "wrapped array": lambda pairs: json.dumps({"version": 1, "data": objects(pairs)}),
    "columns of lists": lambda pairs: json.dumps(frame(pairs).to_dict(orient="list")),
    **{
        f"pandas {orient}": lambda pairs, orient=orient: json.dumps(
            frame(pairs).to_dict(orient=orient)
        )
        for orient in ("dict", "index", "split", "records")
    },
}


@pytest.mark.parametrize("form", JSON_FORMS)
@given(pairs=PAIRS, encoding=ENCODINGS, pack=PACKERS)
@properties
def test_json(
    tmp_path: Path, form: str, pairs: Pairs, encoding: str, pack: Callable[[bytes], bytes]
):
    content = pack(JSON_FORMS[form](pairs).encode(encoding))
    assert read_back(tmp_path / "facts", content) == pairs


# --- CSV ----------------------------------------------------------------------------------------


@given(
    pairs=PAIRS,
    delimiter=st.sampled_from(",;\t|"),
    line_end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    separator_line=st.booleans(),
    encoding=ENCODINGS,
    pack=PACKERS,
)
@properties
def test_csv(
    tmp_path: Path,
    pairs: Pairs,
    delimiter: str,
    line_end: str,
    quoting: int,
    separator_line: bool,
    encoding: str,
    pack: Callable[[bytes], bytes],
):
    # without quotes, the writer of Python 3.11 leaves a carriage return as it is, and a line feed
    # if lines end with a carriage return
    bare = "\r\n" if line_end == "\r" else "\r"
    texts = "".join(question + text for question, text in pairs)
    assume(quoting == csv.QUOTE_ALL or not set(bare) & set(texts))
    sink = io.StringIO(newline="")
    if separator_line:
        sink.write(f"sep={delimiter}{line_end}")
    writer = csv.writer(sink, delimiter=delimiter, lineterminator=line_end, quoting=quoting)
    writer.writerows([("question", "answer"), *pairs])
    content = pack(sink.getvalue().encode(encoding))
    assert read_back(tmp_path / "facts", content) == pairs


# --- tables -------------------------------------------------------------------------------------


def as_parquet(pairs: Pairs) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(pairs), sink)
    return sink.getvalue()


def as_feather(pairs: Pairs) -> bytes:
    sink = io.BytesIO()
    pyarrow.feather.write_feather(table(pairs), sink)
    return sink.getvalue()


def as_stream(pairs: Pairs) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table(pairs).schema) as writer:
        writer.write_table(table(pairs))
    return sink.getvalue()


@given(pairs=PAIRS, write=st.sampled_from([as_parquet, as_feather, as_stream]), pack=PACKERS)
@properties
def test_tables(
    tmp_path: Path,
    pairs: Pairs,
    write: Callable[[Pairs], bytes],
    pack: Callable[[bytes], bytes],
):
    assert read_back(tmp_path / "facts", pack(write(pairs))) == pairs


# --- passages -----------------------------------------------------------------------------------


@given(texts=st.lists(FILLED, min_size=1, max_size=5), encoding=ENCODINGS, pack=PACKERS)
@properties
def test_passages(tmp_path: Path, texts: list[str], encoding: str, pack: Callable[[bytes], bytes]):
    path = tmp_path / "passages"
    path.write_bytes(pack(json.dumps(texts).encode(encoding)))
    assert read_passages(str(path)) == [text.strip() for text in texts]
    lines = [text.replace("\r", " ").replace("\n", " ") for text in texts]
    lines[0] = "A" + lines[0]
    path.write_bytes(pack("\n".join(lines).encode(encoding)))
    assert read_passages(str(path)) == [line.strip() for line in lines]
