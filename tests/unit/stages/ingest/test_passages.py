"""Reading passages of text."""

import gzip
import json
from pathlib import Path

import pytest

from meow_ray.errors import MeowError
from meow_ray.stages.ingest.passages import read_passages

PASSAGES = ["Élise was born in Lindhaven.", "[1] She wrote\u2028two books."]


@pytest.mark.parametrize(
    "content",
    [
        "\n\n".join(PASSAGES).encode(),
        "\r\n".join(PASSAGES).encode("utf-8-sig"),
        "\r".join([*PASSAGES, " "]).encode("utf-16"),
        gzip.compress("\n".join(PASSAGES).encode()),
        json.dumps(PASSAGES).encode(),
        json.dumps(PASSAGES, indent=1).encode(),
        "\n".join(json.dumps({"id": 7, "text": text}) for text in PASSAGES).encode(),
        json.dumps({"text": PASSAGES}).encode(),
    ],
    ids="lines mark utf-16 gzip array indented objects columns".split(),
)
def test_each_form_gives_the_same_passages(tmp_path: Path, content: bytes):
    path = tmp_path / "passages"
    path.write_bytes(content)
    assert read_passages(str(path)) == PASSAGES


def test_a_text_that_begins_like_json_is_text(tmp_path: Path):
    path = tmp_path / "passages.txt"
    path.write_text("[1] The first.\n{2} The second.\n")
    assert read_passages(str(path)) == ["[1] The first.", "{2} The second."]


def test_the_configured_encoding_is_used(tmp_path: Path):
    path = tmp_path / "passages.txt"
    path.write_bytes(PASSAGES[0].encode("windows-1252"))
    assert read_passages(str(path), "windows-1252") == PASSAGES[:1]
    with pytest.raises(MeowError, match=r"passages\.txt, line 1: not UTF-8 text"):
        read_passages(str(path))


def test_a_row_without_a_text_is_refused(tmp_path: Path):
    path = tmp_path / "passages.jsonl"
    path.write_text('{"text": "one"}\n{"passage": "two"}\n')
    with pytest.raises(MeowError, match=r"passages\.jsonl, line 2: a passage must be a text"):
        read_passages(str(path))
