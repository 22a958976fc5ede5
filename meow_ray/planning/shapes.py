"""The shapes of a model's weights, read from configuration and file headers without its weights."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.config import Config, Memorize, ModelSection
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models import refs, uld
from meow_ray.models.folders import BASE, ULD_ASSISTANT, ULD_BASE
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train.assistant import num_blocks
from meow_ray.stages.train.objective_spec import ObjectiveSpec

Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by name."""

_INDEX = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000
"""The longest header that the safetensors format allows."""


@dataclass(frozen=True)
class Architecture:
    """The properties of a decoder that decide how much memory it takes."""

    weights: Mapping[str, tuple[int, ...]]
    """Shapes of the parameters by name."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward network."""
    heads: int
    vocab: int
    cache_heads: int
    """Number of key and value heads."""
    head_size: int
    context: int
    """The longest sequence that the model reads, in tokens."""
    dtype: str
    """The type in which the weights are stored, or `quantized`."""

    @property
    def parameters(self) -> int:
        """Returns the number of parameters, called P in the formulas of `memory`."""
        return sum(map(prod, self.weights.values()))

    @property
    def largest_layer(self) -> int:
        """Returns the parameters of the largest module, called L; ZeRO 3 gathers it whole."""
        sizes: dict[str, int] = {}
        for name, shape in self.weights.items():
            module = name.rpartition(".")[0]
            sizes[module] = sizes.get(module, 0) + prod(shape)
        return max(sizes.values())

    @property
    def linear(self) -> Shapes:
        """Returns the shapes of the linear layers within the decoder's blocks, by module."""
        matrices = {
            name.removesuffix(".weight"): shape
            for name, shape in self.weights.items()
            if len(shape) == 2
        }
        return {name: shape for name, shape in matrices.items() if re.search(r"(^|\.)\d+\.", name)}


def trained_shapes(architecture: Architecture, objective: ObjectiveSpec) -> Architecture:
    """Returns the shapes of what an objective trains: the target, or an assistant of its blocks."""
    if not objective.assistant_blocks:
        return architecture
    blocks = num_blocks(objective.assistant_blocks, architecture.layers)

    def is_kept(name: str) -> bool:
        number = re.search(r"(?:^|\.)(\d+)\.", name)
        return number is None or int(number[1]) < blocks

    weights = {name: shape for name, shape in architecture.weights.items() if is_kept(name)}
    return replace(architecture, weights=weights, layers=blocks)


def target_shapes(config: Config) -> tuple[str, Architecture]:
    """Reads the name and the shapes of the target, or of the model from which `memorize` makes it.

    Raises:
        MeowError: no model is configured, or it cannot be read.
    """
    if config.target.model or config.memorize is None:
        return read_shapes(config.target, "target.model")
    return read_shapes(config.memorize, "memorize.model")


def read_shapes(section: ModelSection | Memorize, key: str) -> tuple[str, Architecture]:
    """Reads the name and the shapes of a model; of its weight files it reads only the headers.

    Args:
        section: the section of the configuration that names the model.
        key: the configuration key of the model's name, for errors.

    Raises:
        MeowError: no model is configured, or it cannot be read.
    """
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    if section.model is None:
        raise MeowError(f"`{key}`: not set. Set it to the model to plan for.")
    name = storage.display(section.model)
    uri = storage.absolute(section.model)
    if storage.exists(uri):
        ref = ModelRef(uri, "")
    else:
        ref = refs.pin(section.model, section.revision, key)
    try:
        return name, _read(replace(ref, trust_remote_code=section.trust_remote_code))
    except (
        OSError,
        ValueError,
        KeyError,
        MeowError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    ) as error:
        raise MeowError(f"`{key}`: the shapes of {name} cannot be read: {error}") from None


def _read(ref: ModelRef) -> Architecture:
    if ref.uri.endswith(".gguf"):
        return _read_gguf(ref.uri)
    if not ref.commit and storage.exists(storage.join(ref.uri, BASE)):
        base = ModelRef(**storage.read_json(storage.join(ref.uri, BASE)))
        return _read(replace(base, trust_remote_code=ref.trust_remote_code))
    if uld.is_uld(ref):
        return _read_uld(ref)
    from huggingface_hub import is_offline_mode

    if ref.commit and is_offline_mode():
        ref = ModelRef(str(ref.folder), "", None, ref.trust_remote_code)
    # GPT-2 stores its attention masks, of four dimensions, with the weights
    weights = {name: shape for name, shape in _stored_shapes(ref).items() if len(shape) < 4}
    config = _read_config(ref)
    if config.tie_word_embeddings:  # some files store the tied weight under both names
        weights.pop("lm_head.weight", None)
    text_config = config.get_text_config()
    hidden = text_config.hidden_size
    heads = getattr(text_config, "num_attention_heads", 0)
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    if getattr(config, "quantization_config", None):
        dtype = "quantized"
    return Architecture(
        weights=weights,
        layers=text_config.num_hidden_layers,
        hidden=hidden,
        intermediate=getattr(text_config, "intermediate_size", None) or 4 * hidden,
        heads=heads,
        vocab=text_config.vocab_size,
        cache_heads=getattr(text_config, "num_key_value_heads", None) or heads,
        head_size=getattr(text_config, "head_dim", None) or hidden // max(1, heads),
        context=refs.context_of(config) or refs.MOST_TOKENS,
        dtype=dtype,
    )


def _read_uld(ref: ModelRef) -> Architecture:
    """Returns a ULD model as one with the weights and the layers of both its models."""
    base, assistant = (
        _read(replace(ref, uri=storage.join(ref.uri, name))) for name in (ULD_BASE, ULD_ASSISTANT)
    )
    of_assistant = {f"assistant.{name}": shape for name, shape in assistant.weights.items()}
    return replace(
        base, weights={**base.weights, **of_assistant}, layers=base.layers + assistant.layers
    )


def _read_config(ref: ModelRef) -> Any:
    """Returns the model's transformers configuration; copies it from object storage first."""
    from transformers import AutoConfig

    with TemporaryDirectory() as copy:
        folder = ref.uri
        if not ref.commit and not storage.is_local(ref.uri):
            folder = copy
            content = storage.read_bytes(storage.join(ref.uri, "config.json"))
            Path(copy, "config.json").write_bytes(content)
        return AutoConfig.from_pretrained(
            folder, revision=ref.commit, trust_remote_code=ref.trust_remote_code
        )


def _read_gguf(path: str) -> Architecture:
    from gguf import GGUFReader

    reader = GGUFReader(path)
    family = reader.fields["general.architecture"].contents()

    def value(name: str, default: Any = None) -> Any:
        entry = reader.fields.get(f"{family}.{name}")
        if entry is None and default is None:
            raise KeyError(name)
        return default if entry is None else entry.contents()

    layers, heads = value("block_count"), value("attention.head_count")
    cache_heads = value("attention.head_count_kv", heads)
    if isinstance(cache_heads, list):  # some models have one number per layer
        cache_heads = max(cache_heads)
    weights = _gguf_weights(reader.tensors, family, layers)
    vocab, hidden = weights["model.embed_tokens.weight"]
    return Architecture(
        weights=weights,
        layers=layers,
        hidden=hidden,
        intermediate=value("feed_forward_length"),
        heads=heads,
        vocab=vocab,
        cache_heads=cache_heads,
        head_size=value("attention.key_length", hidden // heads),
        context=value("context_length"),
        dtype="float32",
    )


def _gguf_weights(tensors: Any, family: str, layers: int) -> Shapes:
    """Returns the shapes of a GGUF file's tensors under the names that transformers gives them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = {name: key for key, name in MODEL_ARCH_NAMES.items()}[family]
    transformers_names: dict[str, str] = {}
    for name, (_, gguf_name) in get_tensor_name_map(kind, layers).mapping.items():
        if name.startswith("model."):  # the first of several is the name in transformers
            transformers_names.setdefault(gguf_name, name)
    weights: Shapes = {}
    for tensor in tensors:
        module, dot, suffix = tensor.name.rpartition(".")
        name = transformers_names.get(module, module) + dot + suffix
        weights[name] = tuple(map(int, reversed(tensor.shape)))
    return weights


def _stored_shapes(ref: ModelRef) -> Shapes:
    """Returns names and shapes of the tensors in a model's safetensors files."""
    if ref.commit:
        from huggingface_hub import get_safetensors_metadata

        files = get_safetensors_metadata(ref.uri, revision=ref.commit).files_metadata.values()
        return {name: tuple(info.shape) for file in files for name, info in file.tensors.items()}
    names = {"model.safetensors"}
    if storage.exists(storage.join(ref.uri, _INDEX)):
        names = set(storage.read_json(storage.join(ref.uri, _INDEX))["weight_map"].values())
    shapes: Shapes = {}
    for name in sorted(names):
        shapes |= _header_shapes(storage.join(ref.uri, name))
    return shapes


def _header_shapes(uri: str) -> Shapes:
    """Returns names and shapes of the tensors in one safetensors file."""
    fs, path = storage.filesystem(uri)
    with storage.naming_errors(uri), fs.open_input_file(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(size, _MAX_HEADER_BYTES)))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
