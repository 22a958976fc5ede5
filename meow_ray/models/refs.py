"""From a model's name to a folder of safetensors on this node."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from meow_ray.core import local_cache, storage
from meow_ray.errors import MeowError

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
UNUSED = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.tflite",
    "*.gguf",
    "original/*",
)
"""Files of a hub model that are not fetched: weights in other forms."""
ADAPTER, BASE = "adapter_config.json", "base.json"
"""Stand in the folder of a LoRA adapter: PEFT's configuration, and the model that it belongs to."""


@dataclass(frozen=True)
class ModelRef:
    """A model pinned by content: what it is, wherever it lies."""

    uri: str
    """A folder, a .gguf file, or a hub name."""
    digest: str
    commit: str | None = None
    """The hub's commit, for a hub name."""
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path:
        """A local folder with the model.

        Hub and remote models are fetched once a node; GGUF is converted, an adapter merged into its base once.
        """
        if self.commit:
            from huggingface_hub import snapshot_download

            return Path(
                snapshot_download(self.uri, revision=self.commit, ignore_patterns=list(UNUSED))
            )
        if self.uri.endswith(".gguf"):
            return _converted(self.uri, self.digest)
        folder = storage.local_copy(self.uri, self.digest)
        return _merged_once(folder, self) if (folder / ADAPTER).exists() else folder


def pin(
    model: str,
    revision: str | None,
    key: str,
    *,
    trust_remote_code: bool = False,
    verify: bool = False,
) -> ModelRef:
    """Pins a model folder, .gguf file or hub name; `key` is the configuration key that names it.

    Raises:
        MeowError: there is no such model, it has no weights, or only pickled ones.
    """
    uri = storage.absolute(model)
    looks_like_path = (
        not storage.is_local(model) or model.startswith((".", "/", "~")) or model.endswith(".gguf")
    )
    if storage.exists(uri):
        if not model.endswith(".gguf"):
            _check_folder(uri, model, key)
        return ModelRef(uri, storage.content_digest(uri, verify=verify), None, trust_remote_code)
    if looks_like_path or model.count("/") != 1:
        raise MeowError(f"`{key}`: there is no model at {storage.display(model)}.")
    commit = _commit(model, revision, key)
    return ModelRef(model, f"{model}@{commit}", commit, trust_remote_code)


@cache
def load_tokenizer(ref: ModelRef) -> Any:
    """Loads a model's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ref.folder, trust_remote_code=ref.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@cache
def load_config(ref: ModelRef) -> Any:
    """Loads a model's configuration."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(ref.folder, trust_remote_code=ref.trust_remote_code)


def context_length(ref: ModelRef, limit: int | None) -> int:
    """Returns how many tokens a model reads: its own limit, or a lower one from the configuration."""
    own = getattr(load_config(ref), "max_position_embeddings", None)
    return min(x for x in (own, limit, 1 << 20) if x)


def stored_dtype(ref: ModelRef) -> str:
    """Returns the dtype that a model is stored with, such as `bfloat16`."""
    dtype = getattr(load_config(ref), "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype else "float32"


def forward_parameters(model: Any) -> set[str]:
    """Returns the names of what a model's forward pass takes."""
    return set(signature(type(model).forward).parameters)


def write_base(base: ModelRef, adapter: Path) -> None:
    """Notes beside an adapter which model it belongs to."""
    (adapter / BASE).write_text(json.dumps(asdict(base)))


def merged(base: ModelRef, adapter: Path) -> Any:
    """Loads a model and merges a LoRA adapter into it, in float32 on the CPU."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        base.folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=base.trust_remote_code,
    )
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()


def _merged_once(adapter: Path, ref: ModelRef) -> Path:
    """Merges an adapter into its base in this machine's cache, once."""

    def merge(folder: Path) -> None:
        import torch

        base = ModelRef(**json.loads((adapter / BASE).read_text()))
        model = merged(replace(base, trust_remote_code=ref.trust_remote_code), adapter)
        model.to(getattr(torch, stored_dtype(base))).save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)

    return _in_cache(f"merged-{ref.digest[:32]}", merge)


def _in_cache(name: str, make: Callable[[Path], None]) -> Path:
    target = local_cache.cache_home() / "models" / name
    with storage.naming_errors(str(target)):
        return local_cache.made_once(target, make)


def _check_folder(uri: str, model: str, key: str) -> None:
    files = storage.list_files(uri)
    if ADAPTER in files and BASE not in files:
        raise MeowError(
            f"`{key}`: {storage.display(model)} is a LoRA adapter without {BASE}, which names its base model; "
            "merge it first."
        )
    if "config.json" not in files and ADAPTER not in files:
        raise MeowError(
            f"`{key}`: {storage.display(model)} is no model folder, config.json is missing."
        )
    if any(name.endswith(".safetensors") for name in files):
        return
    pickled = [name for name in files if name.endswith(PICKLED)]
    if pickled:
        raise MeowError(
            f"`{key}`: {storage.display(model)} has pickled weights ({pickled[0]}), which can run code when loaded; "
            "convert them to safetensors first."
        )
    raise MeowError(f"`{key}`: {storage.display(model)} has no weights (*.safetensors).")


def _commit(model: str, revision: str | None, key: str) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        info = HfApi().model_info(model, revision=revision)
        if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
            raise MeowError(
                f"`{key}`: the hub model {model} has no safetensors; pickled weights are not loaded."
            )
        return str(info.sha)
    except GatedRepoError:
        raise MeowError(
            f"`{key}`: {model} is gated; accept its terms on the hub and set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise MeowError(
            f"`{key}`: there is neither a folder nor a hub model {model} (private ones need HF_TOKEN)."
        ) from None
    except MeowError:
        raise
    except Exception:  # noqa: BLE001 - whatever the hub's HTTP library raises when nothing answers
        try:  # offline: what this machine has fetched before
            return Path(snapshot_download(model, revision=revision, local_files_only=True)).name
        except (LocalEntryNotFoundError, OSError):
            raise MeowError(
                f"`{key}`: there is no folder {model}, and the hub cannot be reached to look for a model of that name."
            ) from None


def _converted(uri: str, digest: str) -> Path:
    """Converts a GGUF file to a Hugging Face folder in float32, once."""

    def convert(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = Path(uri)
        model = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32
        )
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)

    return _in_cache(f"{Path(uri).stem}-{digest[:12]}", convert)
