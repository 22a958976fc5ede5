"""Configuration files: reading them, overriding single keys, explaining every key."""

import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from meow_ray.config.config import Config
from meow_ray.config.fields import Section, extra
from meow_ray.config.sections import Source
from meow_ray.errors import MeowError


def _package_folder(name: str) -> str:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"${{package:{name}}}: the Python package {name} is not installed")
    return str(spec.submodule_search_locations[0])


OmegaConf.register_resolver("package", _package_folder, replace=True)


RENAMED = {"evaluate.reference": "evaluate.retain_model"}
"""Keys of earlier versions, and their names now."""

Names = Mapping[str, Collection[str]]
"""The names that other modules define and a configuration may use: `objectives` and `rules`."""


def load_config(
    path: str | Path | None, overrides: Sequence[str] = (), *, names: Names | None = None
) -> Config:
    """Reads a YAML file, applies overrides such as `select.top_k=2`, and checks the whole.

    Args:
        path: the YAML file; None starts from the defaults.
        overrides: dotted keys with values, applied in order.
        names: known objectives and rules; names of a kind that is not listed are not checked here.

    Raises:
        MeowError: names every mistake at once, each with file, line, key, value and the nearest valid key.
    """
    text = _read(Path(path)) if path else ""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and not isinstance(node, yaml.MappingNode):
            raise MeowError(
                f"{path}: a configuration is a mapping of sections, this is a {node.tag.rpartition(':')[2]}."
            )
        base = OmegaConf.create(text)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise MeowError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise MeowError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})."
        ) from None
    lines = dict(_key_lines(node))
    for override in overrides:
        if "=" not in override:
            raise MeowError(f"Override {override!r} is not of the form section.key=value.")
        try:
            base = OmegaConf.merge(base, OmegaConf.from_dotlist([override]))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
            raise MeowError(f"Override {override!r}: {getattr(error, 'problem', error)}.") from None
    try:
        values = OmegaConf.to_container(base, resolve=True)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise MeowError(f"{path or 'overrides'}: {error}") from None
    try:
        return Config.model_validate(values, context=names)
    except ValidationError as error:
        overridden = {item.split("=", 1)[0] for item in overrides}
        mistakes = dict.fromkeys(_mistake(item, path, lines, overridden) for item in _merged(error))
        raise MeowError("Configuration:\n" + "\n".join(f"  {line}" for line in mistakes)) from None


def _merged(error: ValidationError) -> list[dict[str, Any]]:
    """Returns the errors with those of a union's branches made one, under the key of the field."""
    keys = set(valid_keys())
    out: dict[tuple[int | str, ...], dict[str, Any]] = {}
    for item in error.errors():
        loc = item["loc"]
        field = next(
            (i for i in range(1, len(loc)) if ".".join(map(str, loc[:i])) in keys), len(loc)
        )
        is_branch = field < len(loc) and not isinstance(loc[field], int)
        if (
            is_branch
            and item["type"] != "extra_forbidden"
            and loc[field] not in Source.model_fields
        ):
            loc = loc[:field]
        if loc in out:
            out[loc]["msg"] += f", or {item['msg']}"
        else:
            out[loc] = {**item, "loc": loc}
    return list(out.values())


def explain() -> Iterator[tuple[str, str, str, str, str]]:
    """Yields (key, type, default, unit, meaning) for every key of the configuration."""
    yield from _explain(Config, "")


def valid_keys() -> list[str]:
    """Returns every dotted key."""
    return [row[0] for row in explain()]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise MeowError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise MeowError(f"The configuration {path} is not UTF-8 text.") from None


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _key_lines(value, f"{name}.")


def _mistake(
    item: Any, path: str | Path | None, lines: dict[str, int], overridden: set[str]
) -> str:
    parts = [str(part) for part in item["loc"]]
    key = ".".join(parts)
    if any(".".join(parts[:i]) in overridden for i in range(1, len(parts) + 1)):
        where = "override"
    else:
        line = next(
            (lines[k] for i in range(len(parts), 0, -1) if (k := ".".join(parts[:i])) in lines),
            None,
        )
        where = f"{path}, line {line}" if line else str(path or "override")
    if key in RENAMED:
        return f"{where}: `{key}` is now called `{RENAMED[key]}`."
    if item["type"] == "extra_forbidden":
        near = nearest_key(key)
        return f"{where}: unknown key `{key}`" + (f"; did you mean `{near}`?" if near else ".")
    value = item["input"] if not isinstance(item["input"], dict) else "…"
    return f"{where}: `{key}` = {value!r}: {item['msg']}."


def nearest_key(key: str) -> str | None:
    """Returns the valid key most like `key`: one with the same last name, else the closest spelling."""
    keys = valid_keys()
    if "." not in key:
        section = get_close_matches(key, list(Config.model_fields), n=1)
        if section:
            return section[0]
    same_name = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    candidates = get_close_matches(key, same_name or keys, n=1, cutoff=0.3 if same_name else 0.6)
    return candidates[0] if candidates else (same_name[0] if same_name else None)


def _section_type(annotation: Any) -> type[Section] | None:
    several = get_origin(annotation) is tuple
    for candidate in () if several else (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _explain(section: type[Section], prefix: str) -> Iterator[tuple[str, str, str, str, str]]:
    for name, field in section.model_fields.items():
        inner = _section_type(field.annotation)
        if inner is not None and inner is not Source:
            yield from _explain(inner, f"{prefix}{name}.")
            continue
        default = (
            "required"
            if field.is_required()
            else repr(field.get_default(call_default_factory=True))
        )
        kind = re.sub(r"typing\.|meow_ray\.config\.\w+\.", "", str(field.annotation))
        kind = field.annotation.__name__ if isinstance(field.annotation, type) else kind
        yield (
            f"{prefix}{name}",
            kind,
            default,
            str(extra(field).get("unit", "")),
            field.description or "",
        )
