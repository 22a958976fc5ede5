"""The objectives of `train` by name: presets, registered functions and functions of a file."""

import re
from collections.abc import Mapping
from dataclasses import replace
from inspect import Parameter, signature
from math import isfinite
from typing import Any

from meow_ray.config import OWN_OBJECTIVE, Config, Train
from meow_ray.core import own_code
from meow_ray.errors import MeowError
from meow_ray.stages.train.objective_spec import ROLES, ObjectiveSpec
from meow_ray.stages.train.presets import MAX_STEPS, PRESETS

REGISTERED: dict[str, str] = {}
"""The module texts of the objectives that this program registered, by name; see `registered`."""

ASSISTANT = ("assistant_blocks", "assistant_weight", "assistant_filter")
"""The fields that only an objective has that trains an assistant."""


# --- from a configuration to an objective -------------------------------------------------------


def source_of(name: str) -> str | None:
    """Returns the text of the module that defines an objective; None for a preset.

    Args:
        name: a preset, a registered objective, or `FILE.py:FUNCTION`.

    Raises:
        MeowError: there is no objective with this name, or its file cannot be read.
    """
    if name in PRESETS:
        return None
    if name in REGISTERED:
        return REGISTERED[name]
    if not re.fullmatch(OWN_OBJECTIVE, name):
        names = ", ".join([*PRESETS, *REGISTERED])
        raise MeowError(
            f"`train.objective`: no objective {name!r}. Choose from {names}, or use "
            "FILE.py:FUNCTION."
        )
    return own_code.read(name, "train.objective")


def configured(spec: Train) -> ObjectiveSpec:
    """Returns the objective that a configuration names; reads the file of a user's function.

    Raises:
        MeowError: see `source_of` and `resolve`.
    """
    return resolve(spec, source_of(spec.objective))


def compares_with_twins(config: Config) -> bool:
    """Whether `evaluate` compares the facts with twins: as configured, or as training does."""
    chosen = config.evaluate.twins
    return configured(config.train).watches_facts if chosen is None else chosen


def resolve(spec: Train, source: str | None) -> ObjectiveSpec:
    """Returns the objective that a configuration names; unset fields have the preset's defaults.

    Args:
        spec: the section `train`.
        source: the result of `source_of` for its objective.

    Raises:
        MeowError: the user's file does not run or lacks the function; the function reads unknown
            roles; a setting is unknown, missing or out of range; or `trainable` is set with LoRA.
    """
    name = spec.objective
    preset = PRESETS[name] if source is None else _from_source(name, source)
    _check_settings(spec, preset)
    changes = _changed_fields(spec, preset)
    if "idk" in preset.reads:
        changes["idk_answers"] = spec.idk_answers
    objective = replace(preset, settings=_complete_settings(spec, preset), **changes)
    _check_effect(spec, objective)
    _check_assistant(spec, objective, trains_assistant=bool(preset.assistant_blocks))
    return objective if spec.retain is None else _with_retain(objective, spec)


def _with_retain(objective: ObjectiveSpec, spec: Train) -> ObjectiveSpec:
    """Returns an objective with the source of its retain pairs that a configuration sets.

    Raises:
        MeowError: the objective has no use for these pairs, or needs some.
    """
    assert spec.retain is not None
    place = f"`train.retain` is {spec.retain}"
    if spec.retain != "none":
        if spec.retain != "given" and "retain" not in objective.roles:
            raise MeowError(
                f"{place}, but {spec.objective} retains nothing. Set `train.retain_weight` or "
                "`train.kl_weight`."
            )
        return replace(objective, retain=spec.retain)
    if "retain" in objective.reads:
        raise MeowError(
            f"{place}, but the function of {spec.objective} reads retain pairs. Set it to given, "
            "neighbours or both."
        )
    if any((spec.retain_weight, spec.kl_weight, spec.retain_budget, spec.utility_budget)):
        raise MeowError(
            f"{place}, which drops `train.retain_weight` and `train.kl_weight` with their budgets. "
            "Remove these keys, or set `train.retain` to given, neighbours or both."
        )
    return replace(
        objective,
        retain="none",
        retain_weight=0.0,
        kl_weight=0.0,
        retain_budget=None,
        utility_budget=None,
    )


def _check_settings(spec: Train, preset: ObjectiveSpec) -> None:
    """Refuses settings that the objective lacks, and values that they cannot have."""
    for name, value in spec.settings.items():
        place = f"`train.settings.{name}`"
        if name not in preset.settings:
            known = ", ".join(preset.settings)
            advice = f"Choose from {known}." if known else "Remove it: there are no settings."
            raise MeowError(f"{place}: {spec.objective} has no such setting. {advice}")
        if isinstance(preset.settings[name], int) and value != int(value):
            raise MeowError(f"{place} must be a whole number (got {value}).")
        if spec.objective not in PRESETS:
            continue
        if name == "beta" and value <= 0:
            raise MeowError(f"{place} must be greater than 0 (got {value}).")
        if name == "ratio" and not 0 < value < 1:
            raise MeowError(f"{place} must be between 0 and 1 (got {value}).")
        if value < 0:
            raise MeowError(f"{place} must not be negative (got {value}).")


def _complete_settings(spec: Train, preset: ObjectiveSpec) -> dict[str, Any]:
    """Returns the settings of an objective: those of the configuration, else the defaults."""
    settings = {**preset.settings, **spec.settings}
    for name, value in settings.items():
        if value is Parameter.empty:
            raise MeowError(
                f"`train.settings.{name}` is not set, and {spec.objective} has no default for it. "
                "Set a number."
            )
        if isinstance(preset.settings[name], int):
            settings[name] = int(value)
    return settings


def _changed_fields(spec: Train, preset: ObjectiveSpec) -> dict[str, Any]:
    """Returns the fields of an objective that a configuration sets."""
    names = (
        "forget_weight",
        "retain_weight",
        "kl_weight",
        "trainable",
        "until",
        "max_steps",
        "stop_level",
        "cooldown",
        "utility_budget",
        "retain_budget",
        "weight_distance",
        "guessed_floors",
        "paraphrases",
        *ASSISTANT,
    )
    changes = {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}
    if changes.get("until") == "never_seen":
        changes.setdefault("max_steps", MAX_STEPS)
    ends_by_itself = (spec.until or preset.until) == "never_seen"
    changes["scales_learning_rate"] = ends_by_itself and spec.learning_rate is None
    if spec.learning_rate is not None:
        changes["own_learning_rate"] = None
    if spec.lora is not None:
        if spec.trainable is not None:
            raise MeowError(
                "`train.trainable` and `train.lora` are mutually exclusive. With LoRA, name the "
                "layers in `train.lora.layers`."
            )
        changes["trainable"] = None
    return changes


def _check_effect(spec: Train, objective: ObjectiveSpec) -> None:
    """Refuses settings of the end, the floors or the budget that would have no effect."""
    for name in ("max_steps", "stop_level", "cooldown"):
        if getattr(spec, name) is not None and objective.until != "never_seen":
            raise MeowError(
                f"`train.{name}` has no effect while training ends after its epochs. Set "
                "train.until=never_seen, or remove it."
            )
    if objective.guessed_floors and not objective.twins:
        raise MeowError(
            f"`train.guessed_floors` has no effect on {spec.objective}, which reads no floors. "
            "Remove it, or set train.objective=meow_floor."
        )
    if objective.masks and spec.lora is not None:
        raise MeowError(
            f"`train.lora`: {spec.objective} drops weights of the model itself, so that there is "
            "nothing for adapters to learn. Remove `train.lora`."
        )
    if objective.weight_distance and objective.masks:
        raise MeowError(
            f"`train.weight_distance`: {spec.objective} drops weights and changes no others, so "
            "that there is no distance to limit. Remove the key, and lower `train.settings.ratio` "
            "to drop fewer weights."
        )
    if objective.weight_distance and spec.lora is not None:
        raise MeowError(
            "`train.weight_distance` measures whole weights, which do not change with "
            "`train.lora`. Remove one of the two."
        )
    if "epochs" in spec.model_fields_set and objective.until == "never_seen":
        raise MeowError(
            "`train.epochs` has no effect while training ends by itself. Set train.until=epochs, "
            "or remove it; train.max_steps limits the steps."
        )
    if objective.utility_budget is not None and not objective.kl_weight:
        raise MeowError(
            f"`train.utility_budget`: {spec.objective} has no KL term whose weight it could adapt. "
            "Set train.kl_weight, or remove the budget."
        )
    if objective.retain_budget is not None and not objective.retain_weight:
        raise MeowError(
            f"`train.retain_budget`: {spec.objective} has no retain term whose weight it could "
            "adapt. Set train.retain_weight, or remove the budget."
        )


def _check_assistant(spec: Train, objective: ObjectiveSpec, *, trains_assistant: bool) -> None:
    """Refuses settings that do not go with an assistant, and those of an assistant without one."""
    if not trains_assistant:
        for name in ASSISTANT:
            if getattr(spec, name) is not None:
                raise MeowError(
                    f"`train.{name}` has no effect on {spec.objective}, which trains the target "
                    "itself. Remove it, or set train.objective=uld."
                )
        return
    if objective.until == "never_seen":
        raise MeowError(
            f"`train.until` is never_seen, but {spec.objective} trains an assistant that learns "
            "the facts, so they never look unseen to it. Set train.until=epochs."
        )
    if objective.retain_weight or objective.kl_weight:
        raise MeowError(
            f"`train.retain_weight` and `train.kl_weight` would teach the assistant of "
            f"{spec.objective} what it must not know. Remove them; `train.settings.alpha` is the "
            "weight of what is retained."
        )
    if spec.lora is not None and spec.lora.output == "adapter":
        raise MeowError(
            f"`train.lora.output` is adapter, but {spec.objective} exports two whole models. Set "
            "it to merged."
        )


def _from_source(name: str, source: str) -> ObjectiveSpec:
    """Returns the objective of a user's function, with the defaults of its parameters.

    Positional parameters are roles, keyword parameters are settings.
    """
    spec = ObjectiveSpec(function=name.rpartition(":")[2], reads=(), source=source)
    try:
        function = spec.load()
        parameters = signature(function).parameters.values()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's file does
        raise MeowError(
            f"`train.objective`: {name} cannot be loaded ({error!r}). Correct the file."
        ) from None
    settings = {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    reads = tuple(p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY)
    _check_roles(name, reads)
    _check_defaults(name, settings)
    reference: Any = getattr(function, "reference", "none")
    return replace(spec, reads=reads, settings=settings, reference=reference)


def _check_roles(name: str, reads: tuple[str, ...]) -> None:
    """Refuses a user's function whose positional parameters are not roles, or only `retain`."""
    choices = ", ".join(ROLES)
    if not reads:
        raise MeowError(
            f"`train.objective`: {name} has no positional parameters. Name the roles that it "
            f"reads: {choices}."
        )
    unknown = ", ".join(role for role in reads if role not in ROLES)
    if unknown:
        raise MeowError(
            f"`train.objective`: {name} has parameters before `*` that are not roles ({unknown}). "
            f"Choose from {choices}."
        )
    if set(reads) == {"retain"}:
        raise MeowError(
            f"`train.objective`: {name} reads only retain, so it forgets nothing. Add a role: "
            "inverted, forget or idk."
        )


def _check_defaults(name: str, settings: Mapping[str, Any]) -> None:
    """Refuses a user's function with a setting whose default is not a finite number."""
    for key, value in settings.items():
        if value is Parameter.empty:
            continue
        if not isinstance(value, int | float) or not isfinite(value):
            raise MeowError(
                f"`train.objective`: the default of {key} in {name} is not a finite number "
                f"({value!r}). Settings are numbers."
            )
