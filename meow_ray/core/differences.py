"""The differences between what two fingerprints are the hashes of, in words."""

from collections.abc import Mapping
from typing import Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the differences between the ingredients of two fingerprints, in words.

    Examples are `select.top_k: 3 → 2`, `input facts changed` and `code version: 1 → 2`.
    """
    old_values = _flatten(old)
    new_values = _flatten(new)
    changed = [
        key
        for key in sorted({*old_values, *new_values})
        if old_values.get(key) != new_values.get(key)
    ]
    return [_difference(key, old_values.get(key), new_values.get(key)) for key in changed]


def _difference(key: str, old: Any, new: Any) -> str:
    kind, _, name = key.partition(".")
    if kind == "inputs":
        return f"input {name} changed"
    if kind == "spec":
        return f"{name}: {old!r} → {new!r}"
    if kind == "prompt":
        return "prompt text changed"
    if kind == "schema":
        return "schema changed"
    return f"code {key}: {old} → {new}"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
