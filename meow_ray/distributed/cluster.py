"""The Ray cluster of a run: the one it was submitted to, a running one, or a local one."""

import atexit
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from meow_ray.core import sockets, timeline
from meow_ray.distributed.failures import user_error
from meow_ray.errors import MeowError

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

ANSWER_TIMEOUT = 15
"""The most seconds until a running cluster answers. Ray itself would wait for some minutes."""

SESSION_PATH = len("/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")
"""Bytes that Ray appends to its temporary folder for the path of a socket."""


def leave() -> None:
    """Leaves the cluster, if it was joined; Ray then prints repeated messages that it held back."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


def connect() -> None:
    """Joins the cluster of this job or the one that runs here, or starts a local one.

    Raises:
        MeowError: `RAY_ADDRESS` does not lead to a running cluster, or a local one cannot start.
    """
    import ray

    if ray.is_initialized():
        return
    address = to_join()
    if address is None:
        _start_local()
    else:
        _join(address)
    timeline.mark("Ray joined")


def _join(address: str) -> None:
    import ray

    with _naming_errors(address):
        if os.environ.get("RAY_ADDRESS"):
            ray.init()  # without options: those of the driver may conflict with those of the job
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _start_local() -> None:
    import ray

    for name, value in LOCAL_ENV.items():
        os.environ.setdefault(name, value)
    folder = sockets.short_folder(SESSION_PATH, within=TEMPORARY, variable="RAY_TMPDIR")
    atexit.register(leave)  # before that folder is deleted
    with _naming_slow_starts():
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder / "ray"),
        )


@contextmanager
def _naming_slow_starts() -> Iterator[None]:
    """Says what to do if the local Ray does not start within the time that it gives itself."""
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        leave()
        raise MeowError(
            "Ray did not start on this machine within its time limit of 30 s. The machine may have "
            "too much to do. Run the command again when it is less busy; finished work is kept."
        ) from error


def to_join() -> str | None:
    """Returns the address of the running cluster that a run joins; None if it starts its own.

    Raises:
        MeowError: `RAY_ADDRESS` does not lead to a running cluster.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if named == "local":
        return None
    if named and named != "auto":
        _check_form(named)
        address = named
    else:
        # `ray start` writes this file; the local cluster of another run, which would end with that
        # run, does not
        address = CURRENT_CLUSTER.read_text().strip() if CURRENT_CLUSTER.exists() else ""
    if address and _answers(address):
        return address
    if not named:
        return None
    raise MeowError(
        f"RAY_ADDRESS={named}: no Ray cluster answers there. Start the cluster, correct the "
        "address, or unset RAY_ADDRESS to run on this machine."
    )


def _check_form(address: str) -> None:
    """Checks that RAY_ADDRESS is HOST:PORT."""
    if address.startswith(("http://", "https://")):
        raise MeowError(
            f"RAY_ADDRESS={address}: this is the address to which `ray job submit` sends jobs. "
            "Submit the command as a job, or unset RAY_ADDRESS to run on this machine."
        )
    if "://" in address:
        raise MeowError(
            f"RAY_ADDRESS={address}: a run does not work through Ray Client. Submit the command "
            "with `ray job submit`, or unset RAY_ADDRESS to run on this machine."
        )
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", address):
        raise MeowError(
            f"RAY_ADDRESS={address}: this is no address of a cluster. Give HOST:PORT, such as "
            "10.0.0.1:6379, or unset RAY_ADDRESS to run on this machine."
        )


def _answers(address: str) -> bool:
    """Returns whether a server of Ray's protocol, gRPC, answers at HOST:PORT."""
    import grpc

    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_TIMEOUT).close()
    except (OSError, OverflowError):
        return False
    if os.environ.get("RAY_USE_TLS") == "1":
        return True  # it answers only to the cluster's certificates, which Ray reads
    channel = grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_TIMEOUT)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


@contextmanager
def _naming_errors(address: str) -> Iterator[None]:
    """Turns Ray's refusal to join a cluster, such as one of another version, into a MeowError."""
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise MeowError(
            f"The Ray cluster at {address} cannot be joined: {reason}. Start one with `ray start`, "
            "or unset RAY_ADDRESS to run on this machine."
        ) from error


def call(
    function: Callable[..., T],
    *arguments: Any,
    cpus: float = 1,
    gpus: float = 0,
    labels: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    own_process: bool = False,
) -> T:
    """Runs a function in a task of the cluster, so that this process does not hold its data.

    Args:
        function: a function that can be pickled.
        *arguments: its arguments.
        cpus: CPUs that Ray reserves for the task.
        gpus: GPUs that Ray reserves for the task.
        labels: labels that the task's node must have.
        env: environment variables of the task.
        own_process: the task's process ends with it, and with the process all actors of the task.

    Raises:
        MeowError: the function raised one, or an error that means a mistake of the user.
    """
    import ray

    options: dict[str, Any] = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": MAX_RETRIES}
    if labels:
        options["label_selector"] = dict(labels)
    if env:  # Ray then starts a new worker process; without, it reuses one
        options["runtime_env"] = {"env_vars": dict(env)}
    if own_process:
        options["max_calls"] = 1
    result = ray.get(ray.remote(**options)(_apply).remote(function, *arguments))
    if isinstance(result, _Mistake):
        raise MeowError(result.message)
    return cast(T, result)


@dataclass(frozen=True)
class _Mistake:
    """A user's mistake on its way out of a task.

    It is returned and not raised: Ray would wrap an error, print its traceback and lose its cause.
    """

    message: str


def _apply(function: Callable[..., T], *arguments: Any) -> T | _Mistake:
    try:
        return function(*arguments)
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        return _Mistake(mistake.message)
