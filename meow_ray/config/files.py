"""Configuration files: reading them, overriding single keys, and finding the mistakes."""

import importlib.util
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from meow_ray.config.config import Config
from meow_ray.config.explain import explain, valid_keys
from meow_ray.config.sections import Source
from meow_ray.errors import MeowError

__all__ = ["RENAMED", "Names", "explain", "load_config", "nearest_key", "valid_keys"]


def _package_folder(name: str) -> str:
    """Returns the folder of an installed Python package, for `${package:NAME}`."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"${{package:{name}}}: the Python package {name} is not installed. Install it"
        )
    return str(spec.submodule_search_locations[0])


OmegaConf.register_resolver("package", _package_folder, replace=True)


RENAMED = {"evaluate.reference": "evaluate.retain_model"}
"""Keys of earlier versions, with their new names. The old keys are refused."""

Names = Mapping[str, Collection[str]]
"""Names that other modules define and that a configuration may use: of `objectives` and `rules`."""


def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), *, names: Names | None = None
) -> Config:
    """Returns the configuration of a YAML file with overrides such as `select.top_k=2`.

    Args:
        path: the YAML file; None starts from the defaults.
        overrides: dotted keys with values; later ones win.
        names: known objectives and rules. Names of a kind that is not listed are not checked.

    Raises:
        MeowError: there are mistakes. It names all of them, each with file, line, key, value and,
            for an unknown key, the nearest valid one.
    """
    text = _read(Path(path)) if path else ""
    lines, base = _parsed(text, path)
    for override in overrides:
        base = _overridden(base, override)
    try:
        values = OmegaConf.to_container(base, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise MeowError(f"{path or 'override'}: {_reason(error)}.") from None
    try:
        return Config.model_validate(values, context=names)
    except ValidationError as error:
        overridden = {override.split("=", 1)[0] for override in overrides}
        messages = [_message(item, path, lines, overridden) for item in _by_field(error)]
        unique = dict.fromkeys(messages)
        raise MeowError("Configuration:\n" + "\n".join(f"  {line}" for line in unique)) from None


# --- reading ------------------------------------------------------------------------------------


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MeowError(f"{path}: cannot read the configuration ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise MeowError(
            f"{path}: the configuration is not UTF-8 text. Save it in this encoding."
        ) from None


def _parsed(text: str, path: str | Path | None) -> tuple[dict[str, int], Any]:
    """Returns the line of each dotted key of a YAML text, and its values for OmegaConf."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
            raise MeowError(
                f"{path}: a configuration is a mapping of sections, but this file has {kind}. "
                "Write sections with keys, such as `select: {top_k: 2}`."
            )
        return dict(_key_lines(node)), OmegaConf.create(text)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise MeowError(f"{path}: {_reason(error)}.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else f"{path}"
        raise MeowError(f"{where}: not valid YAML ({getattr(error, 'problem', error)}).") from None


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _key_lines(value, f"{name}.")


def _overridden(base: Any, override: str) -> Any:
    """Returns the values with one override applied."""
    if "=" not in override:
        raise MeowError(f"Override {override!r}: no value. Write it as section.key=value.")
    try:
        return OmegaConf.merge(base, OmegaConf.from_dotlist([override]))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        reason = getattr(error, "problem", None) or _reason(error)
        raise MeowError(f"Override {override!r}: {reason}.") from None


def _reason(error: Exception) -> str:
    """Returns the key and the first line of an error of OmegaConf."""
    lines = str(error).splitlines() or [type(error).__name__]
    reason = lines[0].rpartition(" raised while resolving interpolation: ")[-1]
    key = getattr(error, "full_key", None)
    return f"`{key}`: {reason}" if key else reason


# --- mistakes -----------------------------------------------------------------------------------


def _by_field(error: ValidationError) -> list[dict[str, Any]]:
    """Returns pydantic's errors, with those of the alternatives of one field merged.

    A field such as `int | "auto"` gives an error per alternative, under a location with the name of
    the alternative at its end. The merged error has the location of the field.
    """
    keys = set(valid_keys())
    merged: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for item in error.errors():
        location = _without_alternative(item["loc"], item["type"], keys)
        if location in merged:
            merged[location]["msg"] += f", or {item['msg']}"
        else:
            merged[location] = {**item, "loc": location}
    return list(merged.values())


def _without_alternative(
    location: tuple[int | str, ...], kind: str, keys: Collection[str]
) -> tuple[int | str, ...]:
    for end in range(1, len(location)):
        if ".".join(map(str, location[:end])) not in keys:
            continue
        part = location[end]
        is_user_key = isinstance(part, int) or part in Source.model_fields
        if kind == "extra_forbidden" or is_user_key:
            return location
        return location[:end]
    return location


def _message(
    item: Mapping[str, Any], path: str | Path | None, lines: Mapping[str, int], overridden: set[str]
) -> str:
    """Returns one mistake as a line for the user."""
    key = ".".join(str(part) for part in item["loc"])
    where = _where(key, path, lines, overridden)
    if key in RENAMED:
        return f"{where}: `{key}` has a new name. Use `{RENAMED[key]}`."
    if item["type"] == "extra_forbidden":
        nearest = nearest_key(key)
        question = f" Did you mean `{nearest}`?" if nearest else ""
        return f"{where}: unknown key `{key}`.{question}"
    reason = item["msg"].removeprefix("Value error, ")
    if not key:
        return f"{where}: {reason}."
    value = "…" if isinstance(item["input"], dict) else repr(item["input"])
    return f"{where}: `{key}` = {value}: {reason}."


def _where(
    key: str, path: str | Path | None, lines: Mapping[str, int], overridden: set[str]
) -> str:
    """Returns where a key was set: `override`, or file and line of it or of its section."""
    parts = key.split(".")
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    sets_part = any(name.startswith(f"{key}.") for name in overridden)
    if overridden.intersection(prefixes) or (sets_part and key not in lines):
        return "override"
    for prefix in prefixes:
        if prefix in lines:
            return f"{path}, line {lines[prefix]}"
    return str(path or "override")


def nearest_key(key: str) -> str | None:
    """Returns the valid key most like `key`; None if none is similar.

    A key with the same last name in another section comes before one with a similar spelling.
    """
    keys = valid_keys()
    if "." not in key:
        sections = get_close_matches(key, list(Config.model_fields), n=1)
        if sections:
            return sections[0]
    last_name = key.rsplit(".", 1)[-1]
    same_name = [valid for valid in keys if valid.rsplit(".", 1)[-1] == last_name]
    if same_name:
        similar = get_close_matches(key, same_name, n=1, cutoff=0.3)
        return similar[0] if similar else same_name[0]
    similar = get_close_matches(key, keys, n=1, cutoff=0.6)
    return similar[0] if similar else None
