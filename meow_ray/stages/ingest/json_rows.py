"""Rows of JSON text: lines, arrays, wrapped arrays, and the forms that pandas writes."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from meow_ray.errors import MeowError
from meow_ray.stages.ingest.columns import Columns, is_chat

_BLANKS = re.compile(r"[ \t\r\n]*")
_BLANKS_AND_COMMA = re.compile(r"[ \t\r\n,]*")
_BLANKS_AND_COLON = re.compile(r"[ \t\r\n:]*")

_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class _Value:
    """A JSON value and its place in the text."""

    value: Any
    start: int
    end: int
    line: int


def json_rows(name: str, text: str, columns: Columns, key: str) -> Iterator[tuple[int, Any]]:
    """Yields the line and the value of each row.

    The text is one value per row, in JSON Lines or written over several lines, or one array of
    rows, or one object that holds all rows. Rows of the last kind are counted from 1 if they have
    no line of their own.

    Args:
        name: the file, for error messages.
        text: its text.
        columns: the columns that tell rows by name from columns by name.
        key: which array is read if an object holds several, such as `train`.

    Raises:
        MeowError: the text is malformed.
    """
    documents = list(_documents(name, text))
    if len(documents) > 1:
        for document in documents:
            yield document.line, document.value
        return
    only = documents[0]
    if isinstance(only.value, list):
        yield from _items(text, only)
    elif isinstance(only.value, dict):
        yield from _rows_of_object(name, text, only, columns, key)
    else:
        yield only.line, only.value


# --- values in the text -------------------------------------------------------------------------


def _documents(name: str, text: str) -> Iterator[_Value]:
    """Yields the values of a text, one after the other."""
    line = 1
    counted_to = 0
    position = _after(_BLANKS, text, 0)
    while position < len(text):
        line += text.count("\n", counted_to, position)
        counted_to = position
        try:
            value, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise _malformed(name, text, line, position, error) from None
        yield _Value(value, position, end, line)
        position = _after(_BLANKS, text, end)


def _malformed(
    name: str, text: str, line: int, start: int, error: ValueError | RecursionError
) -> MeowError:
    if isinstance(error, RecursionError):
        return MeowError(f"{name}, line {line}: JSON with too many brackets inside each other.")
    reason = getattr(error, "msg", "invalid number")
    found = text[getattr(error, "pos", start) :][:1]
    if reason == "Expecting value" and found in tuple(",:]}'"):
        reason = f"{reason}, found {found!r}"
    # an error at the end of a line is found at the beginning of the next value
    found_at = len(text[: getattr(error, "pos", start)].rstrip())
    fault_line = line + text.count("\n", start, max(start, found_at))
    begin = f" in the object that begins on line {line}" if fault_line != line else ""
    return MeowError(
        f"{name}, line {fault_line}: malformed JSON ({reason}){begin}. Correct this line."
    )


def _items(text: str, array: _Value) -> Iterator[tuple[int, Any]]:
    """Yields the line and the value of each item; a second pass over valid text finds the lines."""
    line = array.line
    counted_to = array.start
    position = array.start + 1
    for item in array.value:
        position = _after(_BLANKS_AND_COMMA, text, position)
        line += text.count("\n", counted_to, position)
        counted_to = position
        yield line, item
        _, position = _DECODER.raw_decode(text, position)


def _member(text: str, whole: _Value, wanted: str) -> _Value:
    """Returns a member of an object with its place in the text, which is valid."""
    position = whole.start + 1
    while True:
        key, position = _DECODER.raw_decode(text, _after(_BLANKS_AND_COMMA, text, position))
        start = _after(_BLANKS_AND_COLON, text, position)
        value, position = _DECODER.raw_decode(text, start)
        if key == wanted:
            return _Value(value, start, position, whole.line + text.count("\n", whole.start, start))


def _after(blanks: re.Pattern[str], text: str, position: int) -> int:
    match = blanks.match(text, position)
    assert match is not None
    return match.end()


# --- rows in one object -------------------------------------------------------------------------


def _rows_of_object(
    name: str, text: str, whole: _Value, columns: Columns, key: str
) -> Iterator[tuple[int, Any]]:
    """Yields the rows of an object that is itself a row, or holds all rows."""
    members: dict[str, Any] = whole.value
    if inner := _wrapped_object(members, columns, key):
        yield from _rows_of_object(name, text, _member(text, whole, inner), columns, key)
    elif _is_split_form(members):
        yield from _rows_of_split_form(name, members)
    elif "features" in members and _is_array_of_pages(members.get("rows")):
        yield from ((page["row_idx"] + 1, page["row"]) for page in members["rows"])
    elif _is_indexed(members, columns):
        yield from enumerate(members.values(), start=1)
    elif _all_of_type(members, dict):
        yield from _rows_of_labelled_columns(name, members)
    elif columns.recognise(members) and _all_of_type(members, list) and not _has_chat(members):
        yield from _rows_of_columns(name, members)
    elif not columns.num_matches(members) and (array := _wrapped_array(name, members, key)):
        yield from _items(text, _member(text, whole, array))
    else:
        yield whole.line, members


def _wrapped_object(members: Mapping[str, Any], columns: Columns, key: str) -> str | None:
    """Returns the name of the object that holds all rows, or None if there is none."""
    if columns.recognise(members):
        return None
    if isinstance(members.get(key), dict):
        return key
    if len(members) != 1:
        return None
    ((only, value),) = members.items()
    return only if isinstance(value, dict) else None


def _is_array_of_pages(value: Any) -> bool:
    """Tells whether a value has the rows of the hub's dataset viewer."""
    return _is_array_of_rows(value) and all({"row_idx", "row"} <= set(row) for row in value)


def _is_split_form(members: Mapping[str, Any]) -> bool:
    """Tells whether this is pandas' form `split`: names of columns, and lists of cells."""
    names, rows = members.get("columns"), members.get("data")
    if not isinstance(names, list) or not isinstance(rows, list):
        return False
    return all(isinstance(row, list) for row in rows)


def _rows_of_split_form(name: str, members: Mapping[str, Any]) -> Iterator[tuple[int, Any]]:
    names = members["columns"]
    for number, row in enumerate(members["data"], start=1):
        if len(row) != len(names):
            raise MeowError(
                f"{name}, row {number}: it has {len(row)} cells, but `columns` names {len(names)}. "
                "Correct the row."
            )
        yield number, dict(zip(map(str, names), row, strict=True))


def _is_indexed(members: Mapping[str, Any], columns: Columns) -> bool:
    """Tells whether this is an object of rows by their ids, as pandas' form `index`."""
    if columns.num_matches(members) or not _all_of_type(members, dict):
        return False
    return any(columns.recognise(row) for row in members.values())


def _rows_of_labelled_columns(
    name: str, members: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[int, Any]]:
    """Yields the rows of pandas' default form: columns, each with its cells by row label."""
    labels = list(next(iter(members.values())))
    if any(set(cells) != set(labels) for cells in members.values()):
        raise MeowError(
            f"{name}: the file holds columns, and they differ in their rows. "
            "Write one object per row (pandas: orient='records', lines=True)."
        )
    for number, label in enumerate(labels, start=1):
        yield number, {column: cells[label] for column, cells in members.items()}


def _rows_of_columns(name: str, members: Mapping[str, list[Any]]) -> Iterator[tuple[int, Any]]:
    if len({len(cells) for cells in members.values()}) > 1:
        raise MeowError(
            f"{name}: the file holds columns, and they differ in their number of rows. "
            "Write one object per row."
        )
    for number, cells in enumerate(zip(*members.values(), strict=True), start=1):
        yield number, dict(zip(members, cells, strict=True))


def _wrapped_array(name: str, members: Mapping[str, Any], key: str) -> str | None:
    """Returns the name of the array of objects that holds the rows, or None if there is none."""
    arrays = [
        member for member, value in members.items() if _is_array_of_rows(value) and value != []
    ]
    if len(arrays) <= 1:
        return arrays[0] if arrays else None
    if key in arrays:
        return key
    raise MeowError(
        f"{name}: the file holds {len(arrays)} arrays of objects. Name one of them as `split` "
        "of the source, or write its rows into a file of their own."
    )


def _is_array_of_rows(value: Any) -> bool:
    return (
        isinstance(value, list) and not is_chat(value) and all(isinstance(r, dict) for r in value)
    )


def _all_of_type(members: Mapping[str, Any], kind: type) -> bool:
    return bool(members) and all(isinstance(value, kind) for value in members.values())


def _has_chat(members: Mapping[str, Any]) -> bool:
    return any(is_chat(value) for value in members.values())
