"""What the benchmarks share: processes of their own, their memory, and how figures are written."""

import json
import os
import platform
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import psutil

from benchmarks.host import PROJECT, RESULTS
from meow_ray.core import local_cache
from meow_ray.core.manifest import LIBRARIES, Manifest, latest
from meow_ray.pipeline.pipeline import Pipeline

T = TypeVar("T")

LOG = local_cache.cache_home() / "logs" / "benchmarks.log"

MIB = 1 << 20
START_LOAD = os.getloadavg()[0]
"""The load of the machine when the benchmark began: running processes in the last minute."""


@dataclass
class Memory:
    """The highest sampled PSS in MiB; a shared page counts in part for each process."""

    peak_pss_mib: float = 0.0


@contextmanager
def sampled(pid: int, *, tree: bool, interval: float = 0.2) -> Iterator[Memory]:
    """Samples the PSS of a process; with `tree`, of its descendants as well."""
    memory, done = Memory(), threading.Event()
    process = psutil.Process(pid)

    def poll() -> None:
        while not done.wait(interval):
            memory.peak_pss_mib = max(memory.peak_pss_mib, _pss_mib(process, tree))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()


def _pss_mib(process: psutil.Process, tree: bool) -> float:
    total = 0
    try:
        members = [process, *(process.children(recursive=True) if tree else ())]
    except psutil.NoSuchProcess:
        return 0.0
    for member in members:
        try:
            total += member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # it has just ended
            continue
    return total / MIB


def fresh(function: Callable[..., T], *arguments: Any, env: Mapping[str, str] | None = None) -> T:
    """Runs a function in a process of its own; returns what it returns, raises what it raises.

    What libraries print there goes to `LOG`.
    """
    with _started(function, *arguments, env=env) as future:
        return future.result()


@contextmanager
def _started(
    function: Callable[..., T], *arguments: Any, env: Mapping[str, str] | None = None
) -> Iterator[Future[T]]:
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with _environment({"PYTHONPATH": str(PROJECT), **(env or {})}):
            future = pool.submit(_quiet, function, *arguments)  # starts the process
        yield future


def together(calls: Sequence[tuple[Callable[..., T], Sequence[Any], Mapping[str, str]]]) -> list[T]:
    """Runs functions at the same time, each in a process of its own as `fresh` does."""
    with ExitStack() as stack:
        futures = [
            stack.enter_context(_started(call, *arguments, env=env))
            for call, arguments, env in calls
        ]
        return [future.result() for future in futures]


def _quiet(function: Callable[..., T], *arguments: Any) -> T:
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    return function(*arguments)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    saved = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)


def published(root: Path, artifact: str) -> tuple[Path, Manifest]:
    """Returns the folder of the artifact that a run has published, and its manifest."""
    made = latest(str(root), artifact)
    assert made is not None
    assert made.manifest is not None
    return Path(made.uri), made.manifest


@contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the time of a block to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def report(
    name: str, settings: Mapping[str, Any], figures: Mapping[str, Any], output: Path | None
) -> None:
    """Prints figures and writes them as JSON, with what they were measured on."""
    path = write(name, settings, figures, output)
    for key, value in _flat(figures):
        print(f"{key}: {value}")
    print(path)


def write(
    name: str, settings: Mapping[str, Any], figures: Mapping[str, Any], output: Path | None = None
) -> Path:
    """Writes figures as JSON, with what they were measured on; returns the file."""
    path = output or RESULTS / f"{name}.json"
    document = {
        "benchmark": name,
        "command": shlex.join(
            ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        ),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(),
        "settings": dict(settings),
        "figures": dict(figures),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_figures(name: str) -> dict[str, Any]:
    """Returns the figures that `write` has written; none if the benchmark has not run."""
    path = RESULTS / f"{name}.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    return figures


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, f"{value:.4g}" if isinstance(value, float) else value


def _machine() -> dict[str, Any]:
    import torch

    cpu = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "load_at_start": round(START_LOAD, 2),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run_script(name: str, *arguments: str) -> None:
    """Runs a script of `pipelines/`, as a user would."""
    subprocess.run(
        [sys.executable, str(PROJECT / "pipelines" / name), *arguments], cwd=PROJECT, check=True
    )


def metrics_of(pipeline: Pipeline, model: str) -> dict[tuple[str, str], float] | None:
    """Returns a model's figures by suite and metric; None if the pipeline has not come so far."""
    found = pipeline.artifact("metrics")
    if found is None:
        return None
    return {
        (row["suite"], row["metric"]): row["value"]
        for row in found.table.to_pylist()
        if row["model"] == model
    }
