"""The cluster a run uses: the one it was submitted to, or a local one that it starts itself."""

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
"""Defaults of a local cluster: it listens on localhost alone, so it needs no token."""

MAX_RETRIES = 20
"""A task that runs for hours may lose its node more than Ray's three times."""

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


# --- progress -----------------------------------------------------------------------------------
