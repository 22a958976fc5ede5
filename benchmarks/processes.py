"""Programs that benchmarks watch from outside: wall time, and CPU time of the process tree."""

import os
import subprocess
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.common import LOG

INTERVAL = 1.0
"""Seconds between two samples of a process tree."""


@dataclass
class Tree:
    """The CPU time of a process and all of its descendants, sampled while they live.

    The last part of a second of a process between two samples is missing.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    """The CPU seconds of each process, as last seen."""
    titles: dict[int, str] = field(default_factory=dict)
    """What each process calls itself, as last seen."""
    times: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    """The CPU seconds of all processes at each of `times`."""

    def sample(self, root: psutil.Process) -> None:
        """Adds a sample."""
        try:
            processes = [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                used = process.cpu_times()
                command = process.cmdline()
            except psutil.Error:  # it has just ended
                continue
            self.seconds[process.pid] = used.user + used.system
            if command:  # a process that has ended, but is not yet reaped, has none
                self.titles[process.pid] = _title(command)
        self.times.append(time.time())
        self.totals.append(sum(self.seconds.values()))

    def until(self, moment: float) -> float:
        """Returns the CPU seconds that were used until a moment."""
        position = bisect_right(self.times, moment)
        return self.totals[position - 1] if position else 0.0

    def by_title(self) -> dict[str, dict[str, float]]:
        """Returns the number of processes with a title and their CPU seconds, the most first."""
        found: dict[str, dict[str, float]] = {}
        for process, seconds in self.seconds.items():
            title = self.titles.get(process, "unknown")
            group = found.setdefault(title, {"processes": 0, "cpu_seconds": 0.0})
            group["processes"] += 1
            group["cpu_seconds"] += seconds
        return dict(sorted(found.items(), key=lambda item: -item[1]["cpu_seconds"]))


def _title(command: Sequence[str]) -> str:
    """Returns what a process calls itself: `ray::EngineActor`, or the name of its program."""
    first, *others = command
    if first.startswith("ray::"):
        return first.partition("(")[0].partition(".")[0].strip()
    program = Path(first).name
    if not program.startswith("python"):
        return program
    scripts = [Path(part).name for part in others if part.endswith(".py")]
    return scripts[0] if scripts else program


@dataclass(frozen=True)
class Watched:
    """A program that has ended: when it ran, in seconds since 1970, and its process tree."""

    started: float
    ended: float
    tree: Tree

    def seconds(self, start: float | None = None) -> dict[str, float]:
        """Returns wall and CPU seconds to the end, from a moment or from the start."""
        start = self.started if start is None else start
        return {
            "wall_seconds": self.ended - start,
            "cpu_seconds": self.tree.until(self.ended) - self.tree.until(start),
        }


def watch(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> Watched:
    """Runs a program in a folder to its end; its output goes to the log of the benchmarks.

    Args:
        command: the program and its arguments.
        folder: the folder in which it runs.
        env: environment variables, in addition to those of this process.
    """
    tree = Tree()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("ab") as log:
        started = time.time()
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **env}, stdout=log, stderr=log
        )
        with _sampled(tree, process.pid):
            status = process.wait()
        ended = time.time()
    if status:
        raise SystemExit(f"{' '.join(command[:3])} ended with status {status}. See {LOG}.")
    return Watched(started, ended, tree)


@contextmanager
def _sampled(tree: Tree, process: int) -> Iterator[None]:
    """Samples a process tree in a thread."""
    done = threading.Event()
    root = psutil.Process(process)

    def poll() -> None:
        while not done.wait(INTERVAL):
            tree.sample(root)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
