"""Functions of a user's own files, which the configuration names as `FILE.py:FUNCTION`."""

import sys
from types import ModuleType
from typing import Any

from meow_ray.core import storage
from meow_ray.errors import MeowError


def read(name: str, key: str) -> str:
    """Returns the text of the file of a function.

    Args:
        name: `FILE.py:FUNCTION`.
        key: the field of the configuration, for errors.

    Raises:
        MeowError: there is no such file, or it is not UTF-8 text.
    """
    uri = storage.absolute(name.rpartition(":")[0])
    if not storage.exists(uri):
        raise MeowError(f"`{key}`: there is no file {storage.display(uri)}. Correct the path.")
    try:
        return storage.read_bytes(uri).decode()
    except UnicodeDecodeError:
        raise MeowError(
            f"`{key}`: {storage.display(uri)} is not UTF-8 text. Save it in this encoding."
        ) from None


def run(source: str, module: str, key: str) -> ModuleType:
    """Returns the module that a text defines; this runs the text.

    Args:
        source: the text.
        module: the name under which the module is known in this process.
        key: the field of the configuration, for tracebacks.
    """
    made = ModuleType(module)
    sys.modules[module] = made
    namespace: dict[str, Any] = made.__dict__
    exec(compile(source, f"<{key}>", "exec"), namespace)  # noqa: S102 - the user's own file
    return made
