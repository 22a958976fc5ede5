"""The cluster a run uses: the one it was submitted to, or a local one that it starts itself."""

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from meow_ray.config import EngineResources, Resources, TrainResources
from meow_ray.errors import MeowError

LOCAL_ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Defaults of a local cluster: it listens on localhost alone, so it needs no token."""


def connect() -> None:
    """Joins the cluster that this program was submitted to or that runs here, or starts a local one."""
    import ray

    if ray.is_initialized():
        return
    for name, value in LOCAL_ENV.items():
        os.environ.setdefault(name, value)
    if os.environ.get("RAY_ADDRESS"):
        ray.init()  # bare: options of the driver may conflict with those of the job
        return
    with contextlib.suppress(ConnectionError):
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        return
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )


def has_gpus() -> bool:
    """Tells whether the cluster has GPUs."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def gpus_per_actor(resources: EngineResources) -> int:
    """Returns the GPUs of one engine actor."""
    if resources.gpus_per_actor == "auto":
        return resources.tensor_parallel_size if has_gpus() else 0
    return resources.gpus_per_actor


def num_workers(resources: TrainResources) -> int:
    """Returns the number of ZeRO workers: one a GPU; on CPU two, if there are two CPUs."""
    import ray

    if resources.num_workers != "auto":
        return resources.num_workers
    total = ray.cluster_resources()
    auto = int(total["GPU"]) if has_gpus() else min(2, int(total.get("CPU", 1) // resources.cpus_per_worker))
    return max(1, min(auto, resources.max_workers or auto))


def require(cpus: float, gpus: float, per_unit_gpus: int, key: str, resources: Resources) -> None:
    """Checks that the cluster can ever give what a stage asks for, instead of waiting for it.

    Raises:
        MeowError: says what is asked for, what is there, and which key to change.
    """
    import ray

    if resources.autoscaling:
        return
    total = ray.cluster_resources()
    have_cpus, have_gpus = total.get("CPU", 0), total.get("GPU", 0)
    largest = max((node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus > have_cpus or gpus > have_gpus or per_unit_gpus > largest:
        raise MeowError(
            f"`{key}` asks for {cpus:g} CPUs and {gpus:g} GPUs ({per_unit_gpus} on one node); the cluster has "
            f"{have_cpus:g} CPUs and {have_gpus:g} GPUs (at most {largest:g} on one node). "
            "Lower the key, add nodes, or set resources.autoscaling=true if the cluster grows on demand."
        )


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """Shows a bar that remote workers move; yields an actor handle with `add` and `at` (count, **figures)."""
    import ray

    board = ray.remote(num_cpus=0)(_Board).remote()
    done = threading.Event()
    bar = tqdm(
        total=total, desc=f"  {title}", file=sys.stdout, mininterval=1 if sys.stdout.isatty() else 15, leave=True
    )

    def poll() -> None:
        while not done.wait(1.0):
            show()

    def show() -> None:
        count, figures = ray.get(board.read.remote())
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
