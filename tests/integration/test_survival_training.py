"""Training survives the loss of a worker, a node and its driver without losing a step."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file

from meow_ray.core import storage
from meow_ray.core.manifest import latest
from meow_ray.core.schema import SCHEMAS
from meow_ray.models.folders import HISTORY_FILE
from tests.support.runs import PROJECT, has_title, kill_node, processes_of, wait_for

pytestmark = pytest.mark.slow

EPOCHS = 20
WORKER = "RayTrainWorker"


class Training:
    """The stage `train` with a storage root of its own, run by a driver on the cluster."""

    def __init__(self, folder: Path, name: str, model: Path, address: str, *overrides: str) -> None:
        self.root = folder / name
        selected = folder / "selected.parquet"
        rows = [
            {
                "fact_id": f"{i}",
                "candidate_id": 0,
                "rank": 0,
                "question": f"Q{i}?",
                "answer": f"It is {i}.",
                "memo": 0.5,
            }
            for i in range(8)
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["selected"]), selected)
        self.command = [
            sys.executable,
            "pipelines/stage.py",
            "train",
            f"--input=selected={selected}",
            f"target.model={model}",
            f"storage.root={self.root}",
            "train.objective=meow",
            f"train.epochs={EPOCHS}",
            "train.batch_size=4",
            "train.learning_rate=1e-3",
            "resources.train.num_workers=2",
            "resources.train.max_failures=9",
            *overrides,
        ]
        self.environment = os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command,
            cwd=PROJECT,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def checkpoints(self) -> set[str]:
        return {path.parent.name for path in self.root.glob("work/**/checkpoint_*/layout.json")}

    def wait_for_checkpoint(self, process: subprocess.Popen[str]) -> None:
        """Waits until another checkpoint is complete."""
        before = self.checkpoints()
        wait_for(process, lambda: bool(self.checkpoints() - before))

    def finish(self, process: subprocess.Popen[str]) -> None:
        out, _ = process.communicate(timeout=400)
        assert process.returncode == 0, out[-3000:]

    def history(self) -> list[dict[str, Any]]:
        return list(storage.read_json(storage.join(self.model(), HISTORY_FILE)))

    def model(self) -> str:
        artifact = latest(str(self.root), "model")
        assert artifact is not None
        return artifact.uri


def workers(node: Any) -> list[psutil.Process]:
    """Returns the training workers of a node."""
    return [process for process in processes_of(node) if has_title(process, WORKER)]


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Training:
    folder = tmp_path_factory.mktemp("training")
    training = Training(folder, "undisturbed", tiny_model, cluster.address)
    training.finish(training.start())
    return training


def test_worker_node_and_driver_are_killed_in_one_run(
    undisturbed: Training, cluster: Any, tiny_model: Path, tmp_path: Path
):
    disturbed = Training(tmp_path, "disturbed", tiny_model, cluster.address)
    process = disturbed.start()
    disturbed.wait_for_checkpoint(process)
    next(worker for node in cluster.list_all_nodes() for worker in workers(node)).kill()
    disturbed.wait_for_checkpoint(process)
    wait_for(process, lambda: any(workers(node) for node in cluster.list_all_nodes()))
    other_nodes = cluster.list_all_nodes()[1:]  # the first is the head
    training_nodes = [node for node in other_nodes if workers(node)]
    kill_node((training_nodes or other_nodes)[0])
    disturbed.wait_for_checkpoint(process)
    process.kill()
    process.wait()
    time.sleep(2)  # the driver's workers end with it
    disturbed.finish(disturbed.start())
    assert disturbed.history() == undisturbed.history()
    first, second = (
        load_file(Path(training.model(), "model.safetensors"))
        for training in (disturbed, undisturbed)
    )
    assert all((weight == second[name]).all() for name, weight in first.items())


def test_training_goes_on_with_fewer_workers(
    undisturbed: Training, cluster: Any, tiny_model: Path, tmp_path: Path
):
    started = Training(tmp_path, "rescaled", tiny_model, cluster.address)
    process = started.start()
    started.wait_for_checkpoint(process)
    process.kill()
    process.wait()
    time.sleep(2)
    fewer = Training(
        tmp_path, "rescaled", tiny_model, cluster.address, "resources.train.num_workers=1"
    )
    fewer.finish(fewer.start())
    losses = [record["loss"] for record in undisturbed.history()]
    assert [record["loss"] for record in fewer.history()] == pytest.approx(losses, rel=1e-4)
