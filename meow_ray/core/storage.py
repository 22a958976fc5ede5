"""Files at URIs: reading, atomic writing, copying, Parquet, and digests of contents.

A URI is a local path, `file://`, or the URI of an object store such as `s3://` or `gs://`. All
functions raise a MeowError that names the URI if the system refuses to read or write it.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import tenacity

from meow_ray.core import local_cache
from meow_ray.core.uris import absolute as absolute
from meow_ray.core.uris import display as display
from meow_ray.core.uris import is_local as is_local
from meow_ray.core.uris import join as join
from meow_ray.errors import MeowError

CHUNK = 1 << 22
"""Bytes that are read at once to compute a digest."""

CAUSES = {
    errno.ENOSPC: "the disk is full. Free some space and start again; finished stages are reused",
    errno.EDQUOT: (
        "the disk quota is used up. Free some space and start again; finished stages are reused"
    ),
    errno.EACCES: "permission denied. Choose another location or change its permissions",
    errno.EROFS: "the filesystem is read-only. Choose another location",
    errno.ENOENT: "there is no such file or folder",
}
"""System errors that a user can correct, as a sentence without its full stop, by error number."""


# --- filesystems ----------------------------------------------------------------------------------


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the pyarrow filesystem of a URI, and the path within that filesystem.

    Raises:
        MeowError: the scheme is unknown, or the object store cannot be reached.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    with naming_errors(uri):
        fs, path = pafs.FileSystem.from_uri(uri)
    return fs, str(path)


# --- errors -------------------------------------------------------------------------------------


@contextmanager
def naming_errors(uri: str) -> Iterator[None]:
    """Turns errors of the system and of Arrow in the block into a MeowError that names `uri`."""
    try:
        yield
    except OSError as error:
        reason = CAUSES.get(error.errno or 0) or str(error).splitlines()[0]
        raise MeowError(f"{display(uri)}: {reason}.") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise MeowError(f"{display(uri)}: {str(error).splitlines()[0]}.") from error


_TRANSIENT = re.compile(
    r"SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|UNAVAILABLE|NETWORK_CONNECTION|HTTP status 5"
)


def _is_transient(error: BaseException) -> bool:
    """Tells whether an error comes from an object store that is likely to accept a later try."""
    return isinstance(error, MeowError) and bool(_TRANSIENT.search(str(error.__cause__)))


retry_transient = tenacity.retry(
    retry=tenacity.retry_if_exception(_is_transient),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential(max=10),
    reraise=True,
)
"""Decorator: repeats a function that an object store refused for the moment, up to 4 tries.

Arrow retries for some seconds by itself, but that is not enough in two cases. It reports an upload
as failed if the store completes it at the second try, and it gives up if a refusal is longer than
the file that it reads.
"""


# --- files and folders --------------------------------------------------------------------------


def exists(uri: str) -> bool:
    """Tells whether there is a file or a folder at the URI."""
    return bool(_kind(uri) != pafs.FileType.NotFound)


def is_folder(uri: str) -> bool:
    """Tells whether there is a folder at the URI."""
    return bool(_kind(uri) == pafs.FileType.Directory)


def _kind(uri: str) -> pafs.FileType:
    fs, path = filesystem(uri)
    with naming_errors(uri):
        return fs.get_file_info(path).type


def list_files(uri: str) -> list[str]:
    """Returns the paths of all files in a folder and its subfolders, relative to it, sorted."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(
        info.path[len(path) :].lstrip("/") for info in infos if info.type == pafs.FileType.File
    )


def list_names(uri: str) -> list[str]:
    """Returns the names of a folder's entries, sorted; an empty list if there is no such folder."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        return sorted(
            info.base_name
            for info in fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        )


def make_folder(uri: str) -> None:
    """Creates a folder and its parents."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        fs.create_dir(path, recursive=True)


def remove(uri: str) -> None:
    """Deletes a file or a folder with its content; does nothing if there is none."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)


@retry_transient
def copy_folder(source: str, target: str) -> None:
    """Copies the folder `source`, with its subfolders, to `target`."""
    source_fs, source_path = filesystem(source)
    target_fs, target_path = filesystem(target)
    with naming_errors(target):
        target_fs.create_dir(target_path, recursive=True)
        pafs.copy_files(
            source_path, target_path, source_filesystem=source_fs, destination_filesystem=target_fs
        )


@retry_transient
def copy_file(source: str, target: str) -> None:
    """Copies one file; an existing local file at `target` is replaced by the complete copy."""
    source_fs, source_path = filesystem(source)
    target_fs, target_path = filesystem(target)
    part_path = f"{target_path}.{uuid4().hex[:8]}.part" if is_local(target) else target_path
    with naming_errors(target):
        target_fs.create_dir(str(Path(target_path).parent), recursive=True)
        pafs.copy_files(
            source_path, part_path, source_filesystem=source_fs, destination_filesystem=target_fs
        )
        if part_path != target_path:
            os.replace(part_path, target_path)


def local_copy(uri: str, key: str) -> Path:
    """Returns a local folder with the content of a folder.

    A local folder is returned as it is. A remote one is downloaded into the cache once.

    Args:
        uri: the folder.
        key: name of the copy in the cache; it must identify the content.
    """
    if is_local(uri):
        return Path(absolute(uri))
    return local_cache.made_once(
        local_cache.cache_home() / "models" / key, lambda part: copy_folder(uri, str(part))
    )


@retry_transient
def read_bytes(uri: str) -> bytes:
    """Returns the content of a file."""
    fs, path = filesystem(uri)
    with naming_errors(uri), fs.open_input_file(path) as stream:
        return bytes(stream.read())


def read_json(uri: str) -> Any:
    """Returns the content of a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise MeowError(f"{display(uri)}: not valid JSON ({error}).") from None


@retry_transient
def write_bytes(uri: str, content: bytes, *, exclusive: bool = False) -> bool:
    """Writes a file completely or not at all.

    An exclusive write is atomic on a local filesystem. On an object store it is not: if two writers
    write at the same moment, both may succeed, and the store keeps the later content. A write that
    seemed to fail may also have succeeded before it was repeated. A caller that must know whose
    content won has to read the file again.

    Args:
        uri: the file.
        content: its content.
        exclusive: write nothing if the file exists already.

    Returns:
        Whether the content was written; False only if `exclusive` is set.
    """
    fs, path = filesystem(uri)
    with naming_errors(uri):
        if exclusive and fs.get_file_info(path).type != pafs.FileType.NotFound:
            return False
        if isinstance(fs, pafs.LocalFileSystem):
            return _write_local(Path(path), content, exclusive)
        with fs.open_output_stream(path) as stream:
            stream.write(content)
    return True


def _write_local(path: Path, content: bytes, exclusive: bool) -> bool:
    """Writes a temporary file, then links (if `exclusive`) or renames it to `path`."""
    part = Path(f"{path}.{uuid4().hex[:8]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            os.replace(part, path)
            return True
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        return True
    finally:
        part.unlink(missing_ok=True)


def write_json(uri: str, value: Any, *, exclusive: bool = False) -> bool:
    """Writes a JSON file completely or not at all; see `write_bytes`."""
    content = json.dumps(value, indent=2, ensure_ascii=False).encode()
    return write_bytes(uri, content, exclusive=exclusive)


# --- Parquet ------------------------------------------------------------------------------------


@retry_transient
def write_table(table: pa.Table, uri: str) -> None:
    """Writes one Parquet file; equal tables give equal bytes."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        parent = str(Path(path).parent)
        fs.create_dir(parent, recursive=True)
        pq.write_table(table.combine_chunks(), path, filesystem=fs, compression="zstd")


@retry_transient
def read_table(uris: Sequence[str]) -> pa.Table:
    """Returns the rows of Parquet files as one table, in the order of the files.

    Raises:
        MeowError: a file cannot be read, or its columns differ from those of the first file.
    """
    tables = []
    for uri in uris:
        fs, path = filesystem(uri)
        with naming_errors(uri):
            table = pq.ParquetFile(path, filesystem=fs).read()
            tables.append(table)
            if not table.schema.equals(tables[0].schema):
                raise MeowError(f"{display(uri)}: the columns differ from {display(uris[0])}.")
    return pa.concat_tables(tables)


def parquet_files(uri: str) -> list[str]:
    """Returns the URIs of the Parquet files in a folder, sorted; of a file, its own URI.

    Raises:
        MeowError: there is no Parquet file.
    """
    kind = _kind(uri)
    if kind == pafs.FileType.File:
        return [uri]
    if kind == pafs.FileType.NotFound:
        raise MeowError(f"{display(uri)}: {CAUSES[errno.ENOENT]}.")
    files = [join(uri, name) for name in list_files(uri) if name.endswith(".parquet")]
    if not files:
        raise MeowError(
            f"{display(uri)}: no Parquet file there. Name a Parquet file, or a folder with some."
        )
    return files


# --- digests ------------------------------------------------------------------------------------


def file_digest(uri: str, *, verify: bool = False) -> str:
    """Returns the sha256 of a file.

    The digest is remembered on this machine by path, size and modification time.

    Args:
        uri: the file.
        verify: read the file even if a digest is remembered.

    Raises:
        MeowError: there is no such file, or it cannot be read.
    """
    fs, path = filesystem(uri)
    with naming_errors(uri):
        info = fs.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise MeowError(f"{display(uri)}: there is no such file.")
        stamp = f"{info.size}:{info.mtime_ns}"
        remembered = local_cache.cache_home() / "digests" / hashlib.sha256(uri.encode()).hexdigest()
        if not verify and remembered.exists():
            old_stamp, _, old_digest = remembered.read_text().partition(" ")
            if old_stamp == stamp:
                return old_digest
        digest = hashlib.sha256()
        with fs.open_input_file(path) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    write_bytes(str(remembered), f"{stamp} {digest.hexdigest()}".encode())
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Returns the sha256 of a value's canonical JSON: sorted keys, no blanks, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(uri: str, *, verify: bool = False) -> str:
    """Returns the digest of a file, or of a folder: of the names and contents of its files.

    Args:
        uri: the file or folder.
        verify: read all files even if their digests are remembered.

    Raises:
        MeowError: there is no such file or folder.
    """
    kind = _kind(uri)
    if kind == pafs.FileType.NotFound:
        raise MeowError(f"{display(uri)}: there is no such file or folder.")
    if kind == pafs.FileType.File:
        return file_digest(uri, verify=verify)
    return json_digest(
        {name: file_digest(join(uri, name), verify=verify) for name in list_files(uri)}
    )
