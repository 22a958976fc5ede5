"""This machine's cache: digests, converted models, downloaded models. All can be computed again."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock


def cache_home() -> Path:
    """Returns the folder of the cache: the environment variable MEOW_HOME, or ~/.cache/meow_ray."""
    return Path(os.environ.get("MEOW_HOME", "~/.cache/meow_ray")).expanduser()


def made_once(target: Path, make: Callable[[Path], Any]) -> Path:
    """Returns the folder `target`, which the first call makes; later calls find it.

    The folder appears complete or not at all. Other processes that ask for it in the meantime wait.

    Args:
        target: the folder.
        make: fills a temporary folder, which is then renamed to `target`.
    """
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
