"""The process that runs checks. It ends with a check that fails, hangs or wants it to itself."""

import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import monotonic
from typing import Any

from benchmarks.gpu_checks.values import Measurement, Setting

PASSED, FAILED, MISSING, NO_TIME = "passed", "failed", "missing", "no time"


@dataclass
class Outcome:
    """What became of a check."""

    status: str
    detail: str = ""
    """The error, the missing package, or why there was no time."""
    measurements: list[Measurement] = field(default_factory=list)
    """Also of a check that did not end: what it had measured."""
    seconds: float = 0.0


class Worker:
    """A process that runs one check after another. It starts with the first of them."""

    def __init__(self, log: Path) -> None:
        """Prepares a worker; what libraries print in it goes to `log`."""
        self._log = log
        self._process: Any = None
        self._connection: Any = None

    def run(self, check: Callable[..., Any], setting: Setting, limit: float) -> Outcome:
        """Runs a check for `limit` seconds at most; the process is killed if it takes longer."""
        began = monotonic()
        if self._process is not None and not self._process.is_alive():
            self.close()
        if self._process is None:
            self._start()
        self._connection.send((check, setting))
        outcome = Outcome(FAILED)
        while True:
            if not self._connection.poll(max(0.0, limit - (monotonic() - began))):
                outcome.status, outcome.detail = NO_TIME, f"stopped after {limit:.0f} s"
                break
            try:
                message = self._connection.recv()
            except (EOFError, ConnectionError):
                self._process.join(10)
                outcome.detail = f"its process ended with status {self._process.exitcode}"
                break
            if isinstance(message, Measurement):
                outcome.measurements.append(message)
                continue
            outcome.status, outcome.detail = message
            break
        if outcome.status not in (PASSED, MISSING):
            self.close()
        outcome.seconds = monotonic() - began
        return outcome

    def close(self) -> None:
        """Ends the process and all that it has started."""
        if self._process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._process = None

    def _start(self) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, str(self._log)))
        self._process.start()
        theirs.close()


def _serve(connection: Connection, log: str) -> None:
    """Runs the checks that arrive until the connection ends."""
    os.setsid()  # so that all that a check starts can be ended with it
    _print_to(log)
    with suppress(EOFError):
        while True:
            check, setting = connection.recv()
            connection.send(_run(check, setting, connection))


def _print_to(log: str) -> None:
    """Sends what this process and its children print to a file."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def _run(check: Callable[..., Any], setting: Setting, connection: Connection) -> tuple[str, str]:
    """Runs a check and sends its measurements; returns its status with a detail."""
    try:
        for measurement in check(setting):
            connection.send(measurement)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "benchmarks", "meow_ray"):
            traceback.print_exc()
            return FAILED, str(error)
        return MISSING, package
    except Exception as error:  # noqa: BLE001 - whatever a library raises is a result
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {error}"
    finally:
        _free_memory()
    return PASSED, ""


def _free_memory() -> None:
    """Gives the device memory of a check back."""
    import gc
    import sys

    gc.collect()
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
