"""Writing model folders that other programs load, older releases of transformers included.

transformers 5 writes a `config.json` and tokenizer files that transformers 4 misreads: it ignores
`rope_parameters` and runs with its own default. A model that comes from a folder is therefore
written with that folder's own files, byte by byte.
"""

import json
import shutil
from pathlib import Path
from typing import Any

ADAPTER = "adapter_config.json"
"""File of PEFT's configuration in the folder of a LoRA adapter."""
HISTORY_FILE = "training.json"
"""File in the folder of a model that was trained here: one record per training step."""
BASE = "base.json"
"""File in the folder of a LoRA adapter that names its base model."""
ULD = "uld.json"
"""File in the folder of a ULD model, which consists of two models; see `uld`."""
ULD_BASE, ULD_ASSISTANT = "base", "assistant"
"""The folders of the two models in the folder of a ULD model."""
INDEX = "model.safetensors.index.json"
"""File that names the file of each weight if there are several."""
_CONFIG = "config.json"
_GENERATION_CONFIG = "generation_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_COPIED_SUFFIXES = (
    ".json", ".txt", ".model", ".tiktoken", ".bpe", ".spm", ".jinja", ".py", ".md"
)  # fmt: skip
"""Suffixes of files of a source: tokenizer, templates, code and texts; no weights."""
_COPIED_NAMES = ("LICENSE", "NOTICE")
_COPIED_FOLDERS = ("additional_chat_templates",)
_LORA_KEYS = ("peft_type", "r", "lora_alpha", "lora_dropout", "bias", "fan_in_fan_out")
"""Keys of an adapter that are written even if they have their default."""
_NOT_OF_THE_MODEL = (HISTORY_FILE, BASE, ADAPTER)
"""Files in a source's folder that say how it was made."""


def write_like(source: Path, model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Writes weights in the layout of their source, with the source's other files as they are.

    Args:
        source: the folder that the model was loaded from.
        model: the model; says how the tensors of the source were renamed or joined in memory.
        weights: tensors on the CPU by their name in memory.
        folder: an existing folder.
    """
    from transformers import GenerationConfig

    # transformers refuses to write some settings that it accepts when it reads them
    model.generation_config = GenerationConfig()
    model.save_pretrained(folder, state_dict=_named_as_stored(source, model, weights))
    for name in (_CONFIG, _GENERATION_CONFIG):
        (folder / name).unlink(missing_ok=True)
    copy_files(source, folder)


def weights_of(model: Any, dtype: str) -> dict[str, Any]:
    """Returns a model's weights, in a dtype, and its stored buffers, on the CPU by name.

    Tied weights are returned once, under the name that sources store.
    """
    import torch

    target = getattr(torch, dtype)
    weights = {name: value.detach().to(target) for name, value in model.named_parameters()}
    return stored_buffers(model) | weights


def stored_buffers(model: Any) -> dict[str, Any]:
    """Returns the buffers that are stored with a model, on the CPU by name."""
    stored = set(model.state_dict())
    buffers = model.named_buffers()
    return {name: buffer.detach().cpu() for name, buffer in buffers if name in stored}


def copy_files(source: Path, folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """Copies the files of a model's folder that are not weights, except those in `without`."""
    for file in source.iterdir():
        is_text = file.suffix in _COPIED_SUFFIXES or file.stem.upper() in _COPIED_NAMES
        is_excluded = file.name in (*_NOT_OF_THE_MODEL, *without)
        is_index = file.name.endswith(".index.json")
        if file.is_file() and is_text and not is_excluded and not is_index:
            shutil.copyfile(file, folder / file.name)
    for name in _COPIED_FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name, dirs_exist_ok=True)


def write_converted(model: Any, tokenizer: Any, folder: Path) -> None:
    """Writes a model that has no files of its own, so that transformers 4 and 5 load it."""
    model.save_pretrained(folder)
    _write_json(folder / _CONFIG, with_older_names(model.config.to_dict()))
    # transformers before 4.50 reads chat templates only from the tokenizer's configuration
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / _TOKENIZER_CONFIG
    _write_json(path, with_older_tokenizer_names(json.loads(path.read_text())))


def _named_as_stored(source: Path, model: Any, weights: dict[str, Any]) -> dict[str, Any]:
    """Returns weights by the names of a source that leaves out the prefix of the base model."""
    prefix = f"{model.base_model_prefix}."
    with_prefix = {name for name in weights if name.startswith(prefix)}
    if not {name.removeprefix(prefix) for name in with_prefix} <= shapes(source).keys():
        return weights
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}


def name_base(adapter: Path, base: str, revision: str | None) -> None:
    """Names the base model in PEFT's file of an adapter, and keeps the keys that were chosen.

    PEFT before 0.14 refuses keys that it does not know, even if they have their default.
    """
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    path = adapter / ADAPTER
    config = json.loads(path.read_text())
    chosen = {
        key: value
        for key, value in config.items()
        if key in _LORA_KEYS or (key in defaults and value != defaults[key])
    }
    chosen |= {"base_model_name_or_path": base, "revision": revision}
    _write_json(path, chosen)


def with_older_names(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a configuration that also has the keys of transformers 4.

    Args:
        config: a configuration of transformers 5 with all its keys; their defaults have changed.
    """
    older = {key: value for key, value in config.items() if key != "dtype"}
    older["torch_dtype"] = config["dtype"]
    rope = config.get("rope_parameters") or {}
    if "sliding_attention" in rope:  # Gemma 3 rotates local and global attention differently
        older["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            older[key] = rope[key]
    if rope.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in rope.items() if key not in older}
        older["rope_scaling"] = scaling | {"type": rope["rope_type"]}
    return older


def with_older_tokenizer_names(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a tokenizer's configuration with the keys of transformers 4."""
    only_newer = ("backend", "is_local", "local_files_only", "extra_special_tokens")
    older = {key: value for key, value in config.items() if key not in only_newer}
    if config.get("extra_special_tokens"):
        older["additional_special_tokens"] = config["extra_special_tokens"]
    if config.get("tokenizer_class") == "TokenizersBackend":
        older["tokenizer_class"] = "PreTrainedTokenizerFast"
    return older


def shapes(folder: Path) -> dict[str, list[int]]:
    """Returns the shapes of a folder's weights by name."""
    by_name: dict[str, list[int]] = {}
    for file in weight_files(folder):
        by_name |= shapes_in(file)
    return by_name


def shapes_in(file: Path) -> dict[str, list[int]]:
    """Returns the shapes of the tensors in a safetensors file by name."""
    from safetensors import safe_open

    with safe_open(file, "pt") as tensors:
        names = tensors.keys()
        return {name: tensors.get_slice(name).get_shape() for name in names}


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that a model is loaded from; a folder may hold copies."""
    index = folder / INDEX
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
        return sorted(folder / name for name in names)
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
