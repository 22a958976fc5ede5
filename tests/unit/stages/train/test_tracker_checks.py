"""Trackers are tried with a real connection before a run."""

from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Tracking
from meow_ray.stages.train import tracker_checks
from tests.support.servers import answering, silent_address


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "MLFLOW_TRACKING_USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def faults(tmp_path: Path, **trackers: Any) -> list[str]:
    return list(tracker_checks.tracker_faults(Tracking(**trackers), str(tmp_path)))


def test_wandb_without_a_key_is_refused_unless_it_is_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert faults(tmp_path, wandb="project") == [
        "`tracking.wandb`: there is no API key. Set WANDB_API_KEY where training runs, run wandb "
        "login, or set WANDB_MODE=offline."
    ]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert faults(tmp_path, wandb="project") == []


@pytest.mark.parametrize(
    ("status", "viewer", "is_refused"),
    [(200, {"id": "me"}, False), (200, None, True), (401, None, True), (500, None, False)],
)
def test_wandb_is_asked_who_the_key_belongs_to(
    status: int,
    viewer: Any,
    is_refused: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    with answering(status, {"data": {"viewer": viewer}}) as (url, requests):
        monkeypatch.setenv("WANDB_BASE_URL", url)
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password secret\n")
        refused = f"`tracking.wandb`: {url} refuses the API key. Set WANDB_API_KEY to a valid one."
        assert faults(tmp_path, wandb="project") == ([refused] if is_refused else [])
    assert requests[0]["path"] == "/graphql"
    assert requests[0]["headers"]["Authorization"] == "Basic YXBpOnNlY3JldA=="  # api:secret


def test_servers_that_are_down_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = silent_address()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.setenv("WANDB_BASE_URL", url)
    mlflow, wandb = faults(tmp_path, mlflow=url, wandb="project")
    assert mlflow.startswith(f"`tracking.mlflow`: {url} does not answer within 5 s (")
    assert wandb.startswith(f"`tracking.wandb`: {url} does not answer within 5 s (")


@pytest.mark.parametrize(("status", "is_refused"), [(200, False), (404, False), (401, True)])
def test_an_mlflow_server_that_answers_can_be_used(status: int, is_refused: bool, tmp_path: Path):
    with answering(status, {}) as (url, _):
        assert bool(faults(tmp_path, mlflow=url)) is is_refused


def test_folders_that_cannot_be_made_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert faults(tmp_path, mlflow=str(tmp_path / "new"), tensorboard=True) == []
    (fault,) = faults(tmp_path / "file", tensorboard=True)
    assert fault.startswith(f"`tracking.tensorboard`: {tmp_path}/file/tensorboard cannot be")


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tracker_checks, "find_spec", lambda module: None)
    assert faults(tmp_path, **{name: "somewhere"}) == [
        f"`tracking.{name}` is set, but the package {name} is not installed. "
        f"Run: pip install {name}."
    ]
