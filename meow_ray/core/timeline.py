"""The timeline of a run: when each of its processes reached which point.

Set the environment variable `MEOW_TIMELINE` to a file. Each process of the run on this machine then
appends one line per point: a JSON object with the point, the process and the time.
"""

import json
import os
import time
from functools import cache

FILE = "MEOW_TIMELINE"
"""The environment variable that names the file; without it, no timeline is written."""


def mark(point: str) -> None:
    """Writes that this process has reached a point, such as `model loaded`.

    Args:
        point: what has just been done, without any text of a fact.
    """
    path = os.environ.get(FILE)
    if not path:
        return
    row = {"point": point, "process": os.getpid(), "time": time.time()}
    with open(path, "a", encoding="utf-8") as file:  # a short line is appended at once
        file.write(json.dumps(row) + "\n")


@cache
def mark_first(point: str) -> None:
    """Writes that this process has reached a point for the first time, such as `first result`."""
    mark(point)
