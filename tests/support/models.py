"""Folders of models without weights: a configuration, a tokenizer, and what else a check reads."""

import json
from pathlib import Path
from typing import Any

from meow_ray.models.refs import ModelRef

SIZES: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def llama_config(**changes: Any) -> dict[str, Any]:
    """Returns the values of a small Llama's `config.json`."""
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES, **changes}


def write_model(folder: Path, tokenizer: Any, config: dict[str, Any]) -> ModelRef:
    """Writes a model's configuration and tokenizer into a folder, and a file for weights."""
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return ModelRef(str(folder), digest=str(folder))
