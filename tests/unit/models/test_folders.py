"""Tests of model folders that other programs load."""

import json
from pathlib import Path
from typing import Any

import pytest

from meow_ray.models import folders
from tests.support.tiny import ARCHITECTURES, random_model

SCALED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def read_back(folder: Path, written: dict[str, Any]) -> dict[str, Any]:
    from transformers import AutoConfig

    (folder / "config.json").write_text(json.dumps(written))
    return _comparable(AutoConfig.from_pretrained(folder).to_dict())


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a configuration says in its present names, with lists for tuples."""
    older = ("rope_theta", "partial_rotary_factor", "rope_local_base_freq", "_name_or_path")
    return json.loads(json.dumps({k: v for k, v in config.items() if k not in older}))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_transformers_reads_the_older_names_as_its_own(
    kind: str, tiny_tokenizer: Any, tmp_path: Path
):
    config = random_model(kind, tiny_tokenizer).config
    config.dtype = "float32"
    older = folders.with_older_names(config.to_dict())
    assert older["torch_dtype"] == "float32"
    if "rope_theta" in ARCHITECTURES[kind]:
        assert older["rope_theta"] == 500
    assert read_back(tmp_path, older) == _comparable(config.to_dict())


def test_a_scaled_rotation_keeps_its_settings(tmp_path: Path):
    from transformers import LlamaConfig

    config = LlamaConfig(rope_theta=500.0, rope_scaling=dict(SCALED), dtype="bfloat16")
    older = folders.with_older_names(config.to_dict())
    assert older["rope_theta"] == 500
    assert older["rope_scaling"] == SCALED | {"type": "llama3"}
    assert read_back(tmp_path, older)["rope_parameters"] == SCALED | {
        "rope_theta": 500.0,
        "type": "llama3",
    }


def _write_source(kind: str, tokenizer: Any, folder: Path) -> None:
    """Writes a model as sources have it: GPT-2 without the prefix of the language model."""
    model = random_model(kind, tokenizer)
    (model.transformer if kind == "gpt2" else model).save_pretrained(folder)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "qwen2_moe"])
def test_weights_are_written_by_the_names_of_their_source(
    kind: str, tiny_tokenizer: Any, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    source, target = tmp_path / "source", tmp_path / "target"
    _write_source(kind, tiny_tokenizer, source)
    model = AutoModelForCausalLM.from_pretrained(source)
    target.mkdir()
    folders.write_like(source, model, folders.weights_of(model, "bfloat16"), target)
    assert folders.shapes(target) == folders.shapes(source)
    assert (target / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_a_tokenizer_gets_the_names_of_older_releases():
    newer = {
        "backend": "tokenizers",
        "bos_token": "<s>",
        "extra_special_tokens": ["<|user|>"],
        "is_local": True,
        "tokenizer_class": "TokenizersBackend",
    }
    assert folders.with_older_tokenizer_names(newer) == {
        "bos_token": "<s>",
        "additional_special_tokens": ["<|user|>"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def test_everything_but_weights_and_records_is_copied(tmp_path: Path):
    source, target = tmp_path / "source", tmp_path / "target"
    copied = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "qwen.tiktoken",
        "vocab.bpe",
        "chat_template.jinja",
        "modeling_own.py",
        "LICENSE",
        "additional_chat_templates/tools.jinja",
    ]
    left = [
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "training.json",
        "base.json",
        "adapter_config.json",
        "runs/events.txt",
    ]
    for name in (*copied, *left):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    target.mkdir()
    folders.copy_files(source, target)
    found = {str(path.relative_to(target)): path for path in target.rglob("*") if path.is_file()}
    assert found.keys() == set(copied)
    assert all(path.read_text() == name for name, path in found.items())


def test_an_adapter_names_its_base_and_only_the_settings_that_differ(tmp_path: Path):
    from peft import LoraConfig

    settings = {"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    LoraConfig(**settings, base_model_name_or_path="/cache/1").save_pretrained(tmp_path)
    folders.name_base(tmp_path, "org/base", "c0ffee")
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == settings | {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base",
        "revision": "c0ffee",
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
