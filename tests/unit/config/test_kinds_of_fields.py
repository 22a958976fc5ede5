"""Which fields of the configuration enter which fingerprints: spec, content and resources."""

from typing import Any, Literal, get_args, get_origin

import pytest

from meow_ray.config import Config, Judge
from meow_ray.config.fields import Section
from meow_ray.config.files import valid_keys
from meow_ray.core.storage import json_digest
from meow_ray.pipeline.graph import STAGES

RESOURCE_SECTIONS = ("storage", "resources", "tracking")


def section_of(key: str) -> tuple[type[Section], str]:
    """Returns the section class that declares a dotted key, and the last name of the key."""
    *parents, name = key.split(".")
    section: type[Section] = Config
    for parent in parents:
        annotation = section.model_fields[parent].annotation
        section = next(
            candidate
            for candidate in (annotation, *get_args(annotation))
            if isinstance(candidate, type) and issubclass(candidate, Section)
        )
    return section, name


def kind_of(key: str) -> str:
    if key.split(".")[0] in RESOURCE_SECTIONS:
        return "resource"
    section, name = section_of(key)
    extra = section.model_fields[name].json_schema_extra
    return "content" if isinstance(extra, dict) and extra.get("content") else "spec"


def other_value(annotation: Any, value: Any) -> Any:
    """Returns a valid value of a field that differs from `value`."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    if get_origin(annotation) is Literal:
        return next(option for option in options if option != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str) and "auto" not in str(annotation):
        return value + " {{ question }}"
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, int):
        return value + 1
    if isinstance(value, dict):
        return value | {"beta": "x" if get_args(annotation)[1:] == (str,) else 0.5}
    if isinstance(value, tuple) and len(value) > 1:
        return value[:-1]
    if isinstance(value, tuple):
        item = options[0]
        if isinstance(item, type) and issubclass(item, Section):
            return (*value, item())
        return (*value, get_args(item)[0] if get_origin(item) is Literal else "loop")
    return {str: "text", bool: True}.get(options[0], 7)


def with_value(key: str, value: Any) -> Config:
    """Returns a configuration with all sections and one key set."""
    values: dict[str, Any] = {"memorize": {}}
    *parents, name = key.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[name] = value
    return Config.model_validate(values)


def with_change(key: str) -> Config:
    section, name = section_of(key)
    info = section.model_fields[name]
    default = info.get_default(call_default_factory=True)
    if name == "encoding":
        return with_value(key, "windows-1252")
    return with_value(key, other_value(info.annotation, default))


def fingerprints(config: Config) -> dict[str, str]:
    """Returns the fingerprint of each stage over inputs that do not change."""
    return {
        stage.name: json_digest(
            stage.ingredients(config, dict.fromkeys(stage.input_names(PLAIN), "digest"))
        )
        for stage in STAGES
    }


SPEC = [key for key in valid_keys() if kind_of(key) == "spec"]
CONTENT = [key for key in valid_keys() if kind_of(key) == "content"]
RESOURCE = [key for key in valid_keys() if kind_of(key) == "resource"]
SINGLE_VALUED = {
    key
    for key in SPEC
    if len(get_args(section_of(key)[0].model_fields[key.split(".")[-1]].annotation)) == 1
}
"""Keys with a single valid value."""
PLAIN = with_value("select.top_k", 3)


def test_each_key_is_spec_content_or_resource():
    assert sorted(SPEC + CONTENT + RESOURCE) == sorted(valid_keys())
    assert {key.split(".")[0] for key in RESOURCE} == set(RESOURCE_SECTIONS)
    for key in SPEC + CONTENT:
        section, name = section_of(key)
        assert (name in section().spec()) == (key in SPEC), key


def test_these_keys_name_content():
    assert set(CONTENT) == {
        *(
            f"{section}.{name}"
            for section in ("target", "invert", "memorize")
            for name in ("model", "revision")
        ),
        *(
            f"invert.{name}"
            for name in (
                "base_url",
                "api_key_env",
                "judge_model",
                "judge_base_url",
                "judge_api_key_env",
            )
        ),
        "memorize.data",
        "ingest.forget",
        "ingest.retain",
        "report.soup",
        "memo.exact",
        *(f"evaluate.{name}" for name in ("sets", "retain_model", "text", "task_folder", "twins")),
        *(
            f"train.{name}"
            for name in (
                "objective",
                "settings",
                "trainable",
                "retain",
                "paraphrases",
                "idk_answers",
            )
        ),
        *(f"train.{name}" for name in ("until", "max_steps", "stop_level", "cooldown")),
        *(f"train.{name}_weight" for name in ("forget", "retain", "kl")),
        "train.utility_budget",
        "train.retain_budget",
        "train.weight_distance",
        "train.guessed_floors",
        *(f"train.assistant_{name}" for name in ("blocks", "weight", "filter")),
        "train.deepspeed",
        "memorize.deepspeed",
        "audit.attacker.model",
        *(f"audit.judge.{name}" for name in Judge.model_fields),
    }


@pytest.mark.parametrize("key", [key for key in SPEC if key not in SINGLE_VALUED])
def test_a_spec_key_changes_the_fingerprints_of_the_stages_that_declare_it(key: str):
    section = key.split(".")[0]
    parents = {key, key.rpartition(".")[0], section}
    declaring = {stage.name for stage in STAGES if parents & set(stage.sections)}
    before = fingerprints(PLAIN)
    after = fingerprints(with_change(key))
    assert {name for name in before if before[name] != after[name]} == declaring
    assert declaring or section == "pipeline", f"no stage declares {key}"


@pytest.mark.parametrize("key", RESOURCE)
def test_a_resource_key_changes_no_fingerprint(key: str):
    assert with_change(key) != PLAIN
    assert fingerprints(with_change(key)) == fingerprints(PLAIN)


@pytest.mark.parametrize("key", [key for key in CONTENT if key.endswith(("model", "revision"))])
def test_a_content_key_enters_fingerprints_by_the_digest_of_its_content(key: str):
    config = with_value(key, "elsewhere/model")
    assert fingerprints(config) == fingerprints(PLAIN)
    for stage in STAGES:
        digests = dict.fromkeys(stage.input_names(config), "digest")
        for name in digests:
            changed = stage.ingredients(config, digests | {name: "other"})
            assert changed != stage.ingredients(config, digests)
