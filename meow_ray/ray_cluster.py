"""The cluster a run uses: the one it was submitted to, or a local one that it starts itself."""

import contextlib
import io
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from tqdm import tqdm

from meow_ray.errors import MeowError
from meow_ray.resources import EngineResources, Resources, TrainResources

T = TypeVar("T")

LOCAL_ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Defaults of a local cluster: it listens on localhost alone, so it needs no token."""

MAX_RETRIES = 20
"""A task that runs for hours may lose its node more than Ray's three times."""
EVENTS: TextIO | None = None
"""Where progress is printed for machines; None prints it for people."""

TEMPORARY = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - Ray's own place
CURRENT_CLUSTER = Path(TEMPORARY, "ray", "ray_current_cluster")


def leave() -> None:
    """Leaves the cluster, if it was joined; Ray prints then what it has held back as repeated."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def connect() -> None:
    """Joins the cluster that this program was submitted to or that runs here, or starts a local one."""
    import ray

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init()  # bare: options of the driver may conflict with those of the job
        return
    if CURRENT_CLUSTER.exists():
        # written by `ray start`, and not by the private Ray of another run, which would end with it
        with contextlib.suppress(ConnectionError):
            ray.init(address=CURRENT_CLUSTER.read_text().strip(), log_to_driver=False, logging_level=logging.ERROR)
            return
    for name, value in LOCAL_ENV.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )


def call(
    function: Callable[..., T],
    *arguments: Any,
    cpus: float = 1,
    gpus: float = 0,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
) -> T:
    """Runs a function in a task of the cluster, so that what it needs is not held here."""
    import ray

    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": MAX_RETRIES}
    if labels:
        options["label_selector"] = dict(labels)
    if env:  # it needs a worker of its own; others are used again
        options["runtime_env"] = {"env_vars": dict(env)}
    return cast(T, ray.get(ray.remote(**options)(_apply).remote(function, *arguments)))


def _apply(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def capacity(resources: Resources, labels: Mapping[str, str]) -> list[tuple[float, float]]:
    """Returns CPUs and GPUs of each node with such labels: of those there, or if any are declared, of those to come."""
    import ray

    if resources.autoscaling:
        kinds = [kind for kind in resources.autoscaling if labels.items() <= kind.labels.items()]
        return [(kind.cpus, kind.gpus) for kind in kinds for _ in range(kind.max_nodes)]
    nodes = [node for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items()]
    return [(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0)) for node in nodes]


def has_gpus(resources: Resources, labels: Mapping[str, str]) -> bool:
    """Tells whether nodes with such labels have GPUs."""
    return any(gpus for _, gpus in capacity(resources, labels))


def gpus_per_actor(name: str, resources: Resources) -> int:
    """Returns the GPUs of one engine actor of a stage."""
    own: EngineResources = getattr(resources, name)
    gpus = own.gpus_per_actor
    if gpus == "auto":
        gpus = own.tensor_parallel_size if has_gpus(resources, own.node_labels) else 0
    if gpus < own.tensor_parallel_size and (gpus or own.tensor_parallel_size > 1):
        raise MeowError(
            f"`gpus_per_actor` is {gpus} and `tensor_parallel_size` {own.tensor_parallel_size}: "
            "an engine needs a GPU for each part of its weights."
        )
    return gpus


def num_workers(name: str, resources: Resources) -> int:
    """Returns the number of ZeRO workers of a stage: one a GPU; on CPU two, if there are two CPUs."""
    own: TrainResources = getattr(resources, name)
    nodes = capacity(resources, own.node_labels)
    gpus = int(sum(gpus for _, gpus in nodes))
    return own.workers(gpus or min(2, int(sum(cpus for cpus, _ in nodes) // own.cpus_per_worker)))


def least_workers(name: str, resources: Resources) -> int:
    """Returns the number of ZeRO workers that a stage can do with."""
    own: TrainResources = getattr(resources, name)
    workers = num_workers(name, resources)
    return min(own.min_workers or workers, workers)


def require(name: str, resources: Resources, *, on_gpu: bool = True) -> None:
    """Checks that the cluster can ever hold the least actors or workers of a section of the resources.

    Args:
        name: the section.
        resources: the configuration's resources.
        on_gpu: False: its actors use no GPU, whatever there is.

    Raises:
        MeowError: says what is asked for, what is there, and which key to change.
    """
    own: EngineResources | TrainResources = getattr(resources, name)
    if isinstance(own, TrainResources):
        count, cpus, spare_cpus = least_workers(name, resources), own.cpus_per_worker, 0
        gpus = int(has_gpus(resources, own.node_labels))
    else:
        # Ray Data reads, filters and writes with tasks of one CPU beside the actors
        count, cpus, spare_cpus = own.actors[0], own.cpus_per_actor, 1
        gpus = gpus_per_actor(name, resources) if on_gpu else 0
    nodes = capacity(resources, own.node_labels)
    slots = [min(have // cpus if cpus else count, there // gpus if gpus else count) for have, there in nodes]
    all_cpus = sum(have for have, _ in capacity(resources, {}))
    if sum(slots) >= count and all_cpus >= count * cpus + spare_cpus:
        return
    kinds = Counter(f"{have:g} CPUs and {there:g} GPUs" for have, there in nodes)
    have = "; ".join(f"{number} x {kind}" for kind, number in kinds.items()) or "no such node"
    where = f" on nodes labelled {json.dumps(dict(own.node_labels))}" if own.node_labels else ""
    beside = f" and {spare_cpus} CPU beside them" if spare_cpus else ""
    may = "may have at most (resources.autoscaling)" if resources.autoscaling else "has"
    hint = "" if resources.autoscaling else ", or name in resources.autoscaling what the cluster adds on demand"
    raise MeowError(
        f"`resources.{name}` asks for {count} x ({cpus:g} CPUs, {gpus} GPUs, each on one node){where}{beside}; "
        f"the cluster {may}: {have}. Lower the key or add nodes{hint}."
    )


# --- progress ---------------------------------------------------------------------------------------------------------

Figures = dict[str, tuple[float, int]]
"""What a stage shows of itself: for a mean, such as `memo`, a sum and its count; for a total, such as `tokens`, 0."""


@contextlib.contextmanager
def progress(stage: str, total: int) -> Iterator[Any]:
    """Shows a bar that remote workers move, and Ray's metrics; yields an actor handle with `add` and `at`."""
    import ray

    board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote(stage)
    done = threading.Event()
    bar = _bar(stage, total)

    def poll() -> None:
        while not done.wait(1.0):
            show()

    def show() -> None:
        try:
            count, figures = ray.get(board.read.remote())
        except ray.exceptions.RayError:  # its node may have died: a bar is not worth a stage
            return
        bar.set_postfix(figures, refresh=False)
        bar.update(min(count, total) - bar.n)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
        done.set()
        thread.join()
        show()
    finally:
        done.set()
        thread.join()
        bar.close()
        ray.kill(board)


def _bar(stage: str, total: int) -> Any:
    options: dict[str, Any] = {"total": total, "desc": f"  {stage}", "mininterval": 15}
    if EVENTS:
        return _Events(**options, file=io.StringIO())
    if sys.stdout.isatty():
        return tqdm(**options | {"mininterval": 1}, file=sys.stdout)
    form = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {elapsed} gone, {remaining} left{postfix}"
    return _Lines(**options, file=io.StringIO(), bar_format=form)


class _Lines(tqdm):  # type: ignore[misc]
    """Gives a log one line after the other, where a terminal gets its last line anew."""

    shown = 0

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n != self.shown:
            print(self.line(), file=EVENTS, flush=True)
            self.shown = self.n

    def line(self) -> str:
        return str(self).rstrip()


class _Events(_Lines):
    """Gives machines the same."""

    figures: dict[str, float]

    def set_postfix(self, figures: dict[str, float], refresh: bool = True) -> None:
        self.figures = figures

    def line(self) -> str:
        return json.dumps(
            {"event": "progress", "stage": self.desc.strip(), "rows": self.n, "of": self.total} | self.figures
        )


class _Board:
    """Adds up what workers have done, and exports it as Ray's metrics `meow_…`, tagged with the stage."""

    def __init__(self, stage: str) -> None:
        self.stage, self.count = stage, 0
        self.figures: Figures = {}
        self.gauges: dict[str, Any] = {}
        self.times: list[tuple[float, int]] = []

    def add(self, rows: int, figures: Figures) -> None:
        self.count += rows
        for name, (value, count) in figures.items():
            before, counted = self.figures.get(name, (0, 0))
            self.figures[name] = (before + value, counted + count)
        self._export()

    def at(self, rows: int, figures: Figures) -> None:
        self.count, self.figures = rows, figures
        self._export()

    def read(self) -> tuple[int, dict[str, float]]:
        found = self.figures.items()
        return self.count, {name: value / (count or 1) for name, (value, count) in found if count or value}

    def pace(self) -> float | None:
        """Returns the seconds that a row took, from the first report to the last; None if there is no second one."""
        if len(self.times) < 2 or self.times[0][1] == self.times[-1][1]:
            return None
        (began, first), (ended, last) = self.times[0], self.times[-1]
        return (ended - began) / (last - first)

    def _export(self) -> None:
        self.times = [*self.times[:1], (time.monotonic(), self.count)]
        from ray.util.metrics import Gauge

        count, figures = self.read()
        for name, value in {"rows": count, **figures}.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(f"meow_{name}", f"meow_ray: {name} of the stage", tag_keys=("stage",))
            self.gauges[name].set(value, {"stage": self.stage})
