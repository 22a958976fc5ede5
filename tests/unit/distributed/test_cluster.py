"""Which cluster a run joins, and what it says of an address where there is none."""

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meow_ray.distributed import cluster
from meow_ray.errors import MeowError


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing runs on this machine; returns the path at which `ray start` would say otherwise."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    # an earlier test file of this process may have joined a cluster
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "CURRENT_CLUSTER", tmp_path / "ray_current_cluster")
    monkeypatch.setattr(cluster, "ANSWER_TIMEOUT", 1)
    return tmp_path / "ray_current_cluster"


class Silent(socketserver.BaseRequestHandler):
    """Reads a request and says nothing of gRPC."""

    def handle(self) -> None:
        self.request.recv(100)
        self.request.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")


@pytest.fixture
def other_server() -> Iterator[str]:
    """The address of a server that is no Ray cluster."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://127.0.0.1:8265", "this is the address to which `ray job submit` sends jobs."),
        ("https://ray.example.org", "this is the address to which `ray job submit` sends jobs."),
        ("ray://127.0.0.1:10001", "a run does not work through Ray Client."),
        ("127.0.0.1", "this is no address of a cluster."),
        ("head:port", "this is no address of a cluster."),
        ("127.0.0.1:1", "no Ray cluster answers there."),
        ("nowhere.invalid:6379", "no Ray cluster answers there."),
        ("127.0.0.1:99999", "no Ray cluster answers there."),
        ("auto", "no Ray cluster answers there."),
    ],
)
def test_an_address_without_a_cluster_is_refused_with_a_cure(
    monkeypatch: pytest.MonkeyPatch, address: str, reason: str
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(MeowError) as caught:
        cluster.connect()
    assert str(caught.value).startswith(f"RAY_ADDRESS={address}: {reason} ")
    assert str(caught.value).endswith("unset RAY_ADDRESS to run on this machine.")


def test_another_server_at_the_address_is_not_taken_for_a_cluster(
    monkeypatch: pytest.MonkeyPatch, other_server: str
):
    monkeypatch.setenv("RAY_ADDRESS", other_server)
    with pytest.raises(MeowError, match="no Ray cluster answers there"):
        cluster.connect()


@pytest.mark.parametrize("named", ["", "local"])
def test_without_a_cluster_a_run_starts_its_own(monkeypatch: pytest.MonkeyPatch, named: str):
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert cluster.to_join() is None


def test_the_file_of_a_cluster_that_is_gone_is_ignored(no_cluster: Path):
    no_cluster.write_text("127.0.0.1:1\n")
    assert cluster.to_join() is None


def test_a_ray_that_starts_too_slowly_is_named(monkeypatch: pytest.MonkeyPatch):
    import ray

    def time_out(**_: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    monkeypatch.setattr(cluster, "leave", lambda: None)
    with pytest.raises(MeowError, match="Ray did not start on this machine within its time limit"):
        cluster.connect()
