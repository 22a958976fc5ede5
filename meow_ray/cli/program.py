"""What surrounds a command: where the libraries' output goes, and what becomes of errors."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer

from meow_ray.core import local_cache
from meow_ray.errors import MeowError
from meow_ray.pipeline.failures import user_error

LOG = local_cache.cache_home() / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}.log"
"""Where the libraries' output of this process goes."""


def main(app: typer.Typer, command: Callable[..., Any] | None, options: dict[str, Any]) -> None:
    """Runs the command line; a user's mistake prints one paragraph and exits with status 2."""
    program: Callable[..., Any] = app
    if command is not None:
        single = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        single.command()(command)
        program = single
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING, force=True
    )
    try:
        program(obj=options)
    except MeowError as error:
        _fail(f"Error: {error}", 2)
    except KeyboardInterrupt:
        _fail("Interrupted; finished stages are kept, start again to go on.", 130)
    except Exception as error:  # noqa: BLE001 - the program's last frame: what it was goes to the log, not to the terminal
        cause = user_error(error)
        if cause is not None:
            _fail(f"Error: {cause}", 2)
        with libraries_to_log():
            traceback.print_exception(error)
        _fail(f"Internal error: {type(error).__name__}. The traceback is in {LOG}.", 1)


def _fail(message: str, status: int) -> None:
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
    raise SystemExit(status)


@contextmanager
def libraries_to_log() -> Iterator[None]:
    """Sends what libraries print, from C++ too, to the log; our own lines still reach the terminal, as sys.stdout."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    saved, terminal = (os.dup(1), os.dup(2)), sys.stdout
    terminal.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.close()
        sys.stdout = terminal
        for target, original in enumerate(saved, start=1):
            os.dup2(original, target)
            os.close(original)
        os.close(log)
