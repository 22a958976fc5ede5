"""Interpolation of the weights of a tiny model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meow_ray.errors import MeowError
from meow_ray.stages.train.soup import interpolate

EMBEDDING = "model.embed_tokens.weight"


def tensors_of(folder: Path) -> dict[str, Any]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def changed(tensors: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Returns tensors as training might leave them."""
    torch.manual_seed(1)
    return {
        name: (tensor + 0.1 * torch.randn_like(tensor)).to(dtype)
        for name, tensor in tensors.items()
    }


@pytest.fixture
def target(tiny_model: Path) -> Path:
    return tiny_model


@pytest.fixture
def tuned(target: Path, tmp_path: Path) -> Path:
    """A model with the files of the target and other weights."""
    folder = tmp_path / "tuned"
    shutil.copytree(target, folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 5]}')
    (folder / "training.json").write_text("[]")
    save_file(changed(tensors_of(target)), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_no_step_gives_the_weights_of_the_target(target: Path, tuned: Path, out: Path):
    interpolate(target, tuned, 0, out)
    assert_equal(tensors_of(out), tensors_of(target))


def test_the_whole_step_gives_the_weights_of_the_tuned_model(target: Path, tuned: Path, out: Path):
    interpolate(target, tuned, 1, out)
    assert_equal(tensors_of(out), tensors_of(tuned))


def test_half_a_step_gives_the_mean(target: Path, tuned: Path, out: Path):
    interpolate(target, tuned, 0.5, out)
    before, after = tensors_of(target), tensors_of(tuned)
    assert_equal(tensors_of(out), {name: (before[name] + after[name]) / 2 for name in before})


def test_weights_are_computed_in_float32_and_stored_in_the_dtype_of_the_tuned_model(
    target: Path, tuned: Path, out: Path
):
    before = tensors_of(target)
    after = changed(before, torch.bfloat16)
    save_file(after, tuned / "model.safetensors", {"format": "pt"})
    interpolate(target, tuned, 0.25, out)
    expected = {
        name: (0.75 * before[name] + 0.25 * after[name].float()).bfloat16() for name in before
    }
    assert_equal(tensors_of(out), expected)


def test_all_other_files_are_those_of_the_tuned_model(target: Path, tuned: Path, out: Path):
    interpolate(target, tuned, 0.5, out)
    names = {path.name for path in tuned.iterdir()} - {"training.json"}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (out / name).read_bytes() == (tuned / name).read_bytes()


def test_the_result_is_a_model_that_transformers_loads(target: Path, tuned: Path, out: Path):
    from transformers import AutoModelForCausalLM

    interpolate(target, tuned, 0.5, out)
    model = AutoModelForCausalLM.from_pretrained(out)
    expected = (tensors_of(target)[EMBEDDING] + tensors_of(tuned)[EMBEDDING]) / 2
    assert torch.equal(model.get_input_embeddings().weight, expected)


def test_the_files_of_the_result_are_those_of_the_tuned_model(
    target: Path, tuned: Path, out: Path, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(tuned)
    parts = tmp_path / "parts"
    whole.save_pretrained(parts, max_shard_size="300KB")
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 1
    interpolate(target, parts, 0.5, out)
    assert sorted(path.name for path in out.glob("*.safetensors")) == files
    index = "model.safetensors.index.json"
    assert json.loads((out / index).read_text()) == json.loads((parts / index).read_text())
    for name in files:
        assert load_file(out / name).keys() == load_file(parts / name).keys()
    before, after = tensors_of(target), tensors_of(parts)
    assert_equal(tensors_of(out), {name: (before[name] + after[name]) / 2 for name in before})
    second = tmp_path / "second"
    second.mkdir()
    interpolate(parts, target, 0.5, second)  # the target may be in several files as well
    assert_equal(tensors_of(second), tensors_of(out))


def refusal(target: Path, tuned: Path, out: Path) -> str:
    with pytest.raises(MeowError) as caught:
        interpolate(target, tuned, 0.5, out)
    assert list(out.iterdir()) == []
    return str(caught.value)


def rewrite(folder: Path, tensors: dict[str, Any]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_tensor_of_another_shape_is_refused(target: Path, tuned: Path, out: Path):
    tensors = tensors_of(tuned)
    rewrite(tuned, tensors | {EMBEDDING: tensors[EMBEDDING][:-1].clone()})
    assert refusal(target, tuned, out) == (
        f"{target} and {tuned}: these are not one model before and after training "
        "(model.embed_tokens.weight has the shapes [262, 128] and [261, 128]). Give the target, "
        "and the model that was trained from it."
    )


def test_a_tensor_that_the_target_lacks_is_refused(target: Path, tuned: Path, out: Path):
    rewrite(tuned, tensors_of(tuned) | {"model.new.weight": torch.zeros(2)})
    assert "(model.new.weight is only in the second)" in refusal(target, tuned, out)


def test_a_block_that_the_tuned_model_lacks_is_refused(target: Path, tuned: Path, out: Path):
    tensors = tensors_of(tuned)
    rewrite(tuned, {name: value for name, value in tensors.items() if ".layers.1." not in name})
    message = refusal(target, tuned, out)
    assert "(model.layers.1.input_layernorm.weight is only in the first)" in message


def test_masks_and_second_names_of_the_target_are_left_out(
    target: Path, tuned: Path, out: Path, tmp_path: Path
):
    old = tmp_path / "old"
    shutil.copytree(target, old)
    tensors = tensors_of(target)
    more = {
        "tied.weight": tensors[EMBEDDING].clone(),
        "model.layers.0.self_attn.mask": torch.ones(1, 4),
        "model.layers.1.self_attn.mask": torch.ones(1, 4),
    }
    rewrite(old, tensors | more)
    interpolate(old, tuned, 0, out)
    assert_equal(tensors_of(out), tensors)


def test_whole_numbers_are_those_of_the_tuned_model(
    target: Path, tuned: Path, out: Path, tmp_path: Path
):
    other = tmp_path / "other"
    shutil.copytree(target, other)
    rewrite(other, tensors_of(other) | {"model.position_ids": torch.arange(4)})
    rewrite(tuned, tensors_of(tuned) | {"model.position_ids": torch.arange(4)})
    interpolate(other, tuned, 0.3, out)
    assert torch.equal(tensors_of(out)["model.position_ids"], torch.arange(4))
