"""What an objective is: a loss function with its settings, and the terms added to it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, cast, get_args

from meow_ray.config import RetainSource
from meow_ray.core import own_code

Role = Literal["inverted", "forget", "retain", "idk"]
"""The kinds of answers that an objective reads.

They are inverted facts, true answers of the facts to forget, answers of the retain set, and
refusals to answer the questions of the facts to forget.
"""
ROLES: tuple[Role, ...] = get_args(Role)


NEWER = {"newer": True}
"""Marks a field that enters fingerprints only if it is not at its default.

An objective of an earlier version, which had no such field, keeps its fingerprint.
"""


@dataclass(frozen=True)
class ObjectiveSpec:
    """An objective of training: a loss function with its settings, and the terms added to it.

    The loss is `forget_weight` · function + `retain_weight` · cross-entropy on the retain set +
    `kl_weight` · KL to the model before training on the retain set +
    `weight_distance` · distance of the weights from those before training.
    """

    function: str
    """The name of a function of `losses`, or of `source`."""
    reads: tuple[str, ...]
    """The roles that the function takes."""
    reference: Literal["none", "log_probs", "model", "top_k"] = "none"
    """What the function reads of the model before training.

    `log_probs` are computed once, by the stage `reference`; `model` needs a frozen copy. `top_k`,
    the most probable tokens, are computed by the workers before the first step.
    """
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The values of the function's keyword parameters."""
    forget_weight: float = 1.0
    retain_weight: float = 0.0
    kl_weight: float = 0.0
    trainable: str | None = None
    """Regular expression of the parameters that are updated or masked; None is all.

    Or `structure.MLP_OUTPUTS` or `structure.MLP_MATRICES`.
    """
    source: str | None = None
    """The text of a module that defines the function; None for a function of `losses`."""
    idk_answers: tuple[str, ...] = ()
    """Refusals, if the function reads the role `idk`."""
    retain: RetainSource = field(default="given", metadata=NEWER)
    """Where the pairs of the role `retain` come from."""
    kl_reference: Literal["model", "top_k"] = field(default="model", metadata=NEWER)
    """What the KL term reads of the model before training; see `reference`."""
    marks_facts: bool = field(default=False, metadata=NEWER)
    """Whether the function reads which tokens bear the fact."""
    twins: bool = field(default=False, metadata=NEWER)
    """Whether the function reads floors, which are made of the artifact `twins`."""
    until: Literal["epochs", "never_seen"] = field(default="epochs", metadata=NEWER)
    """Whether training ends after its epochs, or when the facts look never seen."""
    max_steps: int = field(default=0, metadata=NEWER)
    """The largest number of optimiser steps with `never_seen`; 0 otherwise."""
    stop_level: float = field(default=0.01, metadata=NEWER)
    """The p-value that the comparisons with facts never seen have to exceed; see `stop`."""
    cooldown: float = field(default=0.0, metadata=NEWER)
    """Steps after the facts look never seen, as a share of those before; see `stop.CoolDown`."""
    scales_learning_rate: bool = field(default=False, metadata=NEWER)
    """Whether the learning rate depends on the width of the model, since none is configured."""
    utility_budget: float | None = field(default=None, metadata=NEWER)
    """The KL on the retain set, in nats per token, to which the KL term's weight is adapted.

    None leaves the weight as it is.
    """
    retain_budget: float | None = field(default=None, metadata=NEWER)
    """The same for the cross-entropy on the retain set and its weight."""
    weight_distance: float = field(default=0.0, metadata=NEWER)
    """Weight of the distance of the weights from those before training; see `weight_distance`."""
    masks: bool = field(default=False, metadata=NEWER)
    """Whether training chooses weights to drop, and changes no others; see `masks`."""
    own_learning_rate: float | None = field(default=None, metadata=NEWER)
    """The learning rate of the objective, since none is configured; None is that of all others."""
    guessed_floors: bool = field(default=False, metadata=NEWER)
    """Whether floors are shifted by the guesses of the generator; see `guesses`."""
    paraphrases: int = field(default=0, metadata=NEWER)
    """Rewordings of each forget question, which are trained on in turn with the question."""
    assistant_blocks: int = field(default=0, metadata=NEWER)
    """Blocks of the assistant that is trained in the place of the target; see `assistant`.

    0 trains the target itself.
    """
    assistant_weight: float = field(default=0.0, metadata=NEWER)
    """By how much the assistant's logits count in an answer; see `engines.uld`."""
    assistant_filter: float = field(default=0.0, metadata=NEWER)
    """Share of the largest probability below which the assistant has no say; see `engines.uld`."""

    @property
    def retains_given(self) -> bool:
        """Whether it reads the user's retain set."""
        return "retain" in self.roles and self.retain in ("given", "both")

    @property
    def retains_neighbours(self) -> bool:
        """Whether it reads the artifact `neighbours`."""
        return "retain" in self.roles and self.retain in ("neighbours", "both")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the pairs that a step reads."""
        reads_retain = "retain" in self.reads
        weighs_retain = bool(self.retain_weight or self.kl_weight)
        return (*self.reads, "retain") if weighs_retain and not reads_retain else self.reads

    @property
    def needs_frozen(self) -> bool:
        """Whether training needs a frozen copy of the model before training."""
        return self.reference == "model" or (bool(self.kl_weight) and self.kl_reference == "model")

    @property
    def cached_roles(self) -> tuple[str, ...]:
        """The roles whose most probable tokens before training are read."""
        own = self.reads if self.reference == "top_k" else ()
        adds_retain = self.kl_weight and self.kl_reference == "top_k" and "retain" not in own
        return (*own, "retain") if adds_retain else own

    @property
    def watches_facts(self) -> bool:
        """Whether training reads the artifact `twins`."""
        return self.twins or self.until == "never_seen"

    def identity(self) -> dict[str, Any]:
        """Returns the fields that enter fingerprints."""
        values = asdict(self)
        without_effect = [
            entry.name
            for entry in fields(self)
            if entry.metadata.get("newer") and values[entry.name] == entry.default
        ]
        if "retain" not in self.roles:
            without_effect.append("retain")
        return {name: value for name, value in values.items() if name not in without_effect}

    @property
    def mask_ratio(self) -> float | None:
        """The share of weights that masks drop; None without masks."""
        ratio: float | None = self.settings["ratio"] if self.masks else None
        return ratio

    @property
    def layer(self) -> int | None:
        """The block whose activations the function reads, from 0; None if it reads none."""
        return self.settings.get("layer")

    def load(self) -> Callable[..., Any]:
        """Returns the function; if it is a user's, this runs the text of its module."""
        if self.source is None:
            from meow_ray.stages.train import losses

            return cast(Callable[..., Any], getattr(losses, self.function))
        module = own_code.run(self.source, "train_objective", "train.objective")
        return cast(Callable[..., Any], getattr(module, self.function))
