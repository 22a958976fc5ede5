"""The content of files: compression, formats that are not read, and encodings."""

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from meow_ray.errors import MeowError
from meow_ray.stages.ingest.content import read_text

TEXT = "question,answer\r\nOù est née Élise?,À Lindhaven – près du port.\r\n"


def by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def pack(content: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()

    return pack


PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": by_arrow("zstd"),
    "LZ4": by_arrow("lz4"),
}


def zip_of(*names: str) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return sink.getvalue()


def tar_of(name: str) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return sink.getvalue()


def refusal(path: Path, content: bytes, encoding: str | None = None) -> str:
    path.write_bytes(content)
    with pytest.raises(MeowError) as caught:
        read_text(str(path), encoding)
    return str(caught.value).removeprefix(str(path))


# --- compression --------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", PACKERS)
def test_compressed_files_are_unpacked_whatever_their_name(tmp_path: Path, codec: str):
    path = tmp_path / "facts.csv"
    path.write_bytes(PACKERS[codec](TEXT.encode()))
    assert read_text(str(path)) == TEXT
    path.write_bytes(gzip.compress(PACKERS[codec](TEXT.encode())))
    assert read_text(str(path)) == TEXT


@pytest.mark.parametrize("codec", PACKERS)
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path: Path, codec: str):
    packed = PACKERS[codec](TEXT.encode() * 50)
    assert refusal(tmp_path / "a", packed[:-5]).startswith(f": not a whole {codec} file (")


# --- other formats ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (zip_of("[Content_Types].xml", "xl/workbook.xml"), ": an Excel workbook (.xlsx), which is"),
        (
            zip_of("mimetype", "content.xml"),
            ": an OpenDocument file (.ods), which is not",
        ),
        (zip_of("facts.csv"), ": a zip archive. Unpack it and name the data file."),
        (zip_of("facts.csv")[:40], ": a damaged zip archive."),
        (tar_of("facts.csv"), ": a tar archive. Unpack it"),
        (gzip.compress(tar_of("facts.csv"), mtime=0), ": a tar archive. Unpack it"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512), ": an old Excel or Word file (.xls"),
        (b"SQLite format 3\x00", ": an SQLite database"),
        (
            pickle.dumps([TEXT], protocol=4),
            ": a Python pickle, which is not read.",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
            ": a Git LFS pointer, not",
        ),
        (b"\n<!DOCTYPE html><html>", ": a web page (HTML), not data. Download the file itself."),
        (b"\x00\x01\x02\x03", ": a binary file, not text. Save the data as JSON Lines"),
        (b" \r\n", ": the file is empty."),
        (gzip.compress(b"", mtime=0), ": the file is empty."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_formats_are_refused_by_name(tmp_path: Path, content: bytes, expected: str):
    assert refusal(tmp_path / "facts.jsonl", content).startswith(expected)


# --- encodings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [None, "windows-1252"])
@pytest.mark.parametrize("marked", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_is_read_whatever_encoding_is_configured(
    tmp_path: Path, marked: str, encoding: str | None
):
    path = tmp_path / "a.csv"
    path.write_bytes(TEXT.encode(marked))
    assert read_text(str(path), encoding) == TEXT
    if marked.startswith("utf-16"):
        path.write_bytes(b"\xfe\xff" + TEXT.encode("utf-16-be"))
        assert read_text(str(path), encoding) == TEXT


@pytest.mark.parametrize("encoding", ["windows-1252", "utf-16-le", "utf-16-be"])
def test_the_configured_encoding_is_used_for_the_rest(tmp_path: Path, encoding: str):
    path = tmp_path / "a.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(str(path), encoding) == TEXT
    assert encoding in refusal(path, TEXT.encode(encoding))


def test_a_file_that_is_not_utf_8_is_refused_with_its_line_and_the_cure(tmp_path: Path):
    message = refusal(tmp_path / "a.csv", TEXT.encode("windows-1252"))
    assert message.startswith(", line 2: not UTF-8 text (byte 18 is 0xF9).")
    assert 'save it as "CSV UTF-8", or set `ingest.encoding`' in message
    assert "windows-1252 (Western Europe)" in message
    assert refusal(tmp_path / "b.csv", b"\xef\xbb\xbfa\n\xff", "cp1252").startswith(", line 2: not")


def test_a_wrong_encoding_is_refused(tmp_path: Path):
    message = refusal(tmp_path / "a.csv", b"\xff\x98", "windows-1251")
    assert message.startswith(": not windows-1251 text (")
