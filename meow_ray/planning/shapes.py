"""The shapes of a model, read before any of its weights is loaded."""

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
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Architecture:
    """What of a decoder decides how much memory it takes."""

    weights: Mapping[str, tuple[int, ...]]
    """Shapes of the parameters by name."""
    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward network."""
    heads: int
    vocab: int
    cache_heads: int
    """Heads of keys and values."""
    head_size: int
    context: int
    """The most tokens that it reads."""
    dtype: str
    """What its weights are stored in, or `quantized`."""

    @property
    def parameters(self) -> int:
        """P."""
        return sum(map(prod, self.weights.values()))

    @property
    def largest_layer(self) -> int:
        """L: parameters of the largest module, which ZeRO 3 gathers whole."""
        sizes: dict[str, int] = {}
        for name, shape in self.weights.items():
            module = name.rpartition(".")[0]
            sizes[module] = sizes.get(module, 0) + prod(shape)
        return max(sizes.values())

    @property
    def linear(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the linear layers within the decoder's blocks, by module."""
        found = {
            name.removesuffix(".weight"): shape
            for name, shape in self.weights.items()
            if len(shape) == 2
        }
        return {name: shape for name, shape in found.items() if re.search(r"(^|\.)\d+\.", name)}


def of_target(config: Config) -> tuple[str, Architecture]:
    """Reads name and shapes of the model that is trained: the target, or what `memorize` makes it from.

    Raises:
        MeowError: none is configured, or it cannot be read.
    """
    if config.target.model or config.memorize is None:
        return read(config.target, "target.model")
    return read(config.memorize, "memorize.model")


def read(section: ModelSection | Memorize, key: str) -> tuple[str, Architecture]:
    """Reads name and shapes of a model; of its weights no more than the files' headers.

    Args:
        section: names it.
        key: where in the configuration, for errors.

    Raises:
        MeowError: none is configured, or it cannot be read.
    """
    from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError

    if section.model is None:
        raise MeowError(f"`{key}` is not set: there is no model to plan for.")
    uri = storage.absolute(section.model)
    ref = (
        ModelRef(uri, "") if storage.exists(uri) else refs.pin(section.model, section.revision, key)
    )
    try:
        return storage.display(section.model), _read(
            replace(ref, trust_remote_code=section.trust_remote_code)
        )
    except (
        OSError,
        ValueError,
        KeyError,
        MeowError,
        NotASafetensorsRepoError,
        SafetensorsParsingError,
    ) as error:
        raise MeowError(
            f"`{key}`: the shapes of {storage.display(section.model)} cannot be read: {error}"
        ) from None


def _read(ref: ModelRef) -> Architecture:
    if ref.uri.endswith(".gguf"):
        return _read_gguf(ref.uri)
    if not ref.commit and storage.exists(storage.join(ref.uri, refs.BASE)):
        base = ModelRef(**storage.read_json(storage.join(ref.uri, refs.BASE)))
        return _read(replace(base, trust_remote_code=ref.trust_remote_code))
    from huggingface_hub import is_offline_mode
    from transformers import AutoConfig

    if ref.commit and is_offline_mode():
        ref = ModelRef(str(ref.folder), "", None, ref.trust_remote_code)
    weights = {
        name: shape for name, shape in _weights(ref).items() if len(shape) < 4
    }  # GPT-2 stores masks, too
    with TemporaryDirectory() as folder:
        place = ref.uri
        if not ref.commit and not storage.is_local(ref.uri):
            place = folder
            Path(folder, "config.json").write_bytes(
                storage.read_bytes(storage.join(ref.uri, "config.json"))
            )
        config = AutoConfig.from_pretrained(
            place, revision=ref.commit, trust_remote_code=ref.trust_remote_code
        )
    if config.tie_word_embeddings:  # some files have both names of one weight
        weights.pop("lm_head.weight", None)
    text = config.get_text_config()
    width = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    heads = getattr(text, "num_attention_heads", 0)
    size = getattr(text, "head_dim", None) or text.hidden_size // max(1, heads)
    cache_heads = getattr(text, "num_key_value_heads", None) or heads
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    if getattr(config, "quantization_config", None):
        dtype = "quantized"
    context = getattr(text, "max_position_embeddings", None) or 1 << 20
    sizes = text.num_hidden_layers, text.hidden_size, width, heads, text.vocab_size
    return Architecture(weights, *sizes, cache_heads, size, context, dtype)


def _read_gguf(path: str) -> Architecture:
    from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map

    reader = GGUFReader(path)
    family = reader.fields["general.architecture"].contents()

    def value(name: str, default: Any = None) -> Any:
        found = reader.fields.get(f"{family}.{name}")
        if found is None and default is None:
            raise KeyError(name)
        return default if found is None else found.contents()

    layers, width, heads, context = map(
        value, ("block_count", "feed_forward_length", "attention.head_count", "context_length")
    )
    kv_heads = value("attention.head_count_kv", heads)
    kind = {name: key for key, name in MODEL_ARCH_NAMES.items()}[family]
    names: dict[str, str] = {}  # as transformers has them, which is the first of several
    for name, (_, own) in get_tensor_name_map(kind, layers).mapping.items():
        if name.startswith("model."):
            names.setdefault(own, name)
    weights = {}
    for tensor in reader.tensors:
        module, dot, last = tensor.name.rpartition(".")
        weights[names.get(module, module) + dot + last] = tuple(map(int, reversed(tensor.shape)))
    vocab, hidden = weights["model.embed_tokens.weight"]
    cached = (
        max(kv_heads) if isinstance(kv_heads, list) else kv_heads
    )  # some have a number for each layer
    size = value("attention.key_length", hidden // heads)
    return Architecture(
        weights, layers, hidden, width, heads, vocab, cached, size, context, "float32"
    )


def _weights(ref: ModelRef) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes from the headers of safetensors."""
    if ref.commit:
        from huggingface_hub import get_safetensors_metadata

        files = get_safetensors_metadata(ref.uri, revision=ref.commit).files_metadata.values()
        return {name: tuple(info.shape) for file in files for name, info in file.tensors.items()}
    names = {"model.safetensors"}
    if storage.exists(storage.join(ref.uri, _INDEX)):
        names = set(storage.read_json(storage.join(ref.uri, _INDEX))["weight_map"].values())
    found: dict[str, tuple[int, ...]] = {}
    for uri in (storage.join(ref.uri, name) for name in sorted(names)):
        fs, path = storage.filesystem(uri)
        with storage.naming_errors(uri), fs.open_input_file(path) as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(
                stream.read(min(size, 100_000_000))
            )  # the format allows no longer one
        found |= {
            name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"
        }
    return found
