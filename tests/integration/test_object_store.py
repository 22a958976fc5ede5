"""Storage on a real S3 endpoint, also one that refuses requests and one whose client dies."""

import hashlib
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core import storage
from meow_ray.core.manifest import MANIFEST
from meow_ray.errors import MeowError
from tests.support.world import World

TABLE = pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]})
MIB = 1 << 20
GIVES_UP = 22
"""Requests after which Arrow gives up to complete an upload, if every second one is refused; it is complete then."""


def test_s3_holds_json_exclusively(s3: Callable[[str], str]):
    uri = s3("json/MANIFEST.json")
    assert storage.write_json(uri, {"a": "é"}, exclusive=True) is True
    assert storage.write_json(uri, {"a": 2}, exclusive=True) is False
    assert storage.read_json(uri) == {"a": "é"}
    assert storage.write_json(uri, {"a": 3}) is True
    assert storage.read_json(uri) == {"a": 3}


def test_s3_holds_tables_and_folders(s3: Callable[[str], str], tmp_path: Path):
    root = s3("folders")
    storage.make_folder(storage.join(root, "work"))
    storage.write_table(TABLE, storage.join(root, "x", "part.parquet"))
    storage.write_bytes(storage.join(root, "note.txt"), b"hello")
    assert storage.list_files(root) == ["note.txt", "x/part.parquet"]
    assert set(storage.list_names(root)) == {"note.txt", "work", "x"}
    assert storage.parquet_files(root) == [storage.join(root, "x", "part.parquet")]
    assert storage.read_table(storage.parquet_files(root)).equals(TABLE)
    assert (
        storage.file_digest(storage.join(root, "note.txt")) == hashlib.sha256(b"hello").hexdigest()
    )
    storage.copy_folder(root, str(tmp_path / "copy"))
    assert storage.content_digest(str(tmp_path / "copy")) == storage.content_digest(root)
    storage.remove(storage.join(root, "note.txt"))
    assert storage.list_files(root) == ["x/part.parquet"]
    storage.remove(root)
    assert storage.list_files(root) == []
    assert not storage.exists(root)


def test_a_remote_model_is_fetched_once(s3: Callable[[str], str]):
    uri = s3("models/tiny")
    storage.write_bytes(storage.join(uri, "config.json"), b"{}")
    local = storage.local_copy(uri, "a-digest")
    assert (local / "config.json").read_bytes() == b"{}"
    storage.remove(uri)
    assert storage.local_copy(uri, "a-digest") == local
    assert storage.local_copy(str(local), "ignored") == local


def test_what_is_not_on_s3_is_named_without_the_query(s3: Callable[[str], str]):
    for read in (storage.read_json, storage.file_digest, storage.content_digest):
        with pytest.raises(
            MeowError, match=r"^s3://bucket/nowhere\.json: there is no such file"
        ) as caught:
            read(s3("nowhere.json"))
        assert "endpoint" not in str(caught.value)


# --- a bad day ----------------------------------------------------------------------------------


class Store:
    """The same S3, in front of it whatever a test wants to happen to a request."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.seen, self.refused = backend, Counter[tuple[str, str]](), Counter[str]()
        self.refuse: Callable[[str, int, str], bool] = lambda what, number, path: False
        """Gets what is asked, how often it was asked before of the same object, and that object."""

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        query = environ.get("QUERY_STRING", "").partition("=")[0]
        what = f"{environ['REQUEST_METHOD']} {query}".strip()
        path = environ["PATH_INFO"]
        self.seen[what, path] += 1
        if not self.refuse(what, self.seen[what, path] - 1, path):
            return self.backend(environ, start)
        self.refused[what] += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]


@pytest.fixture
def store(s3: Callable[[str], str]) -> Iterator[tuple[Store, Callable[[str], str]]]:
    """A store of one test's own, and its URIs."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    found = Store(DomainDispatcherApplication(create_backend_app))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, found, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    place = f"scheme=http&endpoint_override=127.0.0.1%3A{server.server_port}"
    yield found, lambda path: f"s3://bucket/{path}?{place}"
    server.shutdown()
    thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a file of several parts of an upload."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(25 * MIB))
    return folder


def test_what_the_store_refuses_is_asked_again(
    store: tuple[Store, Callable[[str], str]], model: Path, tmp_path: Path
) -> None:
    backend, uri = store
    backend.refuse = lambda what, number, path: number < 2
    storage.copy_folder(str(model), uri("busy/model"))
    storage.write_table(TABLE, uri("busy/x/part.parquet"))
    storage.write_json(uri("busy/MANIFEST.json"), {"a": 1}, exclusive=True)
    assert storage.list_files(uri("busy")) == [
        "MANIFEST.json", "model/config.json", "model/model.safetensors", "x/part.parquet"
    ]  # fmt: skip
    storage.copy_folder(uri("busy/model"), str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        model / "model.safetensors"
    ).read_bytes()
    assert storage.read_table([uri("busy/x/part.parquet")]).equals(TABLE)
    assert storage.read_json(uri("busy/MANIFEST.json")) == {"a": 1}
    assert {
        "PUT partNumber",
        "POST uploads",
        "POST uploadId",
        "GET",
        "HEAD",
        "GET delimiter",
    } <= set(backend.refused)


def test_a_store_that_stays_away_is_named(store: tuple[Store, Callable[[str], str]]) -> None:
    backend, uri = store
    backend.refuse = lambda what, number, path: True
    with pytest.raises(MeowError, match=r"^s3://bucket/away\.json: .*503"):
        storage.read_json(uri("away.json"))


def test_an_upload_whose_process_dies_leaves_nothing_that_is_listed(
    store: tuple[Store, Callable[[str], str]], model: Path
) -> None:
    backend, uri = store
    second, dead = threading.Event(), threading.Event()

    def hold(what: str, number: int, path: str) -> bool:
        if what == "PUT partNumber" and number == 1:
            second.set()
            dead.wait(60)
        return False

    backend.refuse = hold
    script = "import sys; from meow_ray import storage; storage.copy_folder(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, str(model), uri("cut/model")])
    try:
        assert second.wait(60)
    finally:
        process.kill()
        process.wait()
        dead.set()
    assert "model.safetensors" not in storage.list_files(uri("cut/model"))
    storage.copy_folder(str(model), uri("cut/model"))
    assert storage.list_files(uri("cut/model")) == ["config.json", "model.safetensors"]
    assert (
        storage.read_bytes(uri("cut/model/model.safetensors"))
        == (model / "model.safetensors").read_bytes()
    )


def test_a_manifest_that_is_written_but_seems_to_have_failed_keeps_its_artifact(
    store: tuple[Store, Callable[[str], str]], world: World
) -> None:
    backend, uri = store
    backend.refuse = lambda what, number, path: (
        what == "POST uploadId"
        and path.endswith(MANIFEST)
        and number % 2 == 0
        and number < GIVES_UP
    )
    root = f"storage.root='{uri('world')}'"
    assert world.run(root, until="ingest") == ["ingest"]
    assert (
        sum(
            count
            for (what, path), count in backend.seen.items()
            if what == "POST uploads" and "MANIFEST" in path
        )
        == 1
    )
    facts = world.pipeline(root).artifact("facts")
    assert facts is not None
    assert facts.table.num_rows == 2
    assert world.states(root)["ingest"] == ("cached", "")
