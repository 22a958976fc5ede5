"""Errors that the user can fix, found inside what Ray and other libraries wrap around them."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from meow_ray.core import storage
from meow_ray.errors import MeowError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Causes that the user can fix even if the system does not say which file was affected."""

OUT_OF_MEMORY = {
    "ray": "A node ran out of memory, and Ray ended processes of this run. Use smaller batches, or "
    "fewer actors or workers per node (`resources`), and start again: finished work is kept.",
    "torch": "A GPU ran out of memory. Use smaller batches, or for training a higher `zero_stage` "
    "or `gradient_checkpointing` (`resources`). `meow plan` shows what fits.",
}
"""What to do when memory runs out, by the library whose OutOfMemoryError was raised."""


def user_error(error: BaseException) -> MeowError | None:
    """Returns the error that the user can fix, if there is one among the causes of an error.

    It is the plain error, never an object of Ray's that is both a `MeowError` and Ray's own: the
    text of such an object has a traceback.
    """
    seen: set[int] = set()
    pending: list[Any] = [error]
    while pending:
        item = pending.pop()
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        translated = _translated(item)
        if translated is not None:
            return translated
        failures = getattr(item, "worker_failures", None)
        pending += [
            item.__cause__,
            getattr(item, "cause", None),
            getattr(item, "controller_failure", None),
            *(failures.values() if isinstance(failures, dict) else ()),
        ]
    return None


def _translated(error: BaseException) -> MeowError | None:
    """Returns one error in words for the user; None if it is not the user's to fix."""
    if isinstance(error, MeowError):
        is_rays_own = isinstance(getattr(error, "cause", None), BaseException)
        return None if is_rays_own else error
    if isinstance(error, OSError) and error.errno in storage.CAUSES:
        names_file = bool(error.filename)
        if names_file or error.errno in FULL:
            place = error.filename if names_file else "storage"
            return MeowError(f"{place}: {storage.CAUSES[error.errno]}.")
    library = type(error).__module__.partition(".")[0]  # compared by name: it is not imported here
    if type(error).__name__ == "OutOfMemoryError" and library in OUT_OF_MEMORY:
        return MeowError(OUT_OF_MEMORY[library])
    return None


@contextmanager
def plain_user_errors() -> Iterator[None]:
    """Raises MeowError alone where one is wrapped in errors of Ray or other libraries.

    It stands around the user's call, and around all code of this package that runs in tasks, actors
    and training workers. An error loses its `__cause__` when it leaves such a process, so that what
    it means has to be found there.
    """
    try:
        yield
    except Exception as error:
        cause = user_error(error)
        if cause is None or cause is error:
            raise
        raise cause from None
