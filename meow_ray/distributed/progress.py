"""Progress of a stage: a bar for people, JSON events for programs, and Ray's metrics."""

import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

from meow_ray.distributed.figures import Figures

LINE_FORMAT = (
    "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, "
    "{elapsed} gone, {remaining} left{postfix}"
)
"""A line of a log, as tqdm formats it."""
LOG_INTERVAL, TERMINAL_INTERVAL = 15, 1
"""The least seconds between two lines of a log, and between two updates of a terminal's bar."""

_event_stream: TextIO | None = None


@contextlib.contextmanager
def events_to(stream: TextIO) -> Iterator[None]:
    """Within this context, progress is printed to a stream as events: one JSON object per line."""
    global _event_stream
    previous = _event_stream
    _event_stream = stream
    try:
        yield
    finally:
        _event_stream = previous


def output() -> TextIO:
    """Returns the stream for progress and events: the one of `events_to`, or standard output."""
    return sys.stdout if _event_stream is None else _event_stream


def warn(stage: str, text: str) -> None:
    """Prints a warning about a stage: a line for people, or an event for programs."""
    print(_warning(stage, text), file=output(), flush=True)


@contextlib.contextmanager
def show_progress(stage: str, total: int) -> Iterator[Any]:
    """Shows the progress that remote workers report, and exports it as Ray's metrics.

    Args:
        stage: the name of the stage.
        total: rows or steps to process.

    Yields:
        The handle of a `_Board` actor, to which workers report.
    """
    import ray

    board = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote(stage)
    finished = threading.Event()
    bar = _bar(stage, total)
    warned: list[str] = []

    def poll() -> None:
        while not finished.wait(1.0):
            show()

    def show() -> None:
        try:
            count, figures = ray.get(board.read.remote())
            warnings = ray.get(board.read_warnings.remote())
        except ray.exceptions.RayError:
            # the actor's node may have died; a missing update must not fail the stage
            return
        for text in warnings:
            if text not in warned:
                warned.append(text)
                bar.write(_warning(stage, text), file=output())
        bar.set_postfix(figures, refresh=False)
        bar.update(min(count, total) - bar.n)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield board
        finished.set()
        thread.join()
        show()
    finally:
        finished.set()
        thread.join()
        bar.close()
        ray.kill(board)


def _bar(stage: str, total: int) -> Any:
    options: dict[str, Any] = {"total": total, "desc": f"  {stage}"}
    if _event_stream is None and sys.stdout.isatty():
        return tqdm(**options, mininterval=TERMINAL_INTERVAL, file=sys.stdout)
    options |= {"mininterval": LOG_INTERVAL, "file": io.StringIO()}
    if _event_stream is not None:
        return _EventLines(**options)
    return _LogLines(**options, bar_format=LINE_FORMAT)


def _warning(stage: str, text: str) -> str:
    """Returns a warning as a line for people, or as an event for programs."""
    if _event_stream is None:
        return f"  {stage}: warning: {text}"
    return json.dumps({"event": "warning", "stage": stage, "text": text})


class _LogLines(tqdm):  # type: ignore[misc]
    """Progress for a log: prints a new line where a terminal's bar would be redrawn."""

    shown = 0

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.n != self.shown:
            print(self.line(), file=output(), flush=True)
            self.shown = self.n

    def line(self) -> str:
        return str(self).rstrip()


class _EventLines(_LogLines):
    """Progress for programs: prints JSON events."""

    figures: dict[str, float]

    def set_postfix(self, figures: dict[str, float], refresh: bool = True) -> None:
        self.figures = figures

    def line(self) -> str:
        event = {
            "event": "progress",
            "stage": self.desc.strip(),
            "rows": self.n,
            "of": self.total,
        }
        return json.dumps(event | self.figures)


class _Board:
    """The actor that collects reports of workers and exports them as metrics named `meow_…`."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.count = 0
        self.figures: Figures = {}
        self.warnings: list[str] = []
        self.gauges: dict[str, Any] = {}
        self.first_report: tuple[float, int] | None = None
        """Time and count; the same for the last report."""
        self.last_report: tuple[float, int] | None = None

    def add(self, rows: int, figures: Figures) -> None:
        """Adds processed rows and their figures."""
        self.count += rows
        for name, figure in figures.items():
            known = self.figures.get(name)
            self.figures[name] = figure if known is None else known + figure
        self._report()

    def set(self, rows: int, figures: Figures) -> None:
        """Replaces the number of processed rows, or of steps, and all figures."""
        self.count = rows
        self.figures = figures
        self._report()

    def warn(self, text: str) -> None:
        """Adds a warning for the user; the actors of a pool give the same one."""
        if text not in self.warnings:
            self.warnings.append(text)

    def read_warnings(self) -> list[str]:
        """Returns all warnings."""
        return self.warnings

    def read(self) -> tuple[int, dict[str, float]]:
        """Returns the number of processed rows, or of steps, and the figures that have a value."""
        values = {name: figure.value for name, figure in self.figures.items()}
        return self.count, {name: value for name, value in values.items() if value is not None}

    def pace(self) -> float | None:
        """Returns seconds per row between the first and the last report; None if they are one."""
        if self.first_report is None or self.last_report is None:
            return None
        first_time, first_count = self.first_report
        last_time, last_count = self.last_report
        if first_count == last_count:
            return None
        return (last_time - first_time) / (last_count - first_count)

    def _report(self) -> None:
        report = (time.monotonic(), self.count)
        self.first_report = self.first_report or report
        self.last_report = report
        self._export()

    def _export(self) -> None:
        from ray.util.metrics import Gauge

        count, figures = self.read()
        for name, value in {"rows": count, **figures}.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(
                    f"meow_{name}", f"meow_ray: {name} of the stage", tag_keys=("stage",)
                )
            self.gauges[name].set(value, {"stage": self.stage})
