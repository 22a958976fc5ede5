"""Folders for sockets: the path of a socket may have 107 bytes, and TMPDIR may be long."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from meow_ray.errors import MeowError

LONGEST_PATH = 107
"""Bytes of the longest path of a socket on Linux."""
SHORT = "/tmp"  # noqa: S108 - the folder made in it is the user's own
"""The folder that is short on every system."""


def short_folder(needed: int, within: str, variable: str) -> Path:
    """Returns a folder in which the paths of sockets fit.

    It is `within`, or else a private folder of this process, which is deleted when it ends.

    Args:
        needed: bytes that are appended to the folder.
        within: the folder that the user's environment names.
        variable: an environment variable that names another folder, for the error.

    Raises:
        MeowError: `within` is too long, and no short folder can be made.
    """
    if len(os.fsencode(within)) + needed <= LONGEST_PATH:
        return Path(within)
    try:
        return _own_folder()
    except OSError as error:
        raise MeowError(
            f"{within}: this temporary folder is too long for sockets, which may have "
            f"{LONGEST_PATH} bytes, and no folder can be made in {SHORT} ({error.strerror}). "
            f"Set {variable} to a folder with at most {LONGEST_PATH - needed} bytes."
        ) from error


@cache
def _own_folder() -> Path:
    """Makes a folder that only this user can read."""
    folder = Path(tempfile.mkdtemp(prefix="meow-", dir=SHORT))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
