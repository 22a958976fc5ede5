"""Progress of a stage: bars for people, events for programs, Ray's metrics."""

import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

EVENTS: TextIO | None = None
"""Where progress is printed for machines; None prints it for people."""


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
            {"event": "progress", "stage": self.desc.strip(), "rows": self.n, "of": self.total}
            | self.figures
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
        return self.count, {
            name: value / (count or 1) for name, (value, count) in found if count or value
        }

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
                self.gauges[name] = Gauge(
                    f"meow_{name}", f"meow_ray: {name} of the stage", tag_keys=("stage",)
                )
            self.gauges[name].set(value, {"stage": self.stage})
