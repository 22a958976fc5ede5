"""The content of users' files: unpacking it, recognising what it is, and decoding its text."""

import bz2
import codecs
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.errors import MeowError

READ = "JSON, CSV, Parquet or Arrow"
"""The formats that are read, for error messages."""

CURE = "Save the data as JSON Lines, CSV (UTF-8) or Parquet"
"""What to do with a file of another format."""


class EmptyFileError(MeowError):
    """A file without content."""


def read_content(uri: str) -> bytes:
    """Returns the content of a file, unpacked if it is compressed.

    Raises:
        MeowError: the file cannot be read, is empty, or is no data file.
    """
    name = storage.display(uri)
    content = _unpacked(name, storage.read_bytes(uri))
    if not content.strip():
        raise EmptyFileError(f"{name}: the file is empty. Write its content again.")
    _refuse_other_formats(name, content)
    return content


def read_text(uri: str, encoding: str | None = None) -> str:
    """Returns the text of a file, unpacked if it is compressed; see `decoded`."""
    return decoded(storage.display(uri), read_content(uri), encoding)


# --- compression --------------------------------------------------------------------------------


def _arrow_codec(name: str) -> Callable[[bytes], bytes]:
    """Returns a function that unpacks with a codec of Arrow."""

    def unpack(content: bytes) -> bytes:
        with pa.CompressedInputStream(pa.BufferReader(content), name) as stream:
            return bytes(stream.read())

    return unpack


_CODECS: dict[bytes, tuple[str, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": ("gzip", gzip.decompress),
    b"BZh": ("bzip2", bz2.decompress),
    b"\xfd7zXZ\x00": ("xz", lzma.decompress),
    b"\x28\xb5\x2f\xfd": ("Zstandard", _arrow_codec("zstd")),
    b"\x04\x22\x4d\x18": ("LZ4", _arrow_codec("lz4")),
}
"""The name of a compression and the function that unpacks it, by the first bytes of a file."""


def _unpacked(name: str, content: bytes) -> bytes:
    """Returns the content without its compression, of which there may be several layers."""
    for magic, (codec, unpack) in _CODECS.items():
        if content.startswith(magic):
            try:
                inner = unpack(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise MeowError(
                    f"{name}: not a whole {codec} file ({error}). Compress the file again."
                ) from None
            return _unpacked(name, inner)
    return content


# --- other formats ------------------------------------------------------------------------------

_OTHER_FORMATS: dict[bytes, str] = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Excel or Word file (.xls, .doc)",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"%PDF-": "a PDF file",
    b"{\\rtf": "a rich text file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"PARE": "an encrypted Parquet file",
    b"\x80\x04\x95": "a Python pickle",
    b"\x80\x05\x95": "a Python pickle",
}
"""Formats that are not read, by the first bytes of a file."""

_TAR = slice(257, 262)
"""Where a tar archive says `ustar`."""

_WEB_PAGE = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype html|html)\b", re.IGNORECASE)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def _refuse_other_formats(name: str, content: bytes) -> None:
    """Raises an error that names the format of a file that is not read."""
    if content.startswith(_LFS_POINTER):
        raise MeowError(
            f"{name}: a Git LFS pointer, not the data itself. Run `git lfs pull` in its repository."
        )
    if _WEB_PAGE.match(content):
        raise MeowError(f"{name}: a web page (HTML), not data. Download the file itself.")
    if content.startswith(b"PK\x03\x04"):
        raise MeowError(f"{name}: {_zip_kind(content)}")
    if content[_TAR] == b"ustar":
        raise MeowError(f"{name}: a tar archive. Unpack it and name the data file.")
    for magic, kind in _OTHER_FORMATS.items():
        if content.startswith(magic):
            raise MeowError(f"{name}: {kind}, which is not read. {CURE}.")


def _zip_kind(content: bytes) -> str:
    """Returns what a zip file is, and what to do with it."""
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return "a damaged zip archive. Copy the file again."
    if any(member.startswith("xl/") for member in names):
        return "an Excel workbook (.xlsx), which is not read. Save the sheet as CSV UTF-8."
    if "mimetype" in names and "content.xml" in names:
        return "an OpenDocument file (.ods), which is not read. Save the sheet as CSV UTF-8."
    return "a zip archive. Unpack it and name the data file."


# --- text ---------------------------------------------------------------------------------------

_MARK = "\ufeff"
"""The byte order mark as a character."""

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Other encodings than UTF-8 by byte order mark; that of UTF-32 begins like that of UTF-16."""


def decoded(name: str, content: bytes, encoding: str | None) -> str:
    """Returns the text of a file.

    Args:
        name: the file, for error messages.
        content: its content.
        encoding: the encoding of a file that has no byte order mark and is not UTF-8.

    Raises:
        MeowError: the content is not text in the encoding of its byte order mark, in UTF-8 or in
            `encoding`.
    """
    for mark, marked in _MARKS.items():
        if content.startswith(mark):
            return _strictly_decoded(name, content, marked, "Write the file again")
    try:
        text = content.decode("utf-8").lstrip(_MARK)
    except UnicodeDecodeError as error:
        if encoding is None or content.startswith(codecs.BOM_UTF8):
            raise _not_utf8(name, error) from None
    else:
        if "\x00" not in text:
            return text
        if encoding is None:
            raise _has_nulls(name, content)
    return _strictly_decoded(name, content, encoding, "Correct `ingest.encoding`")


def _strictly_decoded(name: str, content: bytes, encoding: str, cure: str) -> str:
    try:
        text = content.decode(encoding).lstrip(_MARK)
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        raise MeowError(
            f"{name}: not {encoding} text ({reason}). {cure}, or save it as UTF-8."
        ) from None
    if "\x00" in text:
        raise MeowError(f"{name}: a binary file, not text. {CURE}.")
    return text


def _not_utf8(name: str, error: UnicodeDecodeError) -> MeowError:
    content, position = error.object, error.start
    if b"\x00" in content:
        return _has_nulls(name, content)
    line = content.count(b"\n", 0, position) + 1
    return MeowError(
        f"{name}, line {line}: not UTF-8 text (byte {position} is 0x{content[position]:02X}). "
        "Excel's plain CSV is in the Windows code page of its country, such as windows-1252 "
        '(Western Europe) or windows-1251 (Cyrillic): save it as "CSV UTF-8", or set '
        "`ingest.encoding`."
    )


def _has_nulls(name: str, content: bytes) -> MeowError:
    """Returns the error of a file with zero bytes: binary data, or UTF-16 without its mark."""
    start = content[:1000]
    for encoding, zeros in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if zeros.count(0) > 0.7 * len(zeros):
            return MeowError(
                f"{name}: UTF-16 text without a byte order mark. Save the file as UTF-8, or set "
                f"`ingest.encoding={encoding}`."
            )
    return MeowError(f"{name}: a binary file, not text. {CURE}.")
