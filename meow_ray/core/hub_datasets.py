"""Datasets of the Hugging Face hub: their commit, and their rows, also without a network.

Two caches of this machine may hold a dataset that was used before: that of huggingface_hub has the
repository's files by commit, that of the package datasets has prepared tables by subset and commit.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meow_ray.config import Source
from meow_ray.core.hub_cache import TIMEOUT, has_all_shards, has_commit, snapshots
from meow_ray.errors import MeowError

_COMMIT = re.compile(r"[0-9a-f]{40}")

_UNREACHABLE = "the hub cannot be reached"

Rows = Iterator[Mapping[str, Any]]


def commit_of(source: Source) -> str:
    """Returns the commit of a dataset at its revision; without a network, that of its copy here.

    Raises:
        MeowError: there is no such dataset, or the hub cannot be reached and there is no copy.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if _is_offline():
        return _downloaded_commit(
            source, f"{_UNREACHABLE}: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set"
        )
    try:
        info = HfApi().dataset_info(source.path, revision=source.revision, timeout=TIMEOUT)
    except RevisionNotFoundError:
        raise MeowError(
            f"{source.path}: the hub dataset has no revision {source.revision}. "
            "Correct `revision` of the source."
        ) from None
    except GatedRepoError:
        return _downloaded_commit(source, "it is gated, and HF_TOKEN has no access to it")
    except RepositoryNotFoundError:
        return _downloaded_commit(source, "the hub has none, or HF_TOKEN has no access to it")
    except Exception as error:  # noqa: BLE001 - the hub's HTTP library raises errors of many types
        return _downloaded_commit(source, f"{_UNREACHABLE}: {_reason(error)}")
    return str(info.sha)


def load(source: Source) -> Rows:
    """Yields the rows of a dataset: of its copy on this machine, or else from the hub.

    Raises:
        MeowError: there is no such dataset, subset or split, or it cannot be read.
    """
    from datasets import load_dataset

    commit = source.revision
    if commit is None or not _COMMIT.fullmatch(commit):
        commit = commit_of(source)
    try:
        if rows := _copy(source, commit):
            yield from rows()
        else:
            yield from load_dataset(source.path, source.subset, split=source.split, revision=commit)
    except Exception as error:  # noqa: BLE001 - the hub's HTTP library raises errors of many types
        raise MeowError(
            f"{source.path}: the hub dataset cannot be read ({_reason(error)}). Check `subset`, "
            "`split` and `revision` of the source, and the network."
        ) from None


def local_repository(folder: Path | str, source: Source) -> Rows:
    """Yields the rows of a local copy of a dataset's repository, leaving nothing in a cache."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory(prefix="meow-") as cache:
        yield from load_dataset(str(folder), source.subset, split=source.split, cache_dir=cache)


def _is_offline() -> bool:
    import datasets.config
    import huggingface_hub.constants

    return bool(datasets.config.HF_HUB_OFFLINE or huggingface_hub.constants.HF_HUB_OFFLINE)


# --- copies on this machine ---------------------------------------------------------------------


def _downloaded_commit(source: Source, reason: str) -> str:
    commit = _newest_copy(source)
    if commit is None:
        parts = [f"split {source.split}"]
        parts += [f"subset {source.subset}"] if source.subset else []
        parts += [f"revision {source.revision}"] if source.revision else []
        raise MeowError(
            f"{source.path}: there is no such file, and a Hugging Face dataset of that name cannot "
            f"be looked up ({reason}). This machine has no copy of it either ({', '.join(parts)}). "
            "Correct the path or the name, or download the dataset where there is a network."
        )
    return commit


def _newest_copy(source: Source) -> str | None:
    """Returns the commit of the copy that would be read without a network, or None."""
    folders = [*snapshots(source.path, source.revision, "dataset"), *_prepared_folders(source)]
    commits = (folder.name for folder in folders)
    return next((commit for commit in commits if _copy(source, commit)), None)


def _copy(source: Source, commit: str) -> Callable[[], Rows] | None:
    """Returns a function that reads the copy of a commit on this machine, or None."""
    for folder in _prepared_folders(source):
        if folder.name == commit and _has_prepared_split(folder, source):
            return lambda: _prepared_rows(folder, source)
    for folder in snapshots(source.path, commit, "dataset"):
        if _has_files(folder, source):
            return lambda: local_repository(folder, source)
    return None


def _has_files(folder: Path, source: Source) -> bool:
    """Tells whether the files of the subset and the split are there, all shards included."""
    from datasets import load_dataset_builder

    with tempfile.TemporaryDirectory(prefix="meow-") as cache:
        try:
            builder = load_dataset_builder(str(folder), source.subset, cache_dir=cache)
        except Exception:  # noqa: BLE001 - readers of many formats raise many types
            return False
    files = (builder.config.data_files or {}).get(_split_name(source), ())
    return bool(files) and has_all_shards([Path(file).name for file in files])


def _prepared_folders(source: Source) -> list[Path]:
    """Returns the folders of tables that the package datasets prepared, the newest first."""
    import datasets.config
    from datasets.naming import camelcase_to_snakecase

    *namespace, name = source.path.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "___".join(
        [*namespace, camelcase_to_snakecase(name)]
    )
    subset = source.subset or "default"
    found = [path for path in folder.glob(f"{subset}/*/*") if has_commit(path, source.revision)]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _has_prepared_split(folder: Path, source: Source) -> bool:
    try:
        splits = _prepared(folder, source).info.splits
    except (OSError, ValueError, KeyError):
        return False
    return splits is not None and _split_name(source) in splits


def _prepared_rows(folder: Path, source: Source) -> Rows:
    yield from _prepared(folder, source).as_dataset(split=source.split)


def _prepared(folder: Path, source: Source) -> Any:
    from datasets.packaged_modules.cache.cache import Cache

    return Cache(
        repo_id=source.path,
        dataset_name=source.path.split("/")[-1],
        config_name=source.subset or "default",
        version=folder.parent.name,
        hash=folder.name,
    )


def _split_name(source: Source) -> str:
    """Returns the name of the split without a slice such as `[:100]`."""
    return source.split.partition("[")[0]


def _reason(error: Exception) -> str:
    """Returns the first line of an error."""
    lines = str(error).splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
