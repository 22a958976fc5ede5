"""Storage on a real S3 endpoint, on one that refuses requests, and after a client was killed."""

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
MAX_REFUSALS = 22
"""Number of requests to complete an upload after which Arrow reports a failure, if every second
request is refused. The store has completed the upload by then."""


def test_an_exclusive_write_on_s3_never_replaces(s3: Callable[[str], str]):
    uri = s3("json/MANIFEST.json")
    assert storage.write_json(uri, {"a": "é"}, exclusive=True) is True
    assert storage.write_json(uri, {"a": 2}, exclusive=True) is False
    assert storage.read_json(uri) == {"a": "é"}
    assert storage.write_json(uri, {"a": 3}) is True
    assert storage.read_json(uri) == {"a": 3}


def test_tables_and_folders_on_s3_are_written_listed_copied_and_removed(
    s3: Callable[[str], str], tmp_path: Path
):
    root = s3("folders")
    storage.make_folder(storage.join(root, "work"))
    storage.write_table(TABLE, storage.join(root, "x", "part.parquet"))
    storage.write_bytes(storage.join(root, "note.txt"), b"hello")
    assert storage.list_files(root) == ["note.txt", "x/part.parquet"]
    assert set(storage.list_names(root)) == {"note.txt", "work", "x"}
    assert storage.parquet_files(root) == [storage.join(root, "x", "part.parquet")]
    assert storage.read_table(storage.parquet_files(root)).equals(TABLE)
    digest = storage.file_digest(storage.join(root, "note.txt"))
    assert digest == hashlib.sha256(b"hello").hexdigest()
    storage.copy_folder(root, str(tmp_path / "copy"))
    assert storage.content_digest(str(tmp_path / "copy")) == storage.content_digest(root)
    storage.remove(storage.join(root, "note.txt"))
    assert storage.list_files(root) == ["x/part.parquet"]
    storage.remove(root)
    assert storage.list_files(root) == []
    assert not storage.exists(root)


def test_a_remote_model_is_downloaded_once(s3: Callable[[str], str]):
    uri = s3("models/tiny")
    storage.write_bytes(storage.join(uri, "config.json"), b"{}")
    local = storage.local_copy(uri, "a-digest")
    assert (local / "config.json").read_bytes() == b"{}"
    storage.remove(uri)
    assert storage.local_copy(uri, "a-digest") == local
    assert storage.local_copy(str(local), "ignored") == local


def test_a_missing_file_on_s3_is_named_without_the_query_of_its_uri(s3: Callable[[str], str]):
    for read in (storage.read_json, storage.file_digest, storage.content_digest):
        message = r"^s3://bucket/nowhere\.json: there is no such file"
        with pytest.raises(MeowError, match=message) as caught:
            read(s3("nowhere.json"))
        assert "endpoint" not in str(caught.value)


# --- refused requests and killed clients --------------------------------------------------------


class Store:
    """The S3 endpoint, with a function in front of it that decides which requests are refused.

    Attributes:
        refuse: gets the kind of the request (`PUT partNumber`), the number of earlier requests of
            this kind for the same object, and the path of the object; True refuses the request.
        seen: number of requests by kind and path.
        refused: number of refused requests by kind.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.refuse: Callable[[str, int, str], bool] = lambda kind, number, path: False
        self.seen = Counter[tuple[str, str]]()
        self.refused = Counter[str]()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        query = environ.get("QUERY_STRING", "").partition("=")[0]
        kind = f"{environ['REQUEST_METHOD']} {query}".strip()
        path = environ["PATH_INFO"]
        number = self.seen[kind, path]
        self.seen[kind, path] += 1
        if not self.refuse(kind, number, path):
            return self.backend(environ, start)
        self.refused[kind] += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]


@pytest.fixture
def store(s3: Callable[[str], str]) -> Iterator[tuple[Store, Callable[[str], str]]]:
    """A store for one test, and a function from paths to its URIs."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = Store(DomainDispatcherApplication(create_backend_app))
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    query = f"scheme=http&endpoint_override=127.0.0.1%3A{server.server_port}"
    yield application, lambda path: f"s3://bucket/{path}?{query}"
    server.shutdown()
    thread.join()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a file that is uploaded in several parts."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(25 * MIB))
    return folder


def test_refused_requests_are_repeated(
    store: tuple[Store, Callable[[str], str]], model: Path, tmp_path: Path
) -> None:
    backend, uri = store
    backend.refuse = lambda kind, number, path: number < 2
    storage.copy_folder(str(model), uri("busy/model"))
    storage.write_table(TABLE, uri("busy/x/part.parquet"))
    storage.write_json(uri("busy/MANIFEST.json"), {"a": 1}, exclusive=True)
    assert storage.list_files(uri("busy")) == [
        "MANIFEST.json", "model/config.json", "model/model.safetensors", "x/part.parquet"
    ]  # fmt: skip
    storage.copy_folder(uri("busy/model"), str(tmp_path / "copy"))
    weights = (model / "model.safetensors").read_bytes()
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == weights
    assert storage.read_table([uri("busy/x/part.parquet")]).equals(TABLE)
    assert storage.read_json(uri("busy/MANIFEST.json")) == {"a": 1}
    kinds = {"PUT partNumber", "POST uploads", "POST uploadId", "GET", "HEAD", "GET delimiter"}
    assert kinds <= set(backend.refused)


def test_a_store_that_refuses_all_requests_is_named(
    store: tuple[Store, Callable[[str], str]],
) -> None:
    backend, uri = store
    backend.refuse = lambda kind, number, path: True
    with pytest.raises(MeowError, match=r"^s3://bucket/away\.json: .*503"):
        storage.read_json(uri("away.json"))


def test_an_upload_of_a_killed_process_leaves_no_listed_file(
    store: tuple[Store, Callable[[str], str]], model: Path
) -> None:
    backend, uri = store
    second_part = threading.Event()
    killed = threading.Event()

    def hold(kind: str, number: int, path: str) -> bool:
        if kind == "PUT partNumber" and number == 1:
            second_part.set()
            killed.wait(60)
        return False

    backend.refuse = hold
    script = "import sys; from meow_ray.core import storage; storage.copy_folder(*sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", script, str(model), uri("cut/model")])
    try:
        assert second_part.wait(60)
    finally:
        process.kill()
        process.wait()
        killed.set()
    assert "model.safetensors" not in storage.list_files(uri("cut/model"))
    storage.copy_folder(str(model), uri("cut/model"))
    assert storage.list_files(uri("cut/model")) == ["config.json", "model.safetensors"]
    uploaded = storage.read_bytes(uri("cut/model/model.safetensors"))
    assert uploaded == (model / "model.safetensors").read_bytes()


def test_an_artifact_is_published_if_the_write_of_its_manifest_is_reported_as_failed(
    store: tuple[Store, Callable[[str], str]], world: World
) -> None:
    backend, uri = store

    def refuse_completion(kind: str, number: int, path: str) -> bool:
        completes_manifest = kind == "POST uploadId" and path.endswith(MANIFEST)
        return completes_manifest and number % 2 == 0 and number < MAX_REFUSALS

    backend.refuse = refuse_completion
    root = f"storage.root='{uri('world')}'"
    assert world.run(root, until="ingest") == ["ingest"]
    uploads = [
        count
        for (kind, path), count in backend.seen.items()
        if kind == "POST uploads" and "MANIFEST" in path
    ]
    assert sum(uploads) == 1
    facts = world.pipeline(root).artifact("facts")
    assert facts is not None
    assert facts.table.num_rows == 2
    assert world.states(root)["ingest"] == ("cached", "")
