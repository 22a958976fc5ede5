"""Models by reference: pinning a name to content, and providing its files on this machine."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

from meow_ray.core import hub_cache, local_cache, uris
from meow_ray.errors import MeowError
from meow_ray.models import folders
from meow_ray.models.ends import declared_ends
from meow_ray.models.folders import ADAPTER, BASE, ULD, ULD_BASE

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
"""Suffixes of weights that can run code when they are loaded."""
UNUSED = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.ot", "*.onnx",
    "*.tflite", "*.gguf", "original/*"
)  # fmt: skip
"""Files of a hub model that are not downloaded: weights in other formats."""
TOKENIZER = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json"}
"""Files of which a model's tokenizer has at least one."""
_CACHE_VERSION = 2
"""Raised whenever converted or merged models are written differently."""
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
_CLOCK = b"strftime_now"
_GGUF_HEADER = 64 << 20
"""Bytes of a .gguf file that surely hold its chat template."""
MOST_TOKENS = 1 << 20
"""The context length of a model that declares none. A longer one is taken for none."""
CONTEXT_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_length",
    "max_seq_len",
    "seq_length",
    "seq_len",
    "context_length",
    "model_max_length",
    "n_ctx",
)
"""The names under which configurations of models declare a context length."""


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
            return _downloaded(self.uri, self.commit) or _download(self.uri, self.commit)
        if self.uri.endswith(".gguf"):
            return _converted(self.uri, self.digest)
        folder = _local_copy(self.uri, self.digest)
        return _merged_once(folder, self) if (folder / ADAPTER).exists() else folder

    @property
    def settings_folder(self) -> Path:
        """A local folder with the configuration and the tokenizer of the model.

        The weights of a hub model are not downloaded, and a LoRA adapter is not merged. Of a ULD
        model it is the folder of the target.
        """
        if self.commit:
            from huggingface_hub import snapshot_download

            without = [*UNUSED, "*.safetensors"]
            return Path(snapshot_download(self.uri, revision=self.commit, ignore_patterns=without))
        if self.uri.endswith(".gguf"):
            return self.folder
        folder = _local_copy(self.uri, self.digest)
        if (folder / ULD).exists():
            return folder / ULD_BASE
        return _base_of(folder, self).settings_folder if (folder / ADAPTER).exists() else folder


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
    from meow_ray.core import storage

    uri = uris.absolute(model)
    is_gguf = model.endswith(".gguf")
    if storage.exists(uri):
        if not is_gguf:
            _check_folder(uri, model, key)
        digest = storage.content_digest(uri, verify=verify)
        return ModelRef(uri, digest, commit=None, trust_remote_code=trust_remote_code)
    looks_like_path = not uris.is_local(model) or model.startswith((".", "/", "~")) or is_gguf
    if looks_like_path or model.count("/") != 1:
        raise MeowError(
            f"`{key}`: there is no model at {uris.display(model)}. "
            "Name a model folder, a .gguf file or a hub model."
        )
    commit = _hub_commit(model, revision, key)
    return ModelRef(model, f"{model}@{commit}", commit=commit, trust_remote_code=trust_remote_code)


@cache
def load_tokenizer(ref: ModelRef) -> Any:
    """Loads a model's tokenizer, with an end token if any file of the model names one.

    A tokenizer without a padding token pads with another one, which attention masks hide.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        ref.settings_folder, trust_remote_code=ref.trust_remote_code
    )
    declared = declared_ends(ref.settings_folder)
    if tokenizer.eos_token is None and declared:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(declared[0])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


@cache
def writes_date(ref: ModelRef) -> bool:
    """Tells whether the chat template of a model writes the date.

    Templates get the date from the function `strftime_now`. No model or tokenizer is loaded.
    """
    if ref.uri.endswith(".gguf"):
        with open(ref.uri, "rb") as file:
            return _CLOCK in file.read(_GGUF_HEADER)
    return any(_CLOCK in _file_of(ref, name) for name in _TEMPLATE_FILES)


def _file_of(ref: ModelRef, name: str) -> bytes:
    """Returns a small file of a model; empty if it does not exist."""
    from meow_ray.core import storage

    if not ref.commit:
        base = uris.join(ref.uri, BASE)
        if storage.exists(base):
            return _file_of(ModelRef(**storage.read_json(base)), name)
        folder = (ULD_BASE,) if storage.exists(uris.join(ref.uri, ULD)) else ()
        uri = uris.join(ref.uri, *folder, name)
        return storage.read_bytes(uri) if storage.exists(uri) else b""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(ref.uri, name, revision=ref.commit)).read_bytes()
    except (EntryNotFoundError, LocalEntryNotFoundError):
        return b""


@cache
def load_model_config(ref: ModelRef) -> Any:
    """Loads a model's `config.json` as a configuration of transformers."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(ref.settings_folder, trust_remote_code=ref.trust_remote_code)


def context_length(ref: ModelRef, limit: int | None) -> int:
    """Returns how many tokens a model may read: its own limit, or `limit` if that is lower.

    A model whose configuration declares no limit has that of its tokenizer.
    """
    declared = declared_context(ref) or load_tokenizer(ref).model_max_length
    return min(length for length in (declared, limit, MOST_TOKENS) if length)


def declared_context(ref: ModelRef) -> int | None:
    """Returns the context length that a model's configuration declares, or None."""
    return context_of(load_model_config(ref))


def context_of(config: Any) -> int | None:
    """Returns the context length that a configuration of transformers declares, or None.

    Models with parts of several kinds declare it in the configuration of their text model.
    """
    for part in (config, config.get_text_config()):
        for name in CONTEXT_NAMES:
            length = getattr(part, name, None)
            if isinstance(length, int) and length > 0:
                return length
    return None


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


def load_in_float32(ref: ModelRef) -> Any:
    """Loads a model in float32 on the CPU."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        ref.folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=ref.trust_remote_code,
    )


def merged(base: ModelRef, adapter: Path) -> Any:
    """Loads a model with a LoRA adapter merged into it, in float32 on the CPU."""
    from peft import PeftModel

    return PeftModel.from_pretrained(load_in_float32(base), adapter).merge_and_unload()


def _local_copy(uri: str, digest: str) -> Path:
    """Returns a local folder with the files of a model; a remote one is downloaded once."""
    if uris.is_local(uri):  # needs no library of `storage`
        return Path(uris.absolute(uri))
    from meow_ray.core import storage

    return storage.local_copy(uri, digest)


def _base_of(adapter: Path, ref: ModelRef) -> ModelRef:
    """Returns the base model of an adapter."""
    base = ModelRef(**json.loads((adapter / BASE).read_text()))
    return replace(base, trust_remote_code=ref.trust_remote_code)


def _merged_once(adapter: Path, ref: ModelRef) -> Path:
    """Returns a folder in this machine's cache with an adapter merged into its base model."""

    def merge(folder: Path) -> None:
        base = _base_of(adapter, ref)
        model = merged(base, adapter)
        weights = folders.weights_of(model, stored_dtype(base))
        folders.write_like(base.folder, model, weights, folder)

    return _in_cache(f"merged-{ref.digest[:32]}", merge)


def _in_cache(name: str, make: Callable[[Path], None]) -> Path:
    from meow_ray.core import storage

    target = local_cache.cache_home() / "models" / f"{name}-{_CACHE_VERSION}"
    with storage.naming_errors(str(target)):
        return local_cache.made_once(target, make)


def _check_folder(uri: str, model: str, key: str) -> None:
    from meow_ray.core import storage

    files = storage.list_files(uri)
    where = f"`{key}`: {uris.display(model)}"
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
        info = HfApi().model_info(model, revision=revision, timeout=hub_cache.TIMEOUT)
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
    folder = _downloaded(model, revision)
    if folder is None:
        raise MeowError(
            f"`{key}`: there is no folder {model}, and the hub cannot be reached to look for a "
            "model of that name. This machine has no whole copy of it either. Check the name and "
            "the network, or download the model where there is a network."
        )
    return folder.name


def _downloaded(model: str, revision: str | None) -> Path | None:
    """Returns the folder of a hub model if all that it needs is on this machine."""
    folders = hub_cache.snapshots(model, revision, "model")
    return next((folder for folder in folders if _is_whole(folder)), None)


def _is_whole(folder: Path) -> bool:
    """Tells whether a folder has the configuration, all weights and the tokenizer of a model."""
    names = {path.name for path in folder.iterdir() if path.exists()}
    weights = {name for name in names if name.endswith(".safetensors")}
    if not weights or not hub_cache.has_all_shards(weights):
        return False
    return "config.json" in names and bool(names & TOKENIZER)


def _download(model: str, commit: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, revision=commit, ignore_patterns=list(UNUSED)))


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
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        folders.write_converted(model, tokenizer, folder)

    return _in_cache(f"{Path(uri).stem}-{digest[:12]}", convert)
