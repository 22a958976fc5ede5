"""An assistant is made of the first blocks of a model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meow_ray.errors import MeowError
from meow_ray.models.refs import ModelRef, pin
from meow_ray.stages.train import assistant
from tests.support.models import llama_config, write_model
from tests.support.tiny import LAYERS, random_model


@pytest.mark.parametrize(
    ("wanted", "present", "expected"), [(8, 32, 8), (8, 8, 8), (8, 7, 3), (8, 2, 1), (8, 1, 1)]
)
def test_a_shallow_target_gives_half_of_its_blocks(wanted: int, present: int, expected: int):
    assert assistant.num_blocks(wanted, present) == expected


def stored(kind: str, tokenizer: Any, folder: Path, **options: Any) -> ModelRef:
    random_model(kind, tokenizer).save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return pin(str(folder), None, "model")


@pytest.mark.parametrize(
    "kind", ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "opt"]
)
def test_it_computes_what_the_first_blocks_of_the_target_compute(
    kind: str, tiny_tokenizer: Any, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    target = stored(kind, tiny_tokenizer, tmp_path / "target")
    out = tmp_path / "assistant"
    out.mkdir()
    assert assistant.fault(target) is None
    assistant.write_first_blocks(target, 1, out)
    ids = torch.tensor([[0, 50, 60, 70]])
    whole = AutoModelForCausalLM.from_pretrained(target.folder).eval()
    name = assistant.structure.blocks_of(whole)
    assert name is not None
    blocks = whole.get_submodule(name)
    assert len(blocks) == LAYERS
    del blocks[1]
    whole.config.get_text_config().num_hidden_layers = 1
    cut = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        torch.testing.assert_close(cut(ids).logits, whole(ids).logits)


def test_all_shards_of_a_large_model_are_read(tiny_tokenizer: Any, tmp_path: Path):
    target = stored("llama", tiny_tokenizer, tmp_path / "target", max_shard_size="300KB")
    assert len(list((tmp_path / "target").glob("*.safetensors"))) > 2
    out = tmp_path / "assistant"
    out.mkdir()
    assistant.write_first_blocks(target, 1, out)
    expected = {
        name: weight
        for shard in (tmp_path / "target").glob("*.safetensors")
        for name, weight in load_file(shard).items()
        if ".layers.1." not in name
    }
    written = load_file(out / "model.safetensors")
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], weight) for name, weight in expected.items())
    assert not (out / "model.safetensors.index.json").exists()


def test_lists_with_a_value_per_block_are_shortened(tiny_tokenizer: Any, tmp_path: Path):
    target = stored("gemma2", tiny_tokenizer, tmp_path / "target")
    out = tmp_path / "assistant"
    out.mkdir()
    assistant.write_first_blocks(target, 1, out)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "target", out)
    )
    assert len(before["layer_types"]) == LAYERS
    assert after == before | {"num_hidden_layers": 1, "layer_types": before["layer_types"][:1]}


def test_a_model_without_keys_and_values_gives_no_assistant(tiny_tokenizer: Any, tmp_path: Path):
    target = stored("mamba", tiny_tokenizer, tmp_path / "target")
    assert assistant.fault(target) == (
        "the model keeps no keys and values, of which the assistant needs its own"
    )


def test_a_configuration_that_hides_the_number_of_blocks_is_refused(
    tiny_tokenizer: Any, tmp_path: Path
):
    values = llama_config()
    del values["num_hidden_layers"]  # transformers then takes 32
    target = write_model(tmp_path / "target", tiny_tokenizer, values)
    out = tmp_path / "assistant"
    out.mkdir()
    with pytest.raises(MeowError, match="does not say by `num_hidden_layers`"):
        assistant.write_first_blocks(target, 1, out)


def test_weights_of_other_names_are_refused(tiny_tokenizer: Any, tmp_path: Path):
    target = stored("llama", tiny_tokenizer, tmp_path / "target")
    other = stored("gpt2", tiny_tokenizer, tmp_path / "other")
    weights = Path(other.uri, "model.safetensors").read_bytes()
    Path(target.uri, "model.safetensors").write_bytes(weights)
    out = tmp_path / "assistant"
    out.mkdir()
    with pytest.raises(MeowError, match="no weights of the first 1 blocks by the name"):
        assistant.write_first_blocks(target, 1, out)
