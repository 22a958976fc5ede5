"""Curves of a training run for TensorBoard, MLflow and Weights & Biases."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.config import Tracking
from meow_ray.core import storage
from meow_ray.errors import MeowError


@dataclass(frozen=True)
class TrackerSpec:
    """The trackers of one run, with the run's name and settings."""

    config: Tracking
    name: str
    """Name of the run: stage and fingerprint."""
    folder: str
    """URI for event files."""
    settings: Mapping[str, Any]
    """The settings of the run, without text of facts."""

    @property
    def mlflow(self) -> str:
        """MLflow's tracking URI; a path is absolute, because workers run in other folders."""
        uri = self.config.mlflow or ""
        return uri if ":" in uri else f"file:{storage.absolute(uri)}"

    def check(self) -> None:
        """Checks that the libraries of the configured trackers are installed.

        Raises:
            MeowError: one is not.
        """
        for name in ("mlflow", "wandb"):
            if getattr(self.config, name) and find_spec(name) is None:
                raise MeowError(
                    f"`tracking.{name}` is set, but the package {name} is not installed. "
                    f"Run: pip install {name}."
                )


class Tracker:
    """Writes the curves of a run in its first worker; opens trackers at the first record."""

    def __init__(self, spec: TrackerSpec) -> None:
        self.spec = spec
        self._sinks: list[Callable[[dict[str, float], int], Any]] = []
        self._closing = ExitStack()
        self._writer: Any = None
        self._clock: float | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Writes the figures of an optimiser step: its record, tokens per second and memory."""
        now = time.perf_counter()
        figures = {
            "loss": record["loss"],
            "learning_rate": record["learning_rate"],
            "memory_gib": _memory(),
        }
        figures |= {f"terms/{name}": value for name, value in record.get("terms", {}).items()}
        if self._clock is None:
            self._open()
        else:
            figures["tokens_per_second"] = record["tokens"] / (now - self._clock)
        self._clock = now
        for sink in self._sinks:
            sink(figures, record["step"])

    def flush(self) -> None:
        """Makes the curves so far visible in TensorBoard's folder."""
        if self._writer is not None:
            self._writer.flush()
            if self._writer.logdir != self.spec.folder:
                storage.copy_folder(self._writer.logdir, self.spec.folder)

    def close(self) -> None:
        """Writes what is left, and closes the trackers."""
        self.flush()
        self._closing.close()

    def _open(self) -> None:
        config = self.spec.config
        if config.tensorboard:
            self._open_tensorboard()
        if config.mlflow:
            self._open_mlflow()
        if config.wandb:
            self._open_wandb(config.wandb)

    def _open_tensorboard(self) -> None:
        from tensorboardX import SummaryWriter

        folder = self.spec.folder
        if not storage.is_local(folder):  # `flush` copies the event files
            folder = self._closing.enter_context(TemporaryDirectory())
        self._writer = SummaryWriter(folder)
        self._closing.callback(self._writer.close)
        self._sinks.append(self._to_tensorboard)

    def _open_mlflow(self) -> None:
        import mlflow

        if self.spec.mlflow.startswith("file:"):  # MLflow refuses a folder without this variable
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri(self.spec.mlflow)
        mlflow.set_experiment("meow_ray")
        mlflow.start_run(run_name=self.spec.name)
        mlflow.log_params(dict(self.spec.settings))
        self._closing.callback(mlflow.end_run)
        self._sinks.append(lambda figures, step: mlflow.log_metrics(figures, step=step))

    def _open_wandb(self, project: str) -> None:
        import wandb

        settings = dict(self.spec.settings)
        run = wandb.init(project=project, name=self.spec.name, config=settings)
        # finish() alone returns before its process has written the run
        self._closing.callback(wandb.teardown)
        self._sinks.append(lambda figures, step: run.log(figures, step=step))

    def _to_tensorboard(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)


def _memory() -> float:
    """Returns the peak memory of this process in GiB: the GPU's, or that of the process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
