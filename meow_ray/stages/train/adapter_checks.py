"""What adapters would find wrong only when they are attached, found before the run."""

from collections.abc import Iterator, Sequence
from typing import Any

from meow_ray.config import FineTuning, Lora, Train
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import fila, objectives, structure


def lora_faults(ref: ModelRef, section: str, lora: Lora) -> Iterator[str]:
    """Yields what contradicts itself, and layers for adapters that the model does not have."""
    if lora.gram and lora.output != "adapter":
        yield (
            f"`{section}.lora.gram` needs the adapter by itself. Set {section}.lora.output to "
            f"adapter, or {section}.lora.gram to false."
        )
    model = skeleton(ref)
    if model is None:
        return
    modules = structure.linear_layers(model)
    missing = [name for name in lora.layers if not _is_among(name, modules)]
    if missing:
        names = sorted({module.rpartition(".")[2] for module in modules})
        yield (
            f"`{section}.lora.layers`: the model has no linear layer {', '.join(missing)}. "
            f"Choose from {', '.join(names)}, or [] for all."
        )
    vectors = structure.embeddings(model)
    unmergeable = [name for name in lora.layers if _is_among(name, vectors)]
    if lora.gram and unmergeable:
        yield (
            f"`{section}.lora.gram`: {', '.join(unmergeable)} is an embedding, and `meow merge` "
            f"merges linear layers only. Remove it from {section}.lora.layers, or set "
            f"{section}.lora.gram to false."
        )


def _is_among(name: str, modules: Sequence[str]) -> bool:
    """Whether a name, or the end of one, is that of a module."""
    return any(module == name or module.endswith(f".{name}") for module in modules)


def fila_faults(section: str, spec: FineTuning) -> Iterator[str]:
    """Yields why adapters cannot start from a part of the weights."""
    if not fila.is_configured(spec):
        return
    assert spec.lora is not None
    if not isinstance(spec, Train):
        yield "`memorize.lora.init`: fila needs facts to forget. Set it to zero."
    elif objectives.configured(spec).assistant_blocks:
        yield (
            f"`train.lora.init`: fila reads the whole target, but {spec.objective} trains an "
            "assistant of its first blocks. Set it to zero."
        )
    elif "retain" not in objectives.configured(spec).roles:
        yield (
            "`train.lora.init`: fila compares the facts to forget with a retain set, and this "
            "objective has none. Set `train.kl_weight` or `train.retain_weight`, or choose an "
            "objective with a retain term, such as ihl."
        )
    if spec.lora.quantize != "none":
        yield (
            f"`{section}.lora.init`: fila changes the frozen weights, which `lora.quantize` "
            f"{spec.lora.quantize} keeps in 4 bits. Set `{section}.lora.quantize` to none."
        )


def skeleton(ref: ModelRef) -> Any | None:
    """Returns the model without values, or None if it cannot be made without its weights."""
    try:
        return structure.skeleton(ref)
    except Exception:  # noqa: BLE001 - the code of a model's own may do anything
        return None
