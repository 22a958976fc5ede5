"""The Ray cluster of a run: the one it was submitted to, a running one, or a local one."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

LOCAL_ENV = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_worker_niceness": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Default environment of a local cluster. It listens on localhost only, so it needs no token."""

MAX_RETRIES = 20
"""Retries of a task: one that runs for hours may lose its node more often than Ray's default, 3."""

TEMPORARY = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - as in Ray
CURRENT_CLUSTER = Path(TEMPORARY, "ray", "ray_current_cluster")
"""The file in which `ray start` writes the address of the running cluster."""


def leave() -> None:
    """Leaves the cluster, if it was joined; Ray then prints repeated messages that it held back."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def connect() -> None:
    """Joins the cluster of this job or the one that runs here, or starts a local one."""
    import ray

    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init()  # without options: those of the driver may conflict with those of the job
        return
    if CURRENT_CLUSTER.exists():
        # `ray start` writes this file; the local cluster of another run, which would end with that
        # run, does not
        with contextlib.suppress(ConnectionError):
            ray.init(
                address=CURRENT_CLUSTER.read_text().strip(),
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
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
    """Runs a function in a task of the cluster, so that this process does not hold its data.

    Args:
        function: a function that can be pickled.
        *arguments: its arguments.
        cpus: CPUs that Ray reserves for the task.
        gpus: GPUs that Ray reserves for the task.
        labels: labels that the task's node must have.
        env: environment variables of the task.
    """
    import ray

    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": MAX_RETRIES}
    if labels:
        options["label_selector"] = dict(labels)
    if env:  # Ray then starts a new worker process; without, it reuses one
        options["runtime_env"] = {"env_vars": dict(env)}
    return cast(T, ray.get(ray.remote(**options)(_apply).remote(function, *arguments)))


def _apply(function: Callable[..., T], *arguments: Any) -> T:
    return function(*arguments)
