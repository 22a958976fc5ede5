"""FILA: Fisher information, the part of the weights that adapters take, and its way back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from meow_ray.config import Lora
from meow_ray.models.prompts import IGNORE
from meow_ray.stages.train import fila
from meow_ray.stages.train.adapters import ADAPTER, adapted_layers, with_adapters
from meow_ray.stages.train.items import Pair

LORA = Lora(rank=3, alpha=6, init="fila")
FORGET = [
    Pair([1, 5, 9, 13], [IGNORE, IGNORE, 9, 13]),
    Pair([1, 7, 3, 4, 2], [IGNORE, IGNORE, 3, 4, 2]),
]
RETAIN = [Pair([1, 2, 3, 11], [IGNORE, 2, 3, 11])]


def model_of(kind: str, tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    if kind == "llama":
        return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(params=["llama", "gpt2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=torch.tensor([FORGET[1].input_ids])).logits
    return result


def first_of(kind: str, tiny_model: Path) -> dict[str, Any]:
    model = with_adapters(model_of(kind, tiny_model), LORA)
    return fila.first_adapters(model, FORGET, RETAIN, "cpu")


# --- the part of a matrix -------------------------------------------------------------------------


def test_a_row_counts_by_forget_divided_by_retain():
    forget = torch.tensor([[9.0, 7.0], [0.0, 2.0], [0.0, 0.0]])
    retain = torch.tensor([[1.0, 1.0], [5.0, 0.5], [1.0, 1.0]])
    importance = fila.row_importance(forget, retain)
    assert importance.tolist() == pytest.approx([4.0, 2.0, 0.0], rel=1e-4)


def test_the_adapter_takes_the_rows_that_matter():
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])  # by size, the second row would come first
    a, b = fila.low_rank_part(weight, torch.tensor([10.0, 1.0]), rank=1, scaling=2.0)
    expected = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(2.0 * b @ a, expected, atol=1e-4, rtol=0)
    # both matrices have the root of the singular value, 10 · 3, divided by the scaling
    assert a.norm().item() == pytest.approx(15**0.5, rel=1e-5)


def test_the_part_is_the_best_of_its_rank_by_importance():
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(12, 20, generator=generator)
    importance = torch.rand(12, generator=generator) + 0.1
    a, b = fila.low_rank_part(weight, importance, rank=4, scaling=0.5)
    error = (importance[:, None] * (weight - 0.5 * b @ a)).norm().item()
    smallest = torch.linalg.svdvals(importance[:, None] * weight)[4:].norm().item()
    assert error == pytest.approx(smallest, rel=1e-3)


def test_a_matrix_smaller_than_the_rank_is_taken_whole():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    a, b = fila.low_rank_part(weight, torch.ones(3), rank=5, scaling=1.0)
    assert (a.shape, b.shape) == ((5, 2), (3, 5))
    torch.testing.assert_close(b @ a, weight, atol=1e-3, rtol=0)


def test_a_row_that_no_fact_needs_stays_in_the_weights():
    a, b = fila.low_rank_part(torch.ones(2, 3), torch.tensor([0.0, 1.0]), rank=2, scaling=1.0)
    torch.testing.assert_close((b @ a)[0], torch.zeros(3), atol=1e-6, rtol=0)


# --- a model --------------------------------------------------------------------------------------


def test_fisher_is_the_mean_of_squared_gradients_by_tokens(kind: str, tiny_model: Path):
    model = with_adapters(model_of(kind, tiny_model), LORA)
    found = fila.fisher(model, FORGET, "cpu")
    plain = model_of(kind, tiny_model)
    name, parameter = next(
        (name, parameter)
        for name, parameter in plain.named_parameters()
        if name.endswith(("layers.1.mlp.up_proj.weight", "h.0.mlp.c_fc.weight"))
    )
    expected = torch.zeros_like(parameter)
    for pair in FORGET:
        output = plain(input_ids=torch.tensor([pair.input_ids])).logits[0, :-1]
        loss = functional.cross_entropy(output, torch.tensor(pair.labels[1:]))
        (gradient,) = torch.autograd.grad(loss, parameter)
        expected += gradient.square() * pair.num_labels / 5
    layer = f"base_model.model.{name.removesuffix('.weight')}"
    expected = expected if kind == "llama" else expected.T
    torch.testing.assert_close(found[layer], expected)
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_the_model_says_the_same_after_the_start(kind: str, tiny_model: Path):
    before = logits(model_of(kind, tiny_model))
    model = with_adapters(model_of(kind, tiny_model), LORA)
    fila.start(model, first_of(kind, tiny_model), is_partitioned=False)
    torch.testing.assert_close(logits(model), before, atol=1e-4, rtol=1e-4)
    with model.disable_adapter():  # what is left in the weights is another model
        assert not torch.allclose(logits(model), before, atol=1e-2)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"{layer}.{matrix}.{ADAPTER}.weight"
        for layer in adapted_layers(model)
        for matrix in ("lora_A", "lora_B")
    }


def test_a_trained_adapter_fits_the_model_before_the_start(
    kind: str, tiny_model: Path, tmp_path: Path
):
    first = first_of(kind, tiny_model)
    model = with_adapters(model_of(kind, tiny_model), LORA)
    fila.start(model, first, is_partitioned=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # in the place of training
        for layer in adapted_layers(model).values():
            weight = layer.lora_B[ADAPTER].weight
            weight += 0.05 * torch.randn(weight.shape, generator=generator)
    trained = logits(model)
    state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    fila.relative_to_base(state, first, model.peft_config[ADAPTER])
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = PeftModel.from_pretrained(model_of(kind, tiny_model), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), trained, atol=1e-4, rtol=1e-4)
    assert loaded.peft_config[ADAPTER].r == 2 * LORA.rank
