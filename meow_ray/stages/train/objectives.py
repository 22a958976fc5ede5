"""Methods by name: which objective a name stands for, what is added to it, and users' own."""

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from math import isfinite
from types import ModuleType
from typing import Any, Literal, cast, get_args

from meow_ray.config import OWN_OBJECTIVE, Train
from meow_ray.core import storage
from meow_ray.errors import MeowError

Role = Literal["inverted", "forget", "retain", "idk"]
"""Inverted facts, true answers of forget facts, answers of the retain set, refusals to answer forget questions."""
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class ObjectiveSpec:
    """What a training loop minimises.

    The loss is `forget_weight` · function + `retain_weight` · cross-entropy on the retain set + `kl_weight` · KL to the
    model before training on the retain set.
    """

    function: str
    """A function of `losses`, or of `source`."""
    reads: tuple[str, ...]
    """The roles that the function takes."""
    reference: Literal["none", "log_probs", "model"] = "none"
    """What the function reads of the model before training: its log-probabilities, computed once, or a frozen copy."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The function's keyword parameters."""
    forget_weight: float = 1.0
    retain_weight: float = 0.0
    kl_weight: float = 0.0
    trainable: str | None = None
    """Regular expression of the parameters that are updated; None is all."""
    source: str | None = None
    """The text of a user's file."""
    idk_answers: tuple[str, ...] = ()
    """Refusals, if the function reads the role `idk`."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the sequences that a step reads."""
        if "retain" in self.reads or not (self.retain_weight or self.kl_weight):
            return self.reads
        return (*self.reads, "retain")

    @property
    def needs_frozen(self) -> bool:
        """Whether the model before training has to stay beside the one that is trained."""
        return self.reference == "model" or bool(self.kl_weight)

    @property
    def layer(self) -> int | None:
        """The block whose activations the function reads, from 0; None if it reads none."""
        return self.settings.get("layer")

    def load(self) -> Callable[..., Any]:
        """Finds the function; runs the user's file if there is one."""
        if self.source is None:
            from meow_ray.stages.train import losses

            return cast(Callable[..., Any], getattr(losses, self.function))
        module = sys.modules["train_objective"] = ModuleType("train_objective")
        exec(compile(self.source, "<train.objective>", "exec"), module.__dict__)  # noqa: S102 - the user's own file
        return cast(Callable[..., Any], getattr(module, self.function))


_RMU = {"layer": 7, "steering": 20.0, "alpha": 100.0}
PRESETS: dict[str, ObjectiveSpec] = {
    "meow": ObjectiveSpec("meow", ("inverted",)),
    "meow_gd": ObjectiveSpec("meow", ("inverted",), forget_weight=0.9, retain_weight=0.1),
    "meow_kl": ObjectiveSpec("meow", ("inverted",), forget_weight=0.9, kl_weight=0.1),
    "gradient_ascent": ObjectiveSpec("gradient_ascent", ("forget",)),
    "grad_diff": ObjectiveSpec("gradient_ascent", ("forget",), retain_weight=1.0),
    "kl_min": ObjectiveSpec("gradient_ascent", ("forget",), kl_weight=1.0),
    "idk": ObjectiveSpec("idk", ("idk",), retain_weight=1.0),
    "dpo": ObjectiveSpec("dpo", ("idk", "forget"), "log_probs", {"beta": 0.1}, retain_weight=1.0),
    "npo": ObjectiveSpec("npo", ("forget",), "log_probs", {"beta": 0.1}),
    "npo_gd": ObjectiveSpec("npo", ("forget",), "log_probs", {"beta": 0.1}, retain_weight=1.0),
    "npo_kl": ObjectiveSpec("npo", ("forget",), "log_probs", {"beta": 0.1}, kl_weight=1.0),
    "simnpo": ObjectiveSpec(
        "simnpo",
        ("forget",),
        settings={"beta": 2.5, "gamma": 0.0},
        forget_weight=0.1375,
        retain_weight=1.0,
    ),
    "altpo": ObjectiveSpec(
        "altpo", ("inverted", "forget"), "log_probs", {"beta": 0.1}, retain_weight=1.0
    ),
    "ihl": ObjectiveSpec("ihl", ("forget",), retain_weight=1.0),
    "undial": ObjectiveSpec("undial", ("forget",), "model", {"beta": 10.0}),
    "wga": ObjectiveSpec("wga", ("forget",), settings={"beta": 1.0}, retain_weight=1.0),
    "ceu": ObjectiveSpec("ceu", ("forget",), settings={"skip_tokens": 1}),
    "flat": ObjectiveSpec("flat", ("idk", "forget")),
    "rmu": ObjectiveSpec(
        "rmu",
        ("forget", "retain"),
        "model",
        _RMU,
        trainable=r".*\.layers\.(5|6|7)\.mlp\.down_proj\.weight",
    ),
}
"""Methods by the names that papers use, with their defaults; the sources stand in `losses`."""

REGISTERED: dict[str, str] = {}
"""The source texts of objectives that this program registered, by name; see `registered`."""

MEMORIZE = PRESETS["meow"]
"""Plain cross-entropy: what `memorize` minimises."""


def source_of(name: str) -> str | None:
    """Returns the text of the user's file that an objective `FILE.py:FUNCTION` stands in; None for a preset.

    Raises:
        MeowError: there is no objective of that name, or no such file.
    """
    if name in PRESETS:
        return None
    if name in REGISTERED:
        return REGISTERED[name]
    if not re.fullmatch(OWN_OBJECTIVE, name):
        raise MeowError(
            f"`train.objective`: no objective {name!r}; there are {', '.join(PRESETS)}, "
            "or your own as FILE.py:FUNCTION."
        )
    uri = storage.absolute(name.rpartition(":")[0])
    if not storage.exists(uri):
        raise MeowError(f"`train.objective`: there is no file {storage.display(uri)}.")
    try:
        return storage.read_bytes(uri).decode()
    except UnicodeDecodeError:
        raise MeowError(f"`train.objective`: {storage.display(uri)} is not UTF-8 text.") from None


def configured(spec: Train) -> ObjectiveSpec:
    """Returns the objective that a configuration names; reads the user's file if it is one of their own.

    Raises:
        MeowError: see `source_of` and `resolve`.
    """
    return resolve(spec, source_of(spec.objective))


def resolve(spec: Train, source: str | None) -> ObjectiveSpec:
    """Returns the objective that a configuration names, with the preset's defaults where it sets none.

    Args:
        spec: the section `train`.
        source: what `source_of` returned for its objective.

    Raises:
        MeowError: the user's file does not run or lacks the function; it reads roles, or is given settings, that
            there are not.
    """
    preset = PRESETS[spec.objective] if source is None else _own(spec.objective, source)
    for name, value in spec.settings.items():
        if name not in preset.settings:
            known = ", ".join(preset.settings) or "none"
            raise MeowError(
                f"`train.settings.{name}`: {spec.objective} has no such setting; it has {known}."
            )
        if isinstance(preset.settings[name], int) and value != int(value):
            raise MeowError(f"`train.settings.{name}`: {value} is no whole number.")
        if spec.objective in PRESETS and (value < 0 or (name == "beta" and value == 0)):
            raise MeowError(
                f"`train.settings.{name}`: {value} is too small; beta is above 0, the others not below."
            )
    changed: dict[str, Any] = {
        name: getattr(spec, name)
        for name in ("forget_weight", "retain_weight", "kl_weight", "trainable")
        if getattr(spec, name) is not None
    }
    if spec.lora is not None:
        if spec.trainable is not None:
            raise MeowError(
                "`train.trainable` goes with full fine-tuning; with `train.lora`, name its `layers`."
            )
        changed["trainable"] = None
    if "idk" in preset.reads:
        changed["idk_answers"] = spec.idk_answers
    settings = {**preset.settings, **spec.settings}
    for name, value in settings.items():
        if value is Parameter.empty:
            raise MeowError(
                f"`train.settings.{name}` is not set, and {spec.objective} has no default for it."
            )
        if isinstance(preset.settings[name], int):
            settings[name] = int(value)
    return replace(preset, settings=settings, **changed)


def _own(name: str, source: str) -> ObjectiveSpec:
    """Reads roles, settings and their defaults from the parameters of a user's function."""
    spec = ObjectiveSpec(name.rpartition(":")[2], (), source=source)
    try:
        function = spec.load()
        parameters = signature(function).parameters.values()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's file does
        raise MeowError(f"`train.objective`: {name} cannot be used: {error!r}.") from None
    settings = {p.name: p.default for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    reads = tuple(p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY)
    unknown = [role for role in reads if role not in ROLES]
    if unknown or not reads:
        raise MeowError(
            f"`train.objective`: {name} takes {', '.join(unknown) or 'nothing'} in front of its settings; "
            f"there are {', '.join(ROLES)}."
        )
    for key, value in settings.items():
        if value is not Parameter.empty and not (
            isinstance(value, int | float) and isfinite(value)
        ):
            raise MeowError(
                f"`train.objective`: the default of {key} in {name} is no finite number."
            )
    return replace(
        spec, reads=reads, settings=settings, reference=getattr(function, "reference", "none")
    )
