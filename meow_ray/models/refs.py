"""Models by reference: pinning a name to content, and providing its files on this machine."""

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
"""Suffixes of weights that can run code when they are loaded."""
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
"""Files of a hub model that are not downloaded: weights in other formats."""
ADAPTER = "adapter_config.json"
"""File of PEFT's configuration in the folder of a LoRA adapter."""
BASE = "base.json"
"""File in the folder of a LoRA adapter that names its base model."""
MOST_TOKENS = 1 << 20
"""The context length of a model that declares none."""


@dataclass(frozen=True)
class ModelRef:
    """A model that is identified by its content."""

    uri: str
    """URI of a folder or a .gguf file, or a hub name."""
    digest: str
    """Hash of the files; for a hub model its name and commit."""
    commit: str | None = None
    """The commit of a hub model; None for files."""
    trust_remote_code: bool = False

    @property
    def folder(self) -> Path:
        """A local folder with the model in safetensors.

        A hub model or a remote folder is downloaded once per machine. A GGUF file is converted once
        and a LoRA adapter is merged into its base model once.
        """
        if self.commit:
            from huggingface_hub import snapshot_download

            path = snapshot_download(self.uri, revision=self.commit, ignore_patterns=list(UNUSED))
            return Path(path)
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
    """Returns a reference to the present content of a model.

    Args:
        model: a folder, a .gguf file, or a hub name.
        revision: branch, tag or commit of a hub model; None for its main branch.
        key: the configuration key that names the model, for error messages.
        trust_remote_code: whether code of the model's repository may run.
        verify: whether files are hashed again even if their size and time are unchanged.

    Raises:
        MeowError: there is no such model, or it has no safetensors.
    """
    uri = storage.absolute(model)
    is_gguf = model.endswith(".gguf")
    if storage.exists(uri):
        if not is_gguf:
            _check_folder(uri, model, key)
        digest = storage.content_digest(uri, verify=verify)
        return ModelRef(uri, digest, commit=None, trust_remote_code=trust_remote_code)
    looks_like_path = not storage.is_local(model) or model.startswith((".", "/", "~")) or is_gguf
    if looks_like_path or model.count("/") != 1:
        raise MeowError(
            f"`{key}`: there is no model at {storage.display(model)}. "
            "Name a model folder, a .gguf file or a hub model."
        )
    commit = _hub_commit(model, revision, key)
    return ModelRef(model, f"{model}@{commit}", commit=commit, trust_remote_code=trust_remote_code)


@cache
def load_tokenizer(ref: ModelRef) -> Any:
    """Loads a model's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ref.folder, trust_remote_code=ref.trust_remote_code)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@cache
def load_model_config(ref: ModelRef) -> Any:
    """Loads a model's `config.json` as a configuration of transformers."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(ref.folder, trust_remote_code=ref.trust_remote_code)


def context_length(ref: ModelRef, limit: int | None) -> int:
    """Returns how many tokens a model may read: its own limit, or `limit` if that is lower."""
    declared = getattr(load_model_config(ref), "max_position_embeddings", None)
    return min(length for length in (declared, limit, MOST_TOKENS) if length)


def is_longrope(ref: ModelRef) -> bool:
    """Tells whether the position encoding of a model depends on the context length it is given."""
    rope = getattr(load_model_config(ref), "rope_parameters", None) or {}
    scalings = [rope, *rope.values()]  # of the model, or of each type of its layers
    return any(
        isinstance(scaling, dict) and scaling.get("rope_type") == "longrope" for scaling in scalings
    )


def stored_dtype(ref: ModelRef) -> str:
    """Returns the dtype of a model's stored weights, such as `bfloat16`."""
    dtype = getattr(load_model_config(ref), "dtype", None)
    return str(dtype).removeprefix("torch.") if dtype else "float32"


def forward_parameters(model: Any) -> set[str]:
    """Returns the names of the parameters of a model's forward pass."""
    return set(signature(type(model).forward).parameters)


def write_base(base: ModelRef, adapter: Path) -> None:
    """Records in the folder of an adapter which base model it belongs to."""
    (adapter / BASE).write_text(json.dumps(asdict(base)))


def merged(base: ModelRef, adapter: Path) -> Any:
    """Loads a model with a LoRA adapter merged into it, in float32 on the CPU."""
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
    """Returns a folder in this machine's cache with an adapter merged into its base model."""

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
    where = f"`{key}`: {storage.display(model)}"
    if ADAPTER in files and BASE not in files:
        raise MeowError(
            f"{where} is a LoRA adapter without {BASE}, the file that names its base model. "
            "Merge the adapter into its base model first."
        )
    if "config.json" not in files and ADAPTER not in files:
        raise MeowError(
            f"{where} is not a model folder (config.json is missing). "
            "Name a folder of a Hugging Face model."
        )
    if any(name.endswith(".safetensors") for name in files):
        return
    pickled = [name for name in files if name.endswith(PICKLED)]
    if pickled:
        raise MeowError(
            f"{where} has pickled weights ({pickled[0]}), which can run code when they are loaded. "
            "Convert them to safetensors first."
        )
    raise MeowError(f"{where} has no weights. Name a folder with *.safetensors files.")


def _hub_commit(model: str, revision: str | None, key: str) -> str:
    """Returns the commit of a hub model; without a network, that of its copy on this machine."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(model, revision=revision)
    except GatedRepoError:
        raise MeowError(
            f"`{key}`: the hub model {model} is gated. "
            "Accept its terms on the hub and set HF_TOKEN."
        ) from None
    except RepositoryNotFoundError:
        raise MeowError(
            f"`{key}`: there is neither a folder nor a hub model {model}. "
            "Check the name; a private model needs HF_TOKEN."
        ) from None
    except Exception:  # noqa: BLE001 - the hub's HTTP library raises errors of many types
        return _downloaded_commit(model, revision, key)
    if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
        raise MeowError(
            f"`{key}`: the hub model {model} has no safetensors; pickled weights are not loaded. "
            "Use a model with safetensors, or convert it first."
        )
    return str(info.sha)


def _downloaded_commit(model: str, revision: str | None, key: str) -> str:
    """Returns the commit of a hub model that this machine has downloaded before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(model, revision=revision, local_files_only=True)
    except (LocalEntryNotFoundError, OSError):
        raise MeowError(
            f"`{key}`: there is no folder {model}, and the hub cannot be reached to look for a "
            "model of that name. Check the name and the network."
        ) from None
    return Path(folder).name


def _converted(uri: str, digest: str) -> Path:
    """Returns a folder in this machine's cache with a GGUF file as float32 safetensors."""

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
