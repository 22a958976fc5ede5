"""Trackers of training: TensorBoard, MLflow, and Weights & Biases."""

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Tracking
from meow_ray.core import storage
from meow_ray.stages.train import tracking
from meow_ray.stages.train.tracking import Tracker, TrackerSpec

RECORDS = [
    {
        "step": step,
        "loss": 1 / step,
        "learning_rate": 0.1,
        "tokens": 50,
        "terms": {"objective": 0.5, "kl": 0.25},
    }
    for step in (1, 2, 3)
]


def spec(folder: str, **config: Any) -> TrackerSpec:
    return TrackerSpec(Tracking(**config), "train-abc", folder, {"epochs": 3})


def write(tracker: Tracker) -> None:
    for record in RECORDS:
        tracker.log(record)
    tracker.close()


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Reads the scalars of a folder of event files."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.glob("events*"):
        with path.open("rb") as file:
            while header := file.read(12):  # a record: its length, a checksum, itself, a checksum
                event = Event.FromString(file.read(struct.unpack("<Q", header[:8])[0]))
                file.read(4)
                for value in event.summary.value:
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_event_files_hold_the_curves(tmp_path: Path):
    write(Tracker(spec(str(tmp_path / "run"))))
    found = events(tmp_path / "run")
    assert [(step, pytest.approx(value)) for step, value in found["loss"]] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert [step for step, _ in found["tokens_per_second"]] == [2, 3], (
        "the time before the first step is unknown"
    )
    assert {"learning_rate", "memory_gib", "terms/objective", "terms/kl"} <= found.keys()
    assert all(value > 0 for _, value in found["memory_gib"])


def test_event_files_reach_an_object_store(s3: Callable[[str], str], tmp_path: Path):
    place = s3("runs/train-abc")
    tracker = Tracker(spec(place))
    tracker.log(RECORDS[0])
    tracker.flush()
    assert storage.list_files(place), "they are uploaded during the run"
    tracker.close()
    storage.copy_folder(place, str(tmp_path / "copy"))
    assert events(tmp_path / "copy")["loss"] == [(1, 1.0)]


def test_a_tracker_that_logs_nothing_leaves_nothing(tmp_path: Path):
    Tracker(spec(str(tmp_path / "run"))).close()
    assert not (tmp_path / "run").exists()


def test_a_disabled_tracker_is_not_called(tmp_path: Path):
    write(Tracker(spec(str(tmp_path / "run"), tensorboard=False)))
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    tracker = Tracker(spec(str(tmp_path / "run"), mlflow=str(tmp_path)), say=said.append)

    def refuse(*arguments: Any) -> None:
        raise ConnectionError("the server is down")

    monkeypatch.setattr(tracker, "_open_mlflow", refuse)
    write(tracker)
    assert said == [
        "`tracking.mlflow` failed and is left out (ConnectionError: the server is down). "
        "Training goes on."
    ]
    assert [value for _, value in events(tmp_path / "run")["loss"]] == pytest.approx(
        [1.0, 1 / 2, 1 / 3]
    ), "the other trackers go on"


def test_training_does_not_wait_for_a_tracker_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said: list[str] = []
    answer = threading.Event()
    tracker = Tracker(spec("", tensorboard=False, wandb="project"), say=said.append)
    monkeypatch.setattr(tracker, "_open_wandb", lambda project: answer.wait())
    monkeypatch.setattr(tracking, "CLOSING", 0.1)
    write(tracker)
    answer.set()
    assert said[0].startswith("`tracking.wandb` failed and is left out (TimeoutError: no answer")


def test_a_folder_that_cannot_be_written_does_not_end_training(tmp_path: Path):
    said: list[str] = []
    (tmp_path / "file").write_text("")
    write(Tracker(spec(str(tmp_path / "file" / "run")), say=said.append))
    assert len(said) == 1
    assert said[0].startswith("`tracking.tensorboard` failed and is left out")


def test_mlflow_gets_parameters_and_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")  # restored after the test
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    one = spec("", tensorboard=False, mlflow=str(tmp_path / "mlruns"))
    write(Tracker(one))
    client = MlflowClient(one.mlflow)
    experiment = client.get_experiment_by_name("meow_ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == (
        "train-abc",
        "FINISHED",
        {"epochs": "3"},
    )
    curve = [
        (point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")
    ]
    assert curve == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_weights_and_biases_gets_configuration_and_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    write(Tracker(spec("", tensorboard=False, wandb="my-project")))
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    written = file.read_bytes()
    assert all(text in written for text in (b"my-project", b"train-abc", b"epochs"))
    assert written.count(b"learning_rate") >= len(RECORDS)
