"""The cache of huggingface_hub on this machine: repositories' files by commit."""

import re
from collections.abc import Iterable
from pathlib import Path

TIMEOUT = 10
"""Seconds after which the hub counts as out of reach."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_SHARD = re.compile(r"(?P<start>.*)-\d{5}-of-(?P<count>\d{5})(?P<end>\D*)")


def snapshots(name: str, revision: str | None, repo_type: str) -> list[Path]:
    """Returns the folders with a repository's files, of which some may be missing.

    The first is that to which the cache resolves the revision, as a branch or a tag. A download by
    commit leaves no such note. So all other commits follow, the newest first, if the revision is
    None, and those that begin like it otherwise.

    Args:
        name: the repository, such as `my-org/my-model`.
        revision: branch, tag or commit, which may be shortened; None for the main branch.
        repo_type: `model` or `dataset`.
    """
    from huggingface_hub import constants

    repository = Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}"
    note = repository / "refs" / (revision or "main")
    noted = repository / "snapshots" / (note.read_text().strip() if note.is_file() else "none")
    found = [
        folder
        for folder in repository.glob("snapshots/*")
        if folder != noted and has_commit(folder, revision)
    ]
    found.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    return [noted, *found] if noted.is_dir() else found


def has_commit(folder: Path, revision: str | None) -> bool:
    """Tells whether a folder is named by a commit that fits a revision, as far as commits tell."""
    if revision is None:
        return bool(_COMMIT.fullmatch(folder.name))
    return bool(_SHORT_COMMIT.fullmatch(revision)) and folder.name.startswith(revision)


def has_all_shards(names: Iterable[str]) -> bool:
    """Tells whether there are as many files as names like `train-00000-of-00002` say."""
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    whole_names = [shard.group("start", "count", "end") for shard in shards]
    return all(whole_names.count(whole) == int(whole[1]) for whole in set(whole_names))
