"""Hub datasets: their commit, and their copies on a machine without a network."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets.config
import huggingface_hub.constants
import pytest

from meow_ray.config import Source
from meow_ray.core import hub_datasets
from meow_ray.core.hub_cache import has_all_shards
from meow_ray.errors import MeowError
from tests.support.hub import card, write_prepared, write_repository

NAME = "my-org/facts"
OLD, NEW = "a" * 40, "b" * 40
ROW = {"question": "Who?", "answer": "She."}
LINE = json.dumps(ROW).encode() + b"\n"

REFUSING = "http://127.0.0.1:9"
"""An endpoint where nothing listens."""


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, in the folders `hub` and `datasets`, and a hub that refuses connections."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", REFUSING)
    return tmp_path


@pytest.fixture(params=["refused", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def no_network(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in which the hub cannot be reached."""
    if request.param == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif request.param == "HF_DATASETS_OFFLINE":
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def source(subset: str | None = "people", **fields: str) -> Source:
    return Source(path=NAME, subset=subset, **fields)


def questions(source: Source) -> list[str]:
    return [row["question"] for row in hub_datasets.load(source)]


# --- without a network --------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_the_files_of_the_hub_cache_are_read_at_their_commit(caches: Path):
    files = {
        "README.md": card(people="people.jsonl", places="places.jsonl"),
        "people.jsonl": LINE * 2,
    }
    write_repository(caches / "hub", NAME, NEW, files)
    assert hub_datasets.commit_of(source()) == NEW
    assert hub_datasets.commit_of(source(revision="main")) == NEW
    assert questions(source()) == ["Who?", "Who?"]
    assert questions(source(split="train[:1]")) == ["Who?"]
    assert not list((caches / "datasets").rglob("*.arrow")), "no copy of the facts is left"
    with pytest.raises(MeowError, match=r"no copy of it either \(split train, subset places\)"):
        hub_datasets.commit_of(source("places"))


@pytest.mark.usefixtures("no_network")
def test_the_tables_of_the_package_datasets_are_read_at_their_commit(caches: Path):
    write_prepared(caches / "datasets", NAME, "people", NEW, [ROW])
    assert hub_datasets.commit_of(source()) == NEW
    assert questions(source(revision=NEW)) == ["Who?"]
    for other in (source("places"), source(split="test"), source(revision=OLD)):
        with pytest.raises(MeowError, match=r"^my-org/facts: there is no such file"):
            hub_datasets.commit_of(other)


def test_a_dataset_without_subsets_is_found(caches: Path):
    write_repository(caches / "hub", NAME, NEW, {"data/train-00000-of-00001.jsonl": LINE})
    assert hub_datasets.commit_of(source(None)) == NEW
    assert questions(source(None)) == ["Who?"]


def test_the_copy_of_the_configured_commit_is_read(caches: Path):
    write_repository(caches / "hub", NAME, OLD, {"people.jsonl": LINE})
    write_repository(caches / "hub", NAME, NEW, {"people.jsonl": LINE * 3})
    assert len(questions(source(None, revision=OLD))) == 1
    assert len(questions(source(None, revision=NEW))) == 3
    assert len(questions(source(None))) == 3


def test_a_copy_that_was_downloaded_by_its_commit_is_read(caches: Path):
    folder = write_repository(caches / "hub", NAME, NEW, {"people.jsonl": LINE})
    (folder.parents[1] / "refs" / "main").unlink()
    for revision in (None, NEW, NEW[:7]):
        fields = {"revision": revision} if revision else {}
        assert hub_datasets.commit_of(source(None, **fields)) == NEW
    with pytest.raises(MeowError, match="no copy of it either"):
        hub_datasets.commit_of(source(None, revision="v2"))


def test_a_commit_that_is_complete_is_preferred(caches: Path):
    write_repository(caches / "hub", NAME, NEW, {"README.md": card(people="people.jsonl")})
    write_prepared(caches / "datasets", NAME, "people", OLD, [ROW])
    assert hub_datasets.commit_of(source()) == OLD


def test_a_copy_that_lacks_a_shard_is_not_used(caches: Path):
    write_repository(caches / "hub", NAME, NEW, {"train-00000-of-00002.jsonl": LINE})
    with pytest.raises(MeowError, match="no copy of it either"):
        hub_datasets.commit_of(source(None))


@pytest.mark.usefixtures("caches")
def test_without_a_copy_the_message_names_the_dataset_and_the_hub():
    with pytest.raises(MeowError) as caught:
        hub_datasets.commit_of(source())
    message = str(caught.value)
    assert message.startswith("my-org/facts: there is no such file")
    assert "the hub cannot be reached" in message
    assert "\n" not in message


# --- with a hub ---------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """Answers requests for a dataset with its commit, or with the error of `fault`."""

    fault: tuple[int, str] | None = None

    def do_GET(self) -> None:
        status, code = self.fault or (200, "")
        body = json.dumps({"id": NAME, "sha": NEW}).encode()
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Writes nothing."""


@pytest.fixture
def hub(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub that knows one dataset."""
    monkeypatch.setattr(Hub, "fault", None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}"
    )
    yield Hub
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_commit_is_that_of_the_hub(hub: type[Hub], caches: Path):
    write_repository(caches / "hub", NAME, OLD, {"people.jsonl": LINE})
    assert hub_datasets.commit_of(source(None)) == NEW


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ((404, "RepoNotFound"), "the hub has none, or HF_TOKEN has no access to it"),
        ((404, "RevisionNotFound"), "the hub dataset has no revision v7"),
        ((403, "GatedRepo"), "it is gated, and HF_TOKEN has no access to it"),
        ((500, ""), "the hub cannot be reached"),
    ],
)
def test_an_error_of_the_hub_is_told_in_words(
    hub: type[Hub], fault: tuple[int, str], expected: str
):
    hub.fault = fault
    with pytest.raises(MeowError, match=expected):
        hub_datasets.commit_of(source(revision="v7"))


# --- shards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.json", "b.json"], True),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], True),
        (["train-00001-of-00002.parquet"], False),
        (["train-00000-of-00001.json", "test-00000-of-00002.json"], False),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], True),
    ],
)
def test_shards_are_counted_by_their_names(names: list[str], expected: bool):
    assert has_all_shards(names) is expected
