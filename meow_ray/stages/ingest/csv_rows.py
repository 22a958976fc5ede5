"""Rows of text with a header line: CSV, TSV, and what spreadsheets save under these names."""

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

from meow_ray.errors import MeowError
from meow_ray.stages.ingest.columns import Columns

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What separates cells, in the order of preference."""

_LINE = re.compile(r"[^\r\n]+")

_SEPARATOR_LINE = re.compile(
    r'"?sep=(?P<delimiter>[^\r\n"])[^\r\n\w]*(?:\r\n|\r|\n)', re.IGNORECASE
)
"""The first line by which Excel is told the delimiter."""

_MARKDOWN_RULE = re.compile(r"\s*(:?-{3,}:?)?\s*")
"""A cell of the line between the header and the rows of a Markdown table."""


def csv_rows(name: str, text: str, columns: Columns) -> Iterator[tuple[int, Any]]:
    """Yields the line on which a row begins, and the row.

    Args:
        name: the file, for error messages.
        text: its text.
        columns: the columns by which the delimiter is recognised.

    Raises:
        MeowError: there is no header, a row has more or fewer cells than it, or a quote is not
            closed.
    """
    separator_line = _SEPARATOR_LINE.match(text)
    start = separator_line.end() if separator_line else 0
    delimiter = separator_line["delimiter"] if separator_line else _delimiter(text, columns)
    num_before = 1 if separator_line else 0

    reader = _reader(text[start:], delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        while True:
            line = reader.line_num + 1 + num_before
            cells = next(reader, None)
            if cells is None:
                break
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(name, cells, columns)
            elif all(_MARKDOWN_RULE.fullmatch(cell) for cell in cells):
                raise MeowError(
                    f"{name}, line {line}: the line below the header of a Markdown table. "
                    "Save the table as CSV."
                )
            else:
                yield line, _row(f"{name}, line {line}", header, cells, delimiter)
    except csv.Error as error:
        fault_line = reader.line_num + num_before
        began = f" in the row that begins on line {line}" if line < fault_line else ""
        raise MeowError(
            f"{name}, line {fault_line}: malformed CSV ({error}){began}. Correct this line."
        ) from None


def _delimiter(text: str, columns: Columns) -> str:
    """Returns the delimiter by which the header has the wanted columns, else the most columns."""

    def preference(delimiter: str) -> tuple[int, int]:
        header: list[str] = next((cells for cells in _reader(text, delimiter) if any(cells)), [])
        names = [cell.strip() for cell in header]
        return columns.num_matches(names), len(names)

    try:
        return max(DELIMITERS, key=preference)
    except csv.Error:
        return ","


def _reader(text: str, delimiter: str, strict: bool = False) -> Any:
    """Returns a reader of cells; blanks after delimiters are skipped if the header has them."""
    first_line = _LINE.search(text)
    return csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=first_line is not None and f"{delimiter} " in first_line[0],
        strict=strict,
    )


def _header(name: str, cells: list[str], columns: Columns) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(header) == 1:
        raise MeowError(
            f"{name}: neither JSON nor a table: its first line has no columns. A table has a "
            "header with the names of its columns, separated by commas, semicolons, tabs or |."
        )
    for wanted in (*columns.questions, *columns.answers):
        if header.count(wanted) > 1:
            raise MeowError(
                f"{name}: the header has {header.count(wanted)} columns named {wanted}. "
                "Rename all but one of them."
            )
    return header


def _row(where: str, header: list[str], cells: list[str], delimiter: str) -> dict[str, str]:
    """Returns the cells by the names of their columns; empty cells after the last are dropped."""
    excess = cells[len(header) :]
    if any(cell.strip() for cell in excess):
        raise MeowError(
            f"{where}: more cells than the header has columns ({len(cells)}, not {len(header)}). "
            f"Put cells that contain {DELIMITERS.get(delimiter, repr(delimiter))} in quotes."
        )
    if len(cells) < len(header):
        raise MeowError(
            f"{where}: fewer cells than the header has columns ({len(cells)}, not {len(header)}). "
            "Complete the row; a cell may be empty."
        )
    return dict(zip(header, cells, strict=False))
