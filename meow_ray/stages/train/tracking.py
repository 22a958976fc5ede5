"""Curves of a training run for TensorBoard, MLflow and Weights & Biases."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.config import Tracking
from meow_ray.core import storage

CLOSING = 60
"""Seconds that a tracker has at the end of training to write what is left."""
MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Limits of MLflow's requests; its own are minutes long."""


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


Figures = dict[str, float]
Write = Callable[[Figures, int], Any]
"""Writes the figures of a step."""


class Tracker:
    """Writes the curves of a run in its first worker; opens trackers at the first record.

    A tracker never changes a result. One that fails is left out from then on, which is said once.

    Args:
        spec: the trackers of the run.
        say: takes a sentence for the user.
    """

    def __init__(self, spec: TrackerSpec, say: Callable[[str], Any] = print) -> None:
        self.spec = spec
        self._say = say
        self._servers: list[_Server] = []
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
        compared = record.get("never_seen", {})
        figures |= {f"never_seen/{name}": value for name, value in compared.items()}
        for weight in ("kl_weight", "retain_weight"):
            if weight in record:
                figures[weight] = record[weight]
        if self._clock is None:
            self._open()
        else:
            figures["tokens_per_second"] = record["tokens"] / (now - self._clock)
        self._clock = now
        self._to_tensorboard(figures, record["step"])
        for server in self._servers:
            server.write(figures, record["step"])

    def flush(self) -> None:
        """Makes the curves so far visible in TensorBoard's folder."""
        if self._writer is None:
            return
        with self._tensorboard():
            self._writer.flush()
            if self._writer.logdir != self.spec.folder:
                storage.copy_folder(self._writer.logdir, self.spec.folder)

    def close(self) -> None:
        """Writes what is left, and closes the trackers."""
        self.flush()
        with self._tensorboard():
            self._closing.close()
        for server in self._servers:
            server.close()

    def _open(self) -> None:
        config = self.spec.config
        if config.tensorboard:
            with self._tensorboard():
                self._open_tensorboard()
        if config.mlflow:
            self._servers.append(_Server("mlflow", self._open_mlflow, self._say))
        if config.wandb:
            open_wandb = partial(self._open_wandb, config.wandb)
            self._servers.append(_Server("wandb", open_wandb, self._say))

    # --- TensorBoard

    @contextmanager
    def _tensorboard(self) -> Iterator[None]:
        """Leaves TensorBoard out from the first error on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a tracker never ends a run
            self._writer = None
            self._say(_left_out("tensorboard", error))

    def _open_tensorboard(self) -> None:
        from tensorboardX import SummaryWriter

        folder = self.spec.folder
        if not storage.is_local(folder):  # `flush` copies the event files
            folder = self._closing.enter_context(TemporaryDirectory())
        self._writer = SummaryWriter(folder)
        self._closing.callback(self._writer.close)

    def _to_tensorboard(self, figures: Figures, step: int) -> None:
        if self._writer is None:
            return
        with self._tensorboard():
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)

    # --- servers

    def _open_mlflow(self) -> tuple[Write, Callable[[], Any]]:
        for name, value in MLFLOW_LIMITS.items():
            os.environ.setdefault(name, value)
        if self.spec.mlflow.startswith("file:"):  # MLflow refuses a folder without this variable
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow

        mlflow.set_tracking_uri(self.spec.mlflow)
        mlflow.set_experiment("meow_ray")
        mlflow.start_run(run_name=self.spec.name)
        mlflow.log_params(dict(self.spec.settings))
        return lambda figures, step: mlflow.log_metrics(figures, step=step), mlflow.end_run

    def _open_wandb(self, project: str) -> tuple[Write, Callable[[], Any]]:
        import wandb

        settings = dict(self.spec.settings)
        run = wandb.init(project=project, name=self.spec.name, config=settings)
        # finish() alone returns before its process has written the run
        return lambda figures, step: run.log(figures, step=step), wandb.teardown


class _Server:
    """A tracker that a thread of its own writes to, so that training never waits for it."""

    def __init__(
        self,
        name: str,
        connect: Callable[[], tuple[Write, Callable[[], Any]]],
        say: Callable[[str], Any],
    ) -> None:
        self._name = name
        self._connect = connect
        self._say = say
        self._figures: SimpleQueue[tuple[Figures, int] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def write(self, figures: Figures, step: int) -> None:
        """Hands the figures of a step to the thread."""
        self._figures.put((figures, step))

    def close(self) -> None:
        """Waits until all figures are written, but not longer than `CLOSING`."""
        self._figures.put(None)
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            self._say(_left_out(self._name, TimeoutError(f"no answer within {CLOSING} s")))

    def _write_all(self) -> None:
        try:
            write, close = self._connect()
            while (item := self._figures.get()) is not None:
                write(*item)
            close()
        except Exception as error:  # noqa: BLE001 - a tracker never ends a run
            self._say(_left_out(self._name, error))


def _left_out(name: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = lines[0][:200].rstrip(".") if lines else ""
    return (
        f"`tracking.{name}` failed and is left out ({type(error).__name__}: {reason}). "
        "Training goes on."
    )


def _memory() -> float:
    """Returns the peak memory of this process in GiB: the GPU's, or that of the process."""
    import resource

    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
