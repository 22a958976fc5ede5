"""The project's programs in processes of their own, as users run them, and how to kill those."""

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
    """The programs of `pipelines/` with one configuration and one storage root."""

    config: Path
    root: Path
    overrides: list[str] = field(default_factory=list)

    def command(self, script: str, *arguments: str) -> list[str]:
        """Returns the command line of a script."""
        return [
            sys.executable,
            str(PROJECT / "pipelines" / script),
            *arguments,
            f"--config={self.config}",
            f"storage.root={self.root}",
            *self.overrides,
        ]

    def start(self, script: str, *arguments: str) -> subprocess.Popen[str]:
        """Starts a script and does not wait for it."""
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
        """Runs a script to its end and checks its exit status."""
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
        """Returns the newest artifact of this name."""
        artifact = latest(str(self.root), name)
        assert artifact is not None, f"there is no artifact {name}"
        return artifact

    def table(self, name: str) -> pa.Table:
        """Returns the rows of the newest artifact of this name."""
        return pq.read_table(f"{self.artifact(name).uri}/{MAIN}")

    def states(self) -> dict[str, str]:
        """Returns the state of each stage, as `meow status` prints it."""
        arguments = [f"--config={self.config}", f"storage.root={self.root}", *self.overrides]
        done = subprocess.run(
            [BIN / "meow", "status", "--json", *arguments],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        return {row["stage"]: row["state"] for row in json.loads(done.stdout)}


def kill_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    """Kills a driver (SIGKILL) as soon as `ready()` holds."""
    wait_for(process, ready)
    process.kill()
    process.wait()


def kill_descendant(process: subprocess.Popen[str], title: str, ready: Callable[[], bool]) -> None:
    """Kills a Ray worker of a driver, once one with this title runs and `ready()` holds."""
    workers: list[psutil.Process] = []

    def can_kill() -> bool:
        children = psutil.Process(process.pid).children(recursive=True)
        workers[:] = [child for child in children if has_title(child, title)]
        return bool(workers) and ready()

    wait_for(process, can_kill)
    workers[0].kill()


def processes_of(node: Any) -> list[psutil.Process]:
    """Returns the raylet of a local cluster's node, after the processes that it started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [*raylet.children(recursive=True), raylet]


def kill_node(node: Any) -> None:
    """Kills all processes of a local cluster's node, as if its machine had failed."""
    for process in processes_of(node):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def has_title(process: psutil.Process, title: str) -> bool:
    """Returns whether a process runs and its title contains a text."""
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
        assert process.poll() is None, f"the process ended too early: {process.communicate()}"
        assert time.monotonic() < deadline, f"the condition did not hold within {timeout} s"
        time.sleep(0.05)


def _last_log() -> str:
    """Returns the end of the newest log of the libraries."""
    logs = sorted(
        Path(os.environ["MEOW_HOME"], "logs").glob("*.log"), key=lambda path: path.stat().st_mtime
    )
    return logs[-1].read_text()[-4000:] if logs else ""
