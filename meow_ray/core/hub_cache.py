"""The cache of huggingface_hub on this machine: repositories' files by commit."""

import re
from collections.abc import Iterable
from pathlib import Path

TIMEOUT = 10
"""Seconds after which the hub counts as out of reach."""

_SHARD = re.compile(r"(?P<start>.*)-\d{5}-of-(?P<count>\d{5})(?P<end>\D*)")


def snapshot(name: str, revision: str | None, repo_type: str) -> Path | None:
    """Returns the folder of a repository's files at a revision, of which some may be missing.

    Args:
        name: the repository, such as `my-org/my-model`.
        revision: branch, tag or commit; None for the main branch.
        repo_type: `model` or `dataset`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, repo_type=repo_type, revision=revision, local_files_only=True
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        return None
    return Path(folder)


def has_all_shards(names: Iterable[str]) -> bool:
    """Tells whether there are as many files as names like `train-00000-of-00002` say."""
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    whole_names = [shard.group("start", "count", "end") for shard in shards]
    return all(whole_names.count(whole) == int(whole[1]) for whole in set(whole_names))
