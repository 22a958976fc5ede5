"""Merging the adapters of several requests into one model; `fusion` has the arithmetic."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.config import Target
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models import folders, refs
from meow_ray.models.ends import declare_end
from meow_ray.models.folders import ADAPTER
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import fusion
from meow_ray.stages.train.fusion import Method
from meow_ray.stages.train.gram import GRAM_FILE, WRAPPER

_WEIGHTS = "adapter_model.safetensors"
_DOWN = ".lora_A.weight"
_UP = ".lora_B.weight"
"""How PEFT ends the names of the two matrices of an adapted layer, `[rank, in]`, `[out, rank]`."""


@dataclass(frozen=True)
class Recipe:
    """How changes become one change."""

    method: Method
    density: float | None
    """The share of entries that `ties` keeps; None for other methods."""
    scale: float
    """The merged change is multiplied by this."""

    def merge(self, changes: Sequence[Any], roots: Sequence[Any]) -> Any:
        """Returns the merged change of one layer, `[out, in]`; see `fusion`.

        Args:
            changes: those of the requests, each `[out, in]`.
            roots: of the layer's Gram matrices; only `gram` reads them.
        """
        if self.method == "gram":
            merged = fusion.gram(changes, roots)
        elif self.method == "ties":
            assert self.density is not None
            merged = fusion.ties(changes, self.density)
        else:
            merged = fusion.linear(changes)
        return self.scale * merged


@dataclass(frozen=True)
class Adapter:
    """The adapter of a request, as training exported it."""

    name: str
    """The name of its run, for errors."""
    uri: str
    digest: str

    @property
    def folder(self) -> Path:
        """A local folder with its files; it is not merged into its base."""
        return storage.local_copy(self.uri, self.digest)

    @property
    def scaling(self) -> float:
        """The factor of the product of its two matrices: alpha / rank."""
        config = json.loads((self.folder / ADAPTER).read_text())
        return float(config["lora_alpha"] / config["r"])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shapes `[out, in]` of the changes, by the name of the layer.

        Raises:
            MeowError: the adapter changes something else than linear layers.
        """
        shapes = folders.shapes_in(self.folder / _WEIGHTS)
        other = next((key for key in shapes if not key.endswith((_DOWN, _UP))), None)
        if other is not None:
            raise MeowError(
                f"{self.name}: the adapter changes more than linear layers ({other}), which cannot "
                "be merged. Train this request with other train.lora.layers."
            )
        return {
            key.removeprefix(WRAPPER).removesuffix(_DOWN): (
                shapes[key.removesuffix(_DOWN) + _UP][0],
                shape[1],
            )
            for key, shape in shapes.items()
            if key.endswith(_DOWN)
        }


def write(
    adapters: Sequence[Adapter], base: ModelRef, recipe: Recipe, prompt: Target, uri: str
) -> int:
    """Writes the base model with the merged change of all adapters; returns the number of layers.

    The model is as large as the base and has its files. The changes are computed one layer at a
    time, in float64.

    Args:
        adapters: at least two adapters of the base.
        base: the model that all requests started from.
        recipe: how their changes become one.
        prompt: the section that says how a question becomes a prompt, and so how an answer ends.
        uri: a new folder.

    Raises:
        MeowError: the adapters do not have the same layers, or Gram matrices are missing.
    """
    layers = common_layers(adapters)
    needs_gram = recipe.method == "gram"
    if needs_gram:
        for adapter in adapters:
            _check_gram(adapter)
    model = refs.load_in_float32(base)
    with ExitStack() as stack:
        changes = [_opened(adapter.folder / _WEIGHTS, stack) for adapter in adapters]
        scalings = [adapter.scaling for adapter in adapters]
        grams = [_opened(adapter.folder / GRAM_FILE, stack) for adapter in adapters if needs_gram]
        for layer in layers:
            own = [_change(file, layer, by) for file, by in zip(changes, scalings, strict=True)]
            roots = [file.get_tensor(layer) for file in grams]
            _add(model.get_submodule(layer), recipe.merge(own, roots))
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        weights = folders.weights_of(model, refs.stored_dtype(base))
        folders.write_like(base.folder, model, weights, folder)
        declare_end(folder, Prompter.of(refs.load_tokenizer(base), prompt).end)
        storage.copy_folder(str(folder), uri)
    return len(layers)


def common_layers(adapters: Sequence[Adapter]) -> list[str]:
    """Returns the names of the adapted layers, which have to be the same in all adapters.

    The ranks may differ.

    Raises:
        MeowError: a layer is missing in one of them, or something else is changed.
    """
    first = adapters[0]
    for other in adapters[1:]:
        difference = _difference(first.shapes, other.shapes)
        if difference is not None:
            raise MeowError(
                f"{first.name} and {other.name}: the adapters are not on the same layers "
                f"({difference}). Train all requests with the same train.lora.layers."
            )
    return sorted(first.shapes)


def _difference(
    first: Mapping[str, tuple[int, int]], second: Mapping[str, tuple[int, int]]
) -> str | None:
    """Returns the first difference between the layers of two adapters; None if there is none."""
    for layer in sorted(first.keys() | second.keys()):
        if layer not in second:
            return f"{layer} is only in the first"
        if layer not in first:
            return f"{layer} is only in the second"
        if first[layer] != second[layer]:
            return f"{layer} has the shapes {list(first[layer])} and {list(second[layer])}"
    return None


def _check_gram(adapter: Adapter) -> None:
    """Refuses Gram matrices that are not those of the adapter's layers."""
    found = folders.shapes_in(adapter.folder / GRAM_FILE)
    for layer, (_, width) in adapter.shapes.items():
        if layer not in found or found[layer][-1] != width:
            raise MeowError(
                f"{adapter.name}: {GRAM_FILE} has no Gram matrix of the layer {layer} (width "
                f"{width}). Train this request again, or merge with --method linear or ties."
            )


def _opened(path: Path, stack: ExitStack) -> Any:
    """Returns an open file of tensors, which a stack closes."""
    from safetensors import safe_open

    return stack.enter_context(safe_open(path, "pt"))


def _change(file: Any, layer: str, scaling: float) -> Any:
    """Returns the change of an adapter to a layer, `[out, in]` in float64."""
    down = file.get_tensor(f"{WRAPPER}{layer}{_DOWN}").double()
    up = file.get_tensor(f"{WRAPPER}{layer}{_UP}").double()
    return scaling * (up @ down)


def _add(module: Any, change: Any) -> None:
    """Adds a change, `[out, in]`, to the weight of a layer."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):  # the linear layers of GPT-2 store `[in, out]`
        change = change.T
    module.weight.data += change.to(module.weight.dtype)
