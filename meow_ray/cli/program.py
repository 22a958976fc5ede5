"""The frame around every command: where the output of libraries goes, how errors end it."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer

from meow_ray.core import timeline
from meow_ray.core.local_cache import cache_home
from meow_ray.distributed import cluster
from meow_ray.distributed.failures import user_error

LOG = cache_home() / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
"""The file that receives the output of libraries in this process."""
INTERRUPTED = 130
"""The exit status of a program that was interrupted from the keyboard."""


def main(app: typer.Typer, command: Callable[..., Any] | None, options: dict[str, Any]) -> None:
    """Runs a command line; a user's mistake prints one paragraph and exits with status 2.

    Args:
        app: the application with all commands.
        command: the only command of a script; None offers all of the application.
        options: what commands find in `typer.Context.obj`.
    """
    timeline.mark("driver imported")
    program: Callable[..., Any] = app
    if command is not None:
        single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        single.command()(command)
        program = single
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(format=line, level=logging.WARNING, force=True)
    try:
        program(obj=options)
    except (KeyboardInterrupt, SystemExit) as stop:
        # Typer turns an interrupt of a command into this status
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        _fail("Interrupted. Finished stages are kept; start again to continue.", INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last frame of the program
        mistake = user_error(error)
        if mistake is not None:
            _fail(f"Error: {mistake}", 2)
        with libraries_to_log():
            traceback.print_exception(error)
        _fail(f"Internal error: {type(error).__name__}. The traceback is in {LOG}.", 1)


def _fail(message: str, status: int) -> None:
    """Prints a message, the last output of this program, and exits."""
    if "ray" in sys.modules:
        with libraries_to_log():  # Ray prints what it held back
            cluster.leave()
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(status)


@contextmanager
def libraries_to_log() -> Iterator[None]:
    """Sends the output of libraries to the log, that of C++ code as well.

    `sys.stdout` still reaches the terminal, for our own lines.
    """
    LOG.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stdout
    terminal.flush()
    saved = (os.dup(1), os.dup(2))
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = terminal
        for descriptor, original in enumerate(saved, start=1):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(log)
