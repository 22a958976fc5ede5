import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.audit.derived.matrices import matrices
from meow_ray.stages.audit.derived.prune import Pruner, smallest
from meow_ray.stages.audit.reasons import MissingError
from tests.support.tiny import byte_tokenizer, random_model

TEXTS = [[0, 40, 41, 42, 43], [0, 50, 60]]


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 3), min_size=width, max_size=width), min_size=1, max_size=5
        )
    ),
    st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    st.booleans(),
)
def test_the_mask_is_exact_even_with_ties(
    rows: list[list[int]], share: float, per_output: bool
) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    mask = smallest(scores, share, per_output)
    parts = zip(scores, mask, strict=True) if per_output else [(scores.flatten(), mask.flatten())]
    for values, chosen in parts:
        assert int(chosen.sum()) == int(len(values) * share)
        if chosen.any() and not chosen.all():
            assert values[chosen].max() <= values[~chosen].min()


def test_the_first_of_equal_scores_are_pruned() -> None:
    mask = smallest(torch.tensor([[1.0, 1.0, 0.0, 1.0]]), 0.5, per_output=True)
    assert mask.tolist() == [[True, False, True, False]]


@pytest.mark.parametrize("method", ["magnitude", "wanda", "gradient"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("share", [0.1, 0.5])
def test_each_matrix_has_the_sparsity(kind: str, method: str, share: float) -> None:
    model = random_model(kind, byte_tokenizer())
    pruner = Pruner(model, method, TEXTS, "cpu")
    pruner.prune(pruner.masks(share))
    for matrix in matrices(model):
        zeros = matrix.weight == 0
        if method == "wanda":
            assert set(zeros.sum(1).tolist()) == {int(zeros.shape[1] * share)}
        else:
            assert int(zeros.sum()) == int(zeros.numel() * share)


def test_magnitude_prunes_the_smallest() -> None:
    model = random_model("llama", byte_tokenizer())
    pruner = Pruner(model, "magnitude", TEXTS, "cpu")
    masks = pruner.masks(0.3)
    for matrix in pruner.matrices:
        magnitude, mask = matrix.weight.abs(), masks[matrix.name]
        assert magnitude[mask].max() <= magnitude[~mask].min()


def test_wanda_weighs_by_the_norm_of_the_input() -> None:
    model = random_model("llama", byte_tokenizer())
    pruner = Pruner(model, "wanda", TEXTS, "cpu")
    first = model.model.layers[0]
    squares = 0
    for tokens in TEXTS:  # the input of the first query matrix, by hand
        hidden = first.input_layernorm(model.get_input_embeddings()(torch.tensor([tokens])))
        squares = squares + hidden[0].square().sum(0)
    scores = (first.self_attn.q_proj.weight.abs() * squares.sqrt()).detach()
    expected = smallest(scores, 0.5, per_output=True)
    mask = pruner.masks(0.5)["model.layers.0.self_attn.q_proj.weight"]
    assert (mask == expected).float().mean() > 0.999


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    model = random_model("llama", byte_tokenizer())
    pruner = Pruner(model, "gradient", TEXTS, "cpu")
    losses = [
        model(input_ids=torch.tensor([tokens]), labels=torch.tensor([tokens])).loss
        for tokens in TEXTS
    ]
    (sum(losses) / 2).backward()
    weight = model.model.layers[1].mlp.down_proj.weight
    expected = smallest((weight * weight.grad).abs().detach(), 0.5, per_output=False)
    mask = pruner.masks(0.5)["model.layers.1.mlp.down_proj.weight"]
    assert (mask == expected).float().mean() > 0.999


def test_it_leaves_no_gradients_or_hooks() -> None:
    model = random_model("llama", byte_tokenizer())
    for method in ("wanda", "gradient"):
        Pruner(model, method, TEXTS, "cpu")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_wanda_is_missing_for_experts() -> None:
    model = random_model("mixtral", byte_tokenizer())
    with pytest.raises(MissingError, match="inputs of each expert"):
        Pruner(model, "wanda", TEXTS, "cpu")
