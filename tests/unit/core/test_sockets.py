"""Folders in which the path of a socket fits."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from meow_ray.core import sockets
from meow_ray.errors import MeowError


@pytest.fixture(autouse=True)
def new_process() -> Iterator[None]:
    """Each test makes its own folder, as each process does."""
    sockets._own_folder.cache_clear()
    yield
    sockets._own_folder.cache_clear()


def test_a_short_folder_is_used_as_it_is():
    within = "/x" * 20
    assert sockets.short_folder(67, within, "TMPDIR") == Path(within)


@pytest.mark.parametrize("within", ["/" + "x" * 40, "/" + "ü" * 20])
def test_a_long_folder_is_replaced_by_a_private_one(within: str):
    folder = sockets.short_folder(67, within, "TMPDIR")
    assert len(os.fsencode(folder)) + 67 <= 107
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sockets.short_folder(67, within, "TMPDIR") == folder
    folder.rmdir()


def test_without_a_short_folder_the_error_says_what_to_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sockets, "SHORT", "/nowhere")
    long = "/" + "x" * 60
    with pytest.raises(MeowError) as caught:
        sockets.short_folder(67, long, "RAY_TMPDIR")
    assert str(caught.value) == (
        f"{long}: this temporary folder is too long for sockets, which may have 107 bytes, and no "
        "folder can be made in /nowhere (No such file or directory). Set RAY_TMPDIR to a folder "
        "with at most 40 bytes."
    )
