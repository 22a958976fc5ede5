"""A certified run, made once and copied for each test."""

import shutil
from pathlib import Path

import pytest

from tests.support.audited import Audited, certified


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a signed certificate, and of the request after it."""
    folder = tmp_path_factory.mktemp("audited")
    first = Audited(folder)
    first.write_keys()
    uri = first.certify(key=str(folder / "key.pem"))
    Audited(folder, target="root", root="second").certify()
    assert Path(uri) == certified(folder / "root")
    return folder


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy of the storage root of the first request, at another place."""
    return Path(shutil.copytree(original / "root", tmp_path / "moved"))


@pytest.fixture
def second(original: Path, tmp_path: Path) -> Path:
    """A copy of the storage root of the second request."""
    return Path(shutil.copytree(original / "second", tmp_path / "second"))


@pytest.fixture
def keys(original: Path) -> Path:
    """The folder with `key.pem`, which signed the first certificate, and with public keys."""
    return original
