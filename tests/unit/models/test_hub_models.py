"""Hub models without a network: their copies in the cache of huggingface_hub."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from meow_ray.errors import MeowError
from meow_ray.models import refs
from tests.support.hub import write_repository

NAME = "my-org/model"
COMMIT = "c" * 40
FILES = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"weights"}
SHARDS = {
    "config.json": b"{}",
    "tokenizer.model": b"",
    "model-00001-of-00002.safetensors": b"1",
    "model-00002-of-00002.safetensors": b"2",
}


@pytest.fixture(params=["refused", "offline"])
def hub_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", request.param == "offline")
    return tmp_path


@pytest.mark.parametrize("files", [FILES, SHARDS], ids=["one file", "shards"])
def test_a_whole_copy_is_used_at_its_commit(hub_cache: Path, files: dict[str, bytes]):
    folder = write_repository(hub_cache, NAME, COMMIT, files, kind="models")
    ref = refs.pin(NAME, None, "target.model")
    assert ref.commit == COMMIT
    assert ref.folder == folder


def test_a_copy_that_was_downloaded_by_its_commit_is_used(hub_cache: Path):
    folder = write_repository(hub_cache, NAME, COMMIT, FILES, kind="models")
    (folder.parents[1] / "refs" / "main").unlink()
    for revision in (None, COMMIT, COMMIT[:8]):
        assert refs.pin(NAME, revision, "target.model").commit == COMMIT
    with pytest.raises(MeowError, match="no whole copy"):
        refs.pin(NAME, "v2", "target.model")


@pytest.mark.parametrize(
    ("files", "lacking"),
    [
        (FILES, "model.safetensors"),
        (FILES, "tokenizer.json"),
        (FILES, "config.json"),
        (SHARDS, "model-00001-of-00002.safetensors"),
    ],
)
def test_a_copy_that_lacks_a_file_is_refused(
    hub_cache: Path, files: dict[str, bytes], lacking: str
):
    rest = {name: content for name, content in files.items() if name != lacking}
    write_repository(hub_cache, NAME, COMMIT, rest, kind="models")
    with pytest.raises(MeowError, match=r"`target\.model`: .* no whole copy of it either"):
        refs.pin(NAME, None, "target.model")
