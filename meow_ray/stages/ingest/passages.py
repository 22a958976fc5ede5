"""Reading passages of text: a file with one per line, or JSON with one per row."""

import json
import re
from typing import Any

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.columns import Columns
from meow_ray.stages.ingest.content import read_text
from meow_ray.stages.ingest.json_rows import json_rows

_LINE_ENDS = re.compile(r"\r\n|\r|\n")


def read_passages(uri: str, encoding: str | None = None) -> list[str]:
    """Reads passages, without surrounding white space and without empty ones.

    A text file has one passage per line. JSON has one per row: a text, or an object with `text`.

    Args:
        uri: the file, which may be compressed.
        encoding: its encoding if it is not UTF-8.

    Raises:
        MeowError: the file is no text, is malformed, or a row has no text.
    """
    name = storage.display(uri)
    text = read_text(uri, encoding)
    lines = _LINE_ENDS.split(text)
    if _is_json(lines, text):
        rows = json_rows(name, text, Columns(("text",), ()), "train")
        lines = [_text_of(value, f"{name}, line {line}") for line, value in rows]
    return [line.strip() for line in lines if line.strip()]


def _is_json(lines: list[str], text: str) -> bool:
    """Tells whether a text is JSON; a line of prose may begin with a bracket, too."""
    first = next(line for line in lines if line.strip())
    for candidate in (first, text):
        try:
            return isinstance(json.loads(candidate), list | dict)
        except (ValueError, RecursionError):
            continue
    return False


def _text_of(value: Any, where: str) -> str:
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise MeowError(f"{where}: a passage must be a text, or an object with `text`. Write one.")
    return text
