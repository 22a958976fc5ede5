"""Merged models, written from adapters that PEFT made, with ranks of their own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from meow_ray.config import Target
from meow_ray.errors import MeowError
from meow_ray.models.refs import ModelRef, pin, write_base
from meow_ray.stages.train import fusion, merge
from meow_ray.stages.train.gram import GRAM_FILE
from meow_ray.stages.train.merge import Adapter, Recipe
from tests.support.tiny import random_model

LINEAR = Recipe("linear", None, 1.0)
GRAM = Recipe("gram", None, 1.0)
LAYERS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
TARGET = Target(template="raw")


def adapter(
    folder: Path, base: ModelRef, rank: int, modules: list[str], grams: bool = True
) -> Adapter:
    """Writes a random adapter, with roots of random inputs of its layers."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(rank)
    network = AutoModelForCausalLM.from_pretrained(base.folder)
    settings = LoraConfig(
        r=rank, lora_alpha=3, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    network = get_peft_model(network, settings)
    network.save_pretrained(folder)
    write_base(base, folder)
    made = Adapter(folder.name, str(folder), folder.name)
    if grams:
        inputs = {layer: torch.randn(5, width) for layer, (_, width) in made.shapes.items()}
        save_file(inputs, folder / GRAM_FILE)
    return made


def change_by_peft(base: ModelRef, made: Adapter, layer: str) -> Any:
    """Returns what PEFT adds to a weight when it merges an adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    network = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder), made.folder
    )
    module = network.base_model.model.get_submodule(layer)
    return module.get_delta_weight("default").detach()


@pytest.fixture
def base(tiny_model: Path) -> ModelRef:
    return pin(str(tiny_model), None, "target.model")


@pytest.fixture
def adapters(base: ModelRef, tmp_path: Path) -> list[Adapter]:
    modules = [layer.removeprefix("model.") for layer in LAYERS]
    return [adapter(tmp_path / f"rank{rank}", base, rank, modules) for rank in (2, 5)]


def written(adapters: list[Adapter], base: ModelRef, recipe: Recipe, folder: Path) -> Any:
    merge.write(adapters, base, recipe, TARGET, str(folder))
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_linear_adds_the_mean_of_the_changes_times_the_scale(
    adapters: list[Adapter], base: ModelRef, tmp_path: Path, scale: float
):
    found = written(adapters, base, Recipe("linear", None, scale), tmp_path / "out")
    before = load_file(base.folder / "model.safetensors")
    assert found.keys() == before.keys()
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        if layer in LAYERS:
            first, second = (change_by_peft(base, made, layer) for made in adapters)
            torch.testing.assert_close(found[name], weight + scale * (first + second) / 2)
        else:
            assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("recipe", [GRAM, Recipe("ties", 0.3, 1.0)])
def test_other_methods_add_what_fusion_returns(
    adapters: list[Adapter], base: ModelRef, tmp_path: Path, recipe: Recipe
):
    found = written(adapters, base, recipe, tmp_path / "out")
    before = load_file(base.folder / "model.safetensors")
    for layer in LAYERS:
        changes = [change_by_peft(base, made, layer).double() for made in adapters]
        roots = [load_file(made.folder / GRAM_FILE)[layer] for made in adapters]
        expected = (
            fusion.gram(changes, roots) if recipe is GRAM else fusion.ties(changes, density=0.3)
        )
        added = found[f"{layer}.weight"] - before[f"{layer}.weight"]
        torch.testing.assert_close(added.double(), expected, rtol=1e-3, atol=1e-5)


def test_the_number_of_changed_layers_is_returned(
    adapters: list[Adapter], base: ModelRef, tmp_path: Path
):
    assert merge.write(adapters, base, LINEAR, TARGET, str(tmp_path / "out")) == len(LAYERS)


def test_one_adapter_twice_merges_to_itself(
    adapters: list[Adapter], base: ModelRef, tmp_path: Path
):
    first = adapters[0]
    expected = ModelRef(first.uri, first.digest).folder  # merged by PEFT
    for recipe in (LINEAR, GRAM, Recipe("ties", 1.0, 1.0)):
        found = written([first, first], base, recipe, tmp_path / recipe.method)
        for name, weight in load_file(expected / "model.safetensors").items():
            torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-5)


def test_the_folder_is_a_model_with_the_files_of_the_target(
    adapters: list[Adapter], base: ModelRef, tmp_path: Path
):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    written(adapters, base, LINEAR, out)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (base.folder / name).read_bytes()
    assert not (out / "adapter_config.json").exists()
    AutoModelForCausalLM.from_pretrained(out)
    assert pin(str(out), None, "--input model").folder == out


def test_layers_that_store_their_weight_transposed(tiny_tokenizer: Any, tmp_path: Path):
    folder = tmp_path / "gpt2"
    random_model("gpt2", tiny_tokenizer).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    base = pin(str(folder), None, "target.model")
    made = [adapter(tmp_path / f"rank{rank}", base, rank, ["c_fc"]) for rank in (2, 3)]
    found = written(made, base, LINEAR, tmp_path / "out")
    before = load_file(folder / "model.safetensors")
    first, second = (change_by_peft(base, each, "transformer.h.1.mlp.c_fc") for each in made)
    (name,) = [name for name in before if name.endswith("h.1.mlp.c_fc.weight")]
    torch.testing.assert_close(found[name], before[name] + (first + second) / 2)


def refusal(adapters: list[Adapter], base: ModelRef, recipe: Recipe, out: Path) -> str:
    with pytest.raises(MeowError) as caught:
        merge.write(adapters, base, recipe, TARGET, str(out))
    assert not out.exists()
    return str(caught.value)


def test_adapters_on_other_layers_are_refused(base: ModelRef, tmp_path: Path):
    pair = [
        adapter(tmp_path / "first", base, 2, ["q_proj", "v_proj"]),
        adapter(tmp_path / "second", base, 2, ["q_proj"]),
    ]
    assert refusal(pair, base, LINEAR, tmp_path / "out") == (
        "first and second: the adapters are not on the same layers "
        "(model.layers.0.self_attn.v_proj is only in the first). Train all requests with the same "
        "train.lora.layers."
    )


def test_adapters_on_embeddings_are_refused(base: ModelRef, tmp_path: Path):
    modules = ["q_proj", "embed_tokens"]
    pair = [adapter(tmp_path / name, base, 2, modules, grams=False) for name in ("first", "second")]
    message = refusal(pair, base, LINEAR, tmp_path / "out")
    assert message.startswith(
        "first: the adapter changes more than linear layers (base_model.model.model.embed_tokens."
    )
    assert message.endswith(
        "), which cannot be merged. Train this request with other train.lora.layers."
    )


def test_gram_matrices_of_other_layers_are_refused(
    adapters: list[Adapter], base: ModelRef, tmp_path: Path
):
    roots = load_file(adapters[1].folder / GRAM_FILE)
    del roots[LAYERS[1]]
    save_file(roots, adapters[1].folder / GRAM_FILE)
    assert refusal(adapters, base, GRAM, tmp_path / "out") == (
        "rank5: gram.safetensors has no Gram matrix of the layer model.layers.1.mlp.down_proj "
        "(width 256). Train this request again, or merge with --method linear or ties."
    )
