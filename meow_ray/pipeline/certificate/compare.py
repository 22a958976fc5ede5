"""The first difference between two JSON values, with its place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TEXTS = ("question", "answer")
"""Keys whose values are text of facts and are never shown."""
TOLERANCE = 1e-9
"""Relative difference of two numbers that count as equal, because machines round differently."""
_ABSENT = object()


@dataclass(frozen=True)
class Found:
    """A place at which a written and a derived value differ."""

    place: str
    written: Any
    derived: Any

    def described(self, where: str) -> str:
        """Returns the difference as a sentence.

        Args:
            where: where the written value is, such as `in the certificate`.
        """
        place = self.place or "the whole"
        if self.place.rpartition(".")[2] in TEXTS:
            return f"{place} is another text {where} than by the artifacts."
        return (
            f"{place} is {_shown(self.written)} {where}, and {_shown(self.derived)} by the "
            "artifacts."
        )


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    if isinstance(value, Mapping | list):
        return f"{len(value)} entries"
    return repr(value)


def first(written: Any, derived: Any, place: str = "") -> Found | None:
    """Returns the first difference, in the order of sorted keys; None if there is none.

    Missing numbers (NaN) are equal to null.
    """
    if isinstance(written, Mapping) and isinstance(derived, Mapping):
        for name in sorted({*written, *derived}):
            below = f"{place}.{name}" if place else name
            found = first(written.get(name, _ABSENT), derived.get(name, _ABSENT), below)
            if found is not None:
                return found
        return None
    if isinstance(written, list) and isinstance(derived, list):
        for number, (one, other) in enumerate(zip(written, derived, strict=False)):
            found = first(one, other, f"{place}[{number}]")
            if found is not None:
                return found
        if len(written) == len(derived):
            return None
    elif _are_equal(written, derived):
        return None
    return Found(place, written, derived)


def _are_equal(one: Any, other: Any) -> bool:
    one, other = _without_nan(one), _without_nan(other)
    numbers = (int, float)
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, numbers) and isinstance(other, numbers):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)


def _without_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
