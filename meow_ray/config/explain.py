"""A list of all keys of the configuration, with type, bounds, default, unit and meaning."""

import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from meow_ray.config.config import Config
from meow_ray.config.fields import Section, extra
from meow_ray.config.sections import Source


def explain() -> Iterator[tuple[str, str, str, str, str]]:
    """Yields (key, type with bounds, default, unit, meaning) for every key of the configuration.

    Types and defaults are written as in YAML, such as `int > 0 | null` and `null`.
    """
    yield from _explain(Config, Config(), "")


def valid_keys() -> list[str]:
    """Returns all dotted keys."""
    return [row[0] for row in explain()]


def _explain(
    section: type[Section], values: Section | None, prefix: str
) -> Iterator[tuple[str, str, str, str, str]]:
    """Yields the keys of a section; `values` has its defaults, None takes those of the class."""
    for name, info in section.model_fields.items():
        default = getattr(values, name) if values else info.get_default(call_default_factory=True)
        inner = _section_type(info.annotation)
        if inner is not None and inner is not Source:
            yield from _explain(inner, default, f"{prefix}{name}.")
            continue
        yield (
            f"{prefix}{name}",
            _type_text(info.annotation, _bounds(info.metadata)),
            json.dumps(default, ensure_ascii=False),
            str(extra(info).get("unit", "")),
            info.description or "",
        )


def _section_type(annotation: Any) -> type[Section] | None:
    """Returns the section that a field is, or may be; None for a list of sections."""
    if get_origin(annotation) is tuple:
        return None
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _type_text(annotation: Any, bounds: str = "") -> str:
    """Returns a type as text; numbers have their bounds, as in `int > 0`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [mark for info in arguments[1:] for mark in info.metadata]
        return _type_text(arguments[0], _bounds(marks))
    if origin is Literal:
        return " | ".join(str(value) for value in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(_type_text(argument, bounds) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list[{_type_text(arguments[0], bounds)}]"
    if origin is tuple:
        return f"[{', '.join(_type_text(argument, bounds) for argument in arguments)}]"
    if origin is dict:
        return f"dict[{', '.join(_type_text(argument) for argument in arguments)}]"
    if annotation is type(None):
        return "null"
    if annotation is Source:
        return f"str | {_fields_text(Source)}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return _fields_text(annotation)
    number_bounds = bounds if annotation in (int, float) else ""
    return f"{annotation.__name__}{number_bounds}"


def _fields_text(section: type[Section]) -> str:
    return f"{{{', '.join(section.model_fields)}}}"


def _bounds(marks: Sequence[Any]) -> str:
    """Returns the bounds of a number as text, such as ` >= 0 and < 1`."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    return " and".join(
        f" {sign} {getattr(mark, name)}"
        for mark in marks
        for name, sign in signs.items()
        if hasattr(mark, name)
    )
