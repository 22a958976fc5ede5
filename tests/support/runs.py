"""Runs the project's programs as a user would, in processes of their own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from meow_ray.core.manifest import MAIN, Artifact, latest

PROJECT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Program:
    """One configuration over one storage root."""

    config: Path
    root: Path
    overrides: list[str] = field(default_factory=list)

    def command(self, script: str, *arguments: str) -> list[str]:
        return [
            sys.executable,
            str(PROJECT / "pipelines" / script),
            *arguments,
            f"--config={self.config}",
            f"storage.root={self.root}",
            *self.overrides,
        ]

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(script, *arguments),
            cwd=PROJECT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(
        self, script: str, *arguments: str, status: int = 0
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(script, *arguments),
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == status, (
            f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}\n{_last_log()}"
        )
        return done

    def artifact(self, name: str) -> Artifact:
        found = latest(str(self.root), name)
        assert found is not None, f"{name} was not made"
        return found

    def table(self, name: str) -> pa.Table:
        return pq.read_table(f"{self.artifact(name).uri}/{MAIN}")

    def states(self) -> dict[str, str]:
        out = subprocess.run(
            [
                Path(sys.executable).parent / "meow",
                "status",
                "--json",
                f"--config={self.config}",
                f"storage.root={self.root}",
                *self.overrides,
            ],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        return {row["stage"]: row["state"] for row in json.loads(out.stdout)}


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Sends SIGKILL to a driver as soon as `ready()` holds."""
    wait_for(process, ready)
    process.kill()
    process.wait()


def kill_descendant(process: subprocess.Popen[str], title: str, ready: Callable[[], bool]) -> None:
    """Sends SIGKILL to one of the Ray workers of a driver, once it is there and `ready()` holds."""
    found: list[psutil.Process] = []

    def there() -> bool:
        found[:] = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if has_title(child, title)
        ]
        return bool(found) and ready()

    wait_for(process, there)
    found[0].kill()


def processes_of(node: Any) -> list[psutil.Process]:
    """Returns the raylet of a local cluster's node and all that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [*raylet.children(recursive=True), raylet]


def kill_node(node: Any) -> None:
    """Sends SIGKILL to a node of a local cluster, as when its machine is gone."""
    for process in processes_of(node):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def has_title(process: psutil.Process, title: str) -> bool:
    """Tells whether a process is there and has the title."""
    try:
        return title in " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return False


def wait_for(
    process: subprocess.Popen[str], ready: Callable[[], bool], timeout: float = 300
) -> None:
    """Waits until `ready()` holds while a process runs."""
    deadline = time.monotonic() + timeout
    while not ready():
        assert process.poll() is None, f"ended before its moment came: {process.communicate()}"
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.05)


def _last_log() -> str:
    logs = sorted(
        Path(os.environ["MEOW_HOME"], "logs").glob("*.log"), key=lambda path: path.stat().st_mtime
    )
    return logs[-1].read_text()[-4000:] if logs else ""
