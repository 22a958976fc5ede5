"""Values of a log in JSON, with errors that name the place."""

import math
from typing import Any, TypeGuard

from meow_ray.errors import MeowError


def column(log: Any, name: str, where: str) -> dict[str, Any]:
    """Returns a column of a log, its values by row.

    Raises:
        MeowError: the log has no such column, or it is empty.
    """
    values = log.get(name) if isinstance(log, dict) else None
    if not isinstance(values, dict):
        raise MeowError(f"{where}: {name} is missing.")
    if not values:
        raise MeowError(f"{where}: {name} is empty.")
    return values


def number(value: Any, where: str, name: str, row: str) -> float:
    """Returns a finite number.

    Raises:
        MeowError: the value is none.
    """
    if not is_number(value):
        raise MeowError(f"{where}: {name} of row {row} is not a number ({value!r}).")
    return float(value)


def numbers(values: Any, where: str, name: str, row: str) -> list[float]:
    """Returns a list of finite numbers.

    Raises:
        MeowError: the value is not a list, or one of its values is not a finite number.
    """
    if not isinstance(values, list) or not values:
        raise MeowError(f"{where}: {name} of row {row} is not a list of numbers.")
    return [number(value, where, name, row) for value in values]


def is_number(value: Any) -> TypeGuard[int | float]:
    """Tells whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
