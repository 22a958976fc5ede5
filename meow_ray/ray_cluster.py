"""The cluster a run uses: the one it was submitted to, or a local one that it starts itself."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

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

CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")  # noqa: S108 - Ray's own place


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


def call(function: Callable[..., T], *arguments: Any, cpus: float = 1, gpus: float = 0) -> T:
    """Runs a function in a task of the cluster, so that what it needs is not held here."""
    import ray

    return cast(T, ray.get(ray.remote(num_cpus=cpus, num_gpus=gpus)(_apply).remote(function, *arguments)))


def _apply(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)


def has_gpus() -> bool:
    """Tells whether the cluster has GPUs."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def gpus_per_actor(resources: EngineResources) -> int:
    """Returns the GPUs of one engine actor."""
    gpus = resources.gpus_per_actor
    if gpus == "auto":
        gpus = resources.tensor_parallel_size if has_gpus() else 0
    if gpus < resources.tensor_parallel_size and (gpus or resources.tensor_parallel_size > 1):
        raise MeowError(
            f"`gpus_per_actor` is {gpus} and `tensor_parallel_size` {resources.tensor_parallel_size}: "
            "an engine needs a GPU for each part of its weights."
        )
    return gpus


def num_workers(resources: TrainResources) -> int:
    """Returns the number of ZeRO workers: one a GPU; on CPU two, if there are two CPUs."""
    import ray

    total = ray.cluster_resources()
    auto = int(total["GPU"]) if has_gpus() else min(2, int(total.get("CPU", 1) // resources.cpus_per_worker))
    return resources.workers(auto)


def require(count: int, cpus: float, gpus: int, key: str, resources: Resources, spare_cpus: int = 0) -> None:
    """Checks that the cluster can ever hold `count` workers of so many CPUs and GPUs, instead of waiting for it.

    Raises:
        MeowError: says what is asked for, what is there, and which key to change.
    """
    import ray

    if resources.autoscaling:
        return
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    slots = [min(n.get("CPU", 0) // cpus if cpus else count, n.get("GPU", 0) // gpus if gpus else count) for n in nodes]
    total = ray.cluster_resources()
    if sum(slots) < count or total.get("CPU", 0) < count * cpus + spare_cpus:
        have = "; ".join(f"{n.get('CPU', 0):g} CPUs and {n.get('GPU', 0):g} GPUs" for n in nodes)
        beside = f" and {spare_cpus} CPU beside them" if spare_cpus else ""
        raise MeowError(
            f"`{key}` asks for {count} x ({cpus:g} CPUs, {gpus} GPUs, each on one node){beside}; "
            f"the cluster's nodes have {have}. "
            "Lower the key, add nodes, or set resources.autoscaling=true if the cluster grows on demand."
        )


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """Shows a bar that remote workers move; yields an actor handle with `add` and `at` (count, **figures)."""
    import ray

    board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
    done = threading.Event()
    bar = tqdm(
        total=total, desc=f"  {title}", file=sys.stdout, mininterval=1 if sys.stdout.isatty() else 15, leave=True
    )

    def poll() -> None:
        while not done.wait(1.0):
            show()

    def show() -> None:
        try:
            count, figures = ray.get(board.read.remote())
        except ray.exceptions.RayError:  # its node may have died: a bar is not worth a stage
            return
        if figures:
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


class _Board:
    """Counts what workers have done."""

    def __init__(self) -> None:
        self.count, self.figures = 0, {}  # type: tuple[int, dict[str, str]]

    def add(self, count: int, **figures: str) -> None:
        self.count += count
        self.figures |= figures

    def at(self, count: int, **figures: str) -> None:
        self.count = count
        self.figures |= figures

    def read(self) -> tuple[int, dict[str, str]]:
        return self.count, self.figures
