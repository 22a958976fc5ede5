"""Folders of data: parts of one table, and folders that the package datasets wrote."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meow_ray.config import Source
from meow_ray.core import hub_datasets, storage
from meow_ray.errors import MeowError

SAVED = ("state.json", "dataset_dict.json")
"""Files of a folder that `save_to_disk` of the package datasets wrote."""

_NO_DATA = re.compile(r"(^|/)[._]|\.(md|crc|py|gitattributes)$|(^|/)(LICENSE|README)[^/]*$", re.I)
"""Files next to the parts of a table, such as `_SUCCESS`, `.part-0.crc` and `README.md`."""

_TABLE_LOGS = ("_delta_log/", "metadata/", ".hoodie/")
"""Folders in which Delta, Iceberg and Hudi record which of the files are part of the table."""

_NUMBER = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{32}|\d+", re.IGNORECASE)
_PARTITION = re.compile(r"(^|(?<=/))[^/=]+=[^/]*/")


def is_saved_dataset(uri: str) -> bool:
    """Tells whether `save_to_disk` of the package datasets wrote the folder."""
    return any(storage.exists(storage.join(uri, name)) for name in SAVED)


def is_dataset_repository(uri: str) -> bool:
    """Tells whether a folder is a copy of a hub dataset, whose README says which files it has."""
    readme = storage.join(uri, "README.md")
    if not storage.is_local(uri) or not storage.exists(readme):
        return False
    header = storage.read_bytes(readme).decode("utf-8", "replace").split("\n---", 1)[0]
    return header.startswith("---") and re.search(r"^configs:", header, re.MULTILINE) is not None


def parts(uri: str) -> list[str]:
    """Returns the URIs of the files in a folder that together are one table, sorted.

    Their names may differ only in numbers, or in the folders of partitions (`year=2024/`).

    Raises:
        MeowError: there is no data file, or the files are not parts of one table.
    """
    where = storage.display(uri)
    names = storage.list_files(uri)
    for log in _TABLE_LOGS:
        if any(name.startswith(log) for name in names):
            raise MeowError(
                f"{where}: a table with a log of its changes ({log}), whose folder may hold "
                "deleted rows. Export its present rows as Parquet."
            )
    data = [name for name in names if not _NO_DATA.search(name)]
    if not data:
        raise MeowError(f"{where}: the folder has no data file. Name a file, or a folder of parts.")
    first, *others = data
    for other in others:
        if _pattern(other) != _pattern(first):
            raise MeowError(
                f"{where}: the folder has {len(data)} files that are not parts of one table, such "
                f"as {first} and {other}. Name one of them."
            )
    return [storage.join(uri, name) for name in data]


def _pattern(name: str) -> str:
    """Returns the name of a part without what differs from part to part."""
    return _NUMBER.sub("0", _PARTITION.sub("", name))


def saved_rows(source: Source, uri: str) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a folder that `save_to_disk` wrote, counted from 1.

    Raises:
        MeowError: the folder has several splits but not the configured one, or is damaged.
    """
    from datasets import DatasetDict, load_from_disk

    where = storage.display(uri)
    with _local_folder(uri) as folder:
        try:
            data = load_from_disk(folder)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise MeowError(f"{where}: {_reason(error)}. Save the dataset again.") from None
        if isinstance(data, DatasetDict):
            if source.split not in data:
                raise MeowError(
                    f"{where}: the dataset has no split {source.split}, only "
                    f"{', '.join(data)}. Set `split` of the source."
                )
            data = data[source.split]
        yield from enumerate(data, start=1)


def repository_rows(source: Source, uri: str) -> Iterator[tuple[int, Any]]:
    """Yields the rows of a local copy of a hub dataset, counted from 1.

    Raises:
        MeowError: it has no such subset or split, or cannot be read.
    """
    try:
        yield from enumerate(hub_datasets.local_repository(uri, source), start=1)
    except Exception as error:  # noqa: BLE001 - readers of many formats raise many types
        raise MeowError(
            f"{storage.display(uri)}: a copy of a hub dataset that cannot be read "
            f"({_reason(error)}). Set `subset` and `split` of the source, or name one of its files."
        ) from None


@contextmanager
def _local_folder(uri: str) -> Iterator[str]:
    """Provides a folder on this machine; a copy of a remote one is deleted after the block."""
    if storage.is_local(uri):
        yield uri
        return
    with tempfile.TemporaryDirectory(prefix="meow-") as folder:
        storage.copy_folder(uri, folder)
        yield folder


def _reason(error: Exception) -> str:
    """Returns the first line of an error."""
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
