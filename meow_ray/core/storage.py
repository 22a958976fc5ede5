"""A URI to a filesystem; digests; atomic JSON; Parquet in and out."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import tenacity
from filelock import FileLock

from meow_ray.errors import MeowError

CHUNK = 1 << 22

CAUSES = {
    errno.ENOSPC: "the disk is full; free some space and start again, finished stages are kept",
    errno.EDQUOT: "the disk quota is used up; free some space and start again, finished stages are kept",
    errno.EACCES: "permission denied; choose another place or mend its rights",
    errno.EROFS: "the filesystem is read-only; choose another place",
    errno.ENOENT: "there is no such file or folder",
}
"""What the system says of a place, in words, with the cure."""


def cache_home() -> Path:
    """Returns the folder of what this machine may recompute: digests, converted and downloaded models."""
    return Path(os.environ.get("MEOW_HOME", "~/.cache/meow_ray")).expanduser()


def is_local(uri: str) -> bool:
    """Tells whether a URI is a path of the local filesystem (or of one mounted there)."""
    return "://" not in uri or uri.startswith("file://")


def absolute(uri: str) -> str:
    """Returns the URI with local paths made absolute and `~` expanded."""
    if not is_local(uri):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the pyarrow filesystem of a URI and the path within it.

    Raises:
        MeowError: the scheme is unknown or the store cannot be reached.
    """
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    with naming_errors(uri):
        fs, path = pafs.FileSystem.from_uri(uri)
    return fs, str(path)


def join(uri: str, *parts: str) -> str:
    """Appends path components to a URI, before its query."""
    base, mark, query = (uri, "", "") if is_local(uri) else uri.partition("?")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


@contextmanager
def naming_errors(uri: str) -> Iterator[None]:
    """Turns what the system says of a place that cannot be read or written into a MeowError naming it."""
    try:
        yield
    except OSError as error:
        reason = CAUSES.get(error.errno or 0) or str(error).splitlines()[0]
        raise MeowError(f"{display(uri)}: {reason}.") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise MeowError(f"{display(uri)}: {str(error).splitlines()[0]}.") from error


def _passes(error: BaseException) -> bool:
    """Tells whether an object store's error will be gone in a while."""
    return isinstance(error, MeowError) and bool(_PASSING.search(str(error.__cause__)))


_PASSING = re.compile(
    r"SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|UNAVAILABLE|NETWORK_CONNECTION|HTTP status 5"
)
retry_transient = tenacity.retry(
    retry=tenacity.retry_if_exception(_passes),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential(max=10),
    reraise=True,
)
"""Does once more what an object store refused for now, though Arrow has asked it for some seconds: Arrow takes what
completes an upload at its second try for a failure, and gives up where a refusal is longer than the file it reads."""


def display(uri: str) -> str:
    """Returns the URI without what may carry credentials: its query and its user."""
    return re.sub(r"://[^/@]*@", "://", uri.partition("?")[0])


def exists(uri: str) -> bool:
    """Tells whether something is at the URI."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        return bool(fs.get_file_info(path).type != pafs.FileType.NotFound)


def list_files(uri: str) -> list[str]:
    """Returns the paths of all files below a folder, relative to it, sorted."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        infos = fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(
        info.path[len(path) :].lstrip("/") for info in infos if info.type == pafs.FileType.File
    )


def list_names(uri: str) -> list[str]:
    """Returns the names of the entries of a folder, sorted; none if there is no such folder."""
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
    """Deletes a file or a folder, if it is there."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        kind = fs.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            fs.delete_dir(path)
        elif kind == pafs.FileType.File:
            fs.delete_file(path)


@retry_transient
def copy_folder(source: str, target: str) -> None:
    """Copies all files below one URI to another."""
    source_fs, source_path = filesystem(source)
    target_fs, target_path = filesystem(target)
    with naming_errors(target):
        target_fs.create_dir(target_path, recursive=True)
        pafs.copy_files(
            source_path, target_path, source_filesystem=source_fs, destination_filesystem=target_fs
        )


@retry_transient
def copy_file(source: str, target: str) -> None:
    """Copies one file; another at the target is replaced when the copy is whole."""
    source_fs, source_path = filesystem(source)
    target_fs, target_path = filesystem(target)
    part = target_path if not is_local(target) else f"{target_path}.{uuid4().hex[:8]}.part"
    with naming_errors(target):
        target_fs.create_dir(str(Path(target_path).parent), recursive=True)
        pafs.copy_files(
            source_path, part, source_filesystem=source_fs, destination_filesystem=target_fs
        )
        if part != target_path:
            os.replace(part, target_path)


def local_copy(uri: str, key: str) -> Path:
    """Returns a local path with the content of a folder; remote ones are fetched once, under `key`."""
    if is_local(uri):
        return Path(absolute(uri))
    return made_once(cache_home() / "models" / key, lambda part: copy_folder(uri, str(part)))


def made_once(target: Path, make: Callable[[Path], Any]) -> Path:
    """Returns a folder that `make` fills the first time it is asked for, whole or not at all; others wait meanwhile."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f".{target.name}.lock")):
        if not target.exists():
            part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
            try:
                make(part)
                part.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return target


@retry_transient
def read_bytes(uri: str) -> bytes:
    """Returns the content of a file."""
    fs, path = filesystem(uri)
    with naming_errors(uri), fs.open_input_file(path) as stream:
        return bytes(stream.read())


def read_json(uri: str) -> Any:
    """Reads a JSON file."""
    try:
        return json.loads(read_bytes(uri))
    except ValueError as error:
        raise MeowError(f"{display(uri)}: not valid JSON ({error}).") from None


@retry_transient
def write_bytes(uri: str, content: bytes, *, exclusive: bool = False) -> bool:
    """Writes a file whole or not at all.

    With `exclusive`, nothing is written where a file already stands, and False is returned. On a local
    filesystem that is atomic; on an object store two writers in the same instant may both succeed, and the
    store keeps the later one, and what seemed to fail and is written again may be there: look at what it holds.
    """
    fs, path = filesystem(uri)
    with naming_errors(uri):
        if exclusive and fs.get_file_info(path).type != pafs.FileType.NotFound:
            return False
        if not isinstance(fs, pafs.LocalFileSystem):
            with fs.open_output_stream(path) as stream:
                stream.write(content)
            return True
        part = Path(f"{path}.{uuid4().hex[:8]}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if exclusive:
                try:
                    os.link(part, path)
                except FileExistsError:
                    return False
            else:
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    return True


def write_json(uri: str, value: Any, *, exclusive: bool = False) -> bool:
    """Writes JSON whole or not at all; see `write_bytes`."""
    return write_bytes(
        uri, json.dumps(value, indent=2, ensure_ascii=False).encode(), exclusive=exclusive
    )


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
    """Reads Parquet files into one table, rows in the order of the files."""
    tables = []
    for uri in uris:
        fs, path = filesystem(uri)
        with naming_errors(uri):
            table = pq.ParquetFile(path, filesystem=fs).read()
            tables.append(table)
            if not table.schema.equals(tables[0].schema):
                raise MeowError(f"{display(uri)}: other columns than in {display(uris[0])}.")
    return pa.concat_tables(tables)


def parquet_files(uri: str) -> list[str]:
    """Returns the Parquet files at a URI, which is a file or a folder.

    Raises:
        MeowError: there is none.
    """
    fs, path = filesystem(uri)
    with naming_errors(uri):
        info = fs.get_file_info(path)
    if info.type == pafs.FileType.File:
        return [uri]
    files = [join(uri, name) for name in list_files(uri) if name.endswith(".parquet")]
    if not files:
        raise MeowError(f"{display(uri)}: no Parquet file there.")
    return files


def file_digest(uri: str, *, verify: bool = False) -> str:
    """Returns the sha256 of a file, memoised by path, size and modification time unless `verify` is set."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        info = fs.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise MeowError(f"{display(uri)}: there is no such file.")
        stamp = f"{info.size}:{info.mtime_ns}"
        memo = cache_home() / "digests" / hashlib.sha256(uri.encode()).hexdigest()
        if not verify and memo.exists():
            known_stamp, _, known = memo.read_text().partition(" ")
            if known_stamp == stamp:
                return known
        digest = hashlib.sha256()
        with fs.open_input_file(path) as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    write_bytes(str(memo), f"{stamp} {digest.hexdigest()}".encode())
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Returns the sha256 of a value's canonical JSON."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def content_digest(uri: str, *, verify: bool = False) -> str:
    """Returns the digest of a file, or of a folder's files with their names."""
    fs, path = filesystem(uri)
    with naming_errors(uri):
        kind = fs.get_file_info(path).type
    if kind == pafs.FileType.NotFound:
        raise MeowError(f"{display(uri)}: there is no such file or folder.")
    if kind == pafs.FileType.File:
        return file_digest(uri, verify=verify)
    return json_digest(
        {name: file_digest(join(uri, name), verify=verify) for name in list_files(uri)}
    )
