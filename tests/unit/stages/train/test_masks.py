"""Masks that drop weights: which ones, the gradient of their scores, and what is left of them."""

from typing import Any

import pytest
import torch

from meow_ray.config import Lora, Train
from meow_ray.errors import MeowError
from meow_ray.stages.train import masks
from meow_ray.stages.train.masks import Mask
from meow_ray.stages.train.objectives import resolve
from meow_ray.stages.train.structure import mlp_matrices
from tests.support.tiny import random_model


def masked(weight: list[list[float]], scores: list[list[float]], ratio: float) -> Mask:
    """Returns a mask that is on, with given scores, for a given matrix."""
    mask = Mask(torch.tensor(weight), ratio)
    with torch.no_grad():
        mask.scores.copy_(torch.tensor(scores))
    mask.is_on = True
    return mask


WEIGHT = [[1.0, -2.0, 3.0], [4.0, 5.0, -6.0]]
SCORES = [[0.3, -0.1, 0.4], [0.2, -0.5, 0.05]]
"""In ascending order of their distance from 0: 0.05, -0.1, 0.2, 0.3, 0.4, -0.5."""


def test_the_weights_with_the_scores_nearest_to_0_are_dropped():
    mask = masked(WEIGHT, SCORES, ratio=0.5)
    assert mask(torch.tensor(WEIGHT)).tolist() == [[1, 0, 3], [0, 5, 0]]


@pytest.mark.parametrize(
    ("ratio", "dropped"), [(0.1, 1), (0.24, 1), (0.26, 2), (0.29, 2), (0.9, 5)]
)
def test_the_number_of_dropped_weights_is_rounded(ratio: float, dropped: int):
    mask = masked(WEIGHT, SCORES, ratio)
    assert (mask(torch.tensor(WEIGHT)) == 0).sum() == dropped == round(ratio * 6)


def test_equal_scores_do_not_drop_more():
    mask = masked(WEIGHT, [[0.1] * 3] * 2, ratio=0.5)
    assert (mask(torch.tensor(WEIGHT)) == 0).sum() == 3


def test_the_gradient_goes_straight_through_the_mask():
    mask = masked(WEIGHT, SCORES, ratio=0.5)
    factors = torch.tensor([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    (mask(torch.tensor(WEIGHT)) * factors).sum().backward()
    # d loss / d mask = factor * weight, also for dropped ones; d|score| / d score is its sign
    assert mask.scores.grad.tolist() == [[10, 40, 90], [160, -250, -360]]


def test_a_step_down_the_gradient_drops_what_raises_the_loss():
    mask = masked([[1.0, 1.0]], [[0.1, 0.2]], ratio=0.5)
    (mask(torch.ones(1, 2)) * torch.tensor([[1.0, 3.0]])).sum().backward()
    with torch.no_grad():
        mask.scores -= 0.06 * mask.scores.grad  # 0.1 - 0.06 and 0.2 - 0.18
    assert mask(torch.ones(1, 2)).tolist() == [[1, 0]]


def test_new_scores_are_uniform_between_plus_and_minus_1_over_the_root_of_the_columns():
    torch.manual_seed(0)
    scores = Mask(torch.zeros(400, 25), 0.5).scores
    assert 0.199 < scores.max() <= 0.2
    assert -0.2 <= scores.min() < -0.199
    assert scores.mean().abs() < 0.005


@pytest.fixture
def network(tiny_tokenizer: Any) -> Any:
    return random_model("llama", tiny_tokenizer)


def test_a_network_computes_the_same_until_its_masks_are_on(network: Any):
    ids = torch.arange(10)[None]
    before = network(ids).logits
    masks.attach(network, mlp_matrices(network), 0.5)
    assert torch.equal(network(ids).logits, before)
    masks.switch_on(network)
    assert not torch.allclose(network(ids).logits, before)


def test_only_scores_are_trained(network: Any):
    names = mlp_matrices(network)
    masks.attach(network, names, 0.5)
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    expected = {
        f"{module}.parametrizations.weight.0.scores"
        for module in (name.removesuffix(".weight") for name in names)
    }
    assert trained == expected


def test_dropped_weights_become_0_and_all_others_stay_bit_for_bit(network: Any):
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    names = mlp_matrices(network)
    masks.attach(network, names, 0.1)
    masks.switch_on(network)
    ids = torch.arange(10)[None]
    logits = network(ids).logits
    masks.apply(network)
    after = network.state_dict()
    assert after.keys() == before.keys()
    assert torch.equal(network(ids).logits, logits)
    for name, weight in after.items():
        changed = weight != before[name]
        assert (weight[changed] == 0).all()
        assert changed.sum() == (round(0.1 * weight.numel()) if name in names else 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.embed_tokens.weight",
            "`train.trainable`: it matches model.embed_tokens.weight, and only matrices of the "
            "model's blocks can be masked. Set a regular expression that matches no other "
            "parameters.",
        ),
        (
            "model.layers.0.input_layernorm.weight",
            "`train.trainable`: it matches model.layers.0.input_layernorm.weight, and only "
            "matrices of the model's blocks can be masked. Set a regular expression that matches "
            "no other parameters.",
        ),
    ],
)
def test_only_matrices_of_blocks_can_be_masked(network: Any, name: str, message: str):
    with pytest.raises(MeowError) as caught:
        masks.attach(network, [name], 0.5)
    assert str(caught.value) == message


def test_a_share_without_a_weight_is_refused(network: Any):
    with pytest.raises(MeowError) as caught:
        masks.attach(network, ["model.layers.0.mlp.down_proj.weight"], 1e-5)
    assert str(caught.value) == (
        "`train.settings.ratio`: 1e-05 of the 32768 weights of model.layers.0.mlp.down_proj.weight "
        "is less than half a weight, so none would be dropped. Set 3e-05 or more."
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"settings": {"ratio": 1}},
            "`train.settings.ratio` must be between 0 and 1 (got 1).",
        ),
        (
            {"settings": {"ratio": 0}},
            "`train.settings.ratio` must be between 0 and 1 (got 0).",
        ),
        (
            {"lora": Lora()},
            "`train.lora`: balanced_subnet drops weights of the model itself, so that there is "
            "nothing for adapters to learn. Remove `train.lora`.",
        ),
        (
            {"weight_distance": 0.1},
            "`train.weight_distance`: balanced_subnet drops weights and changes no others, so that "
            "there is no distance to limit. Remove the key, and lower `train.settings.ratio` to "
            "drop fewer weights.",
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(MeowError) as caught:
        resolve(Train(objective="balanced_subnet", **settings), None)
    assert str(caught.value) == message


def test_a_configured_learning_rate_replaces_that_of_the_objective():
    own = resolve(Train(objective="balanced_subnet"), None)
    configured = resolve(Train(objective="balanced_subnet", learning_rate=2e-5), None)
    assert own.own_learning_rate == 1e-2
    assert configured.own_learning_rate is None
    assert own.identity() != configured.identity()
