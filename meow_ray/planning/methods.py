"""The methods of fine-tuning that a plan compares: full fine-tuning and LoRA."""

import re
from dataclasses import dataclass
from math import prod
from typing import Literal

from meow_ray.config import Config, Lora
from meow_ray.errors import MeowError
from meow_ray.planning.shapes import Architecture
from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.train.structure import MLP_MATRICES, MLP_OUTPUTS, NUM_BLOCKS


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning, with the sizes of what it holds and updates."""

    name: Literal["full", "lora"]
    parameters: int
    trainable: int
    """Parameters that the optimiser updates."""
    largest_layer: int
    """Parameters of the largest module."""
    weights: int
    """Bytes of all weights."""
    itemsize: int
    """Bytes per element in training."""
    frozen: int = 0
    """Bytes of the frozen copy of the model before training; 0 if the objective needs none."""


def training_methods(
    architecture: Architecture, config: Config, objective: ObjectiveSpec
) -> tuple[Method, Method]:
    """Returns full fine-tuning and LoRA, with the sizes that the configuration gives them.

    Raises:
        MeowError: `train.trainable` or `train.lora.layers` matches no weight of the model.
    """
    trainable = _trainable(architecture, objective)
    itemsize = 2 if config.train.train_dtype == "bfloat16" else 4
    lora = config.train.lora or Lora()
    adapted = _adapted_layers(architecture, lora)
    adapters = lora.rank * sum(map(sum, adapted))
    weights = itemsize * architecture.parameters
    # with masks, each weight that may be dropped has a score, and a copy that is masked
    scores = trainable if objective.masks else 0
    full = Method(
        name="full",
        parameters=architecture.parameters + scores,
        trainable=trainable,
        largest_layer=architecture.largest_layer,
        weights=weights + 2 * itemsize * scores,
        itemsize=itemsize,
        frozen=weights if objective.needs_frozen else 0,
    )
    # PEFT's own adapters are switched off to get the model before training
    needs_copy = objective.needs_frozen and lora.init == "fila"
    base_weights = weights
    if lora.quantize == "nf4":
        # 4 bits per weight, and a float32 scale per 64 weights (arXiv 2305.14314, sec. 2)
        base_weights += int(
            (1 / 2 + 4 / 64 - itemsize) * sum(map(prod, architecture.linear.values()))
        )
    with_adapters = Method(
        name="lora",
        parameters=architecture.parameters + adapters,
        trainable=adapters,
        largest_layer=architecture.largest_layer,
        weights=base_weights + itemsize * adapters,
        itemsize=itemsize,
        frozen=weights if needs_copy else 0,
    )
    return full, with_adapters


def _trainable(architecture: Architecture, objective: ObjectiveSpec) -> int:
    """Returns the number of parameters that full fine-tuning updates."""
    pattern = objective.trainable or ".*"
    if pattern == MLP_OUTPUTS:
        sizes = _mlp_outputs(architecture, objective.layer or 0)
    elif pattern == MLP_MATRICES:
        sizes = _mlp_matrices(architecture)
    else:
        weights = architecture.weights.items()
        sizes = [prod(shape) for name, shape in weights if re.fullmatch(pattern, name)]
    if not sizes:
        raise MeowError(
            f"`train.trainable`: no weight of the model matches the pattern ({pattern}). "
            "Set a pattern that matches names of weights of this model."
        )
    return sum(sizes)


def _mlp_outputs(architecture: Architecture, layer: int) -> list[int]:
    """Returns the sizes of the matrices that RMU updates; see `structure.mlp_outputs`.

    GPT-2 stores its matrices the other way round. What is found there has the same size.
    """
    first = max(0, layer - NUM_BLOCKS + 1)
    block = "|".join(map(str, range(first, layer + 1)))
    return [
        prod(shape)
        for name, shape in architecture.weights.items()
        if re.search(rf"(^|\.)({block})\.", name)
        and "att" not in name
        and len(shape) in (2, 3)
        and shape[-2] == architecture.hidden != shape[-1]
    ]


def _mlp_matrices(architecture: Architecture) -> list[int]:
    """Returns the sizes of the matrices that masks may drop weights of.

    They are those of `structure.mlp_matrices`, here in either orientation.
    """
    hidden = architecture.hidden
    shapes = [
        shape
        for name, shape in architecture.weights.items()
        if re.search(r"(^|\.)\d+\.", name) and "att" not in name and len(shape) in (2, 3)
    ]
    inner = {shape[-1] for shape in shapes if shape[-2] == hidden != shape[-1]}
    widths_in = inner | {2 * width for width in inner}
    return [
        prod(shape)
        for shape in shapes
        if (shape[-1] == hidden and shape[-2] in widths_in)
        or (shape[-2] == hidden and shape[-1] in inner)
    ]


def _adapted_layers(architecture: Architecture, lora: Lora) -> list[tuple[int, ...]]:
    """Returns the shapes of the linear layers that get adapters."""
    suffixes = tuple(f".{name}" for name in lora.layers)
    shapes = [
        shape
        for name, shape in architecture.linear.items()
        if not suffixes or f".{name}".endswith(suffixes)
    ]
    if not shapes:
        raise MeowError(
            f"`train.lora.layers`: the model has no such linear layers ({', '.join(lora.layers)}). "
            "Name linear layers of this model, or remove the key to adapt all of them."
        )
    return shapes
