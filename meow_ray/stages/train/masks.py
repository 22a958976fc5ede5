"""Training which weights to drop, instead of their values: masks over frozen matrices.

Source: BalancedSubnet (Sakarvadia et al., arXiv 2410.02159). Each masked matrix has a matrix of
scores, and only scores are trained. The mask drops the weights with the scores nearest to 0.
"""

from collections.abc import Collection, Iterator
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from meow_ray.errors import MeowError
from meow_ray.stages.train.structure import blocks_of


def num_dropped(ratio: float, size: int) -> int:
    """Returns how many weights of a matrix with `size` weights are dropped, rounded to whole ones.

    Args:
        ratio: the share of the weights, between 0 and 1.
        size: the number of weights of the matrix.
    """
    return round(ratio * size)


class _Kept(torch.autograd.Function):
    """The mask `[rows, columns]` of strengths: 0 for the `count` weakest, 1 for the others.

    The gradient of the mask is handed on to the strengths as it is (straight-through estimator).
    """

    @staticmethod
    def forward(ctx: Any, strengths: Tensor, count: int) -> Tensor:
        weakest = strengths.flatten().topk(count, largest=False).indices
        mask = torch.ones_like(strengths)
        mask.view(-1)[weakest] = 0
        return mask

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, None]:
        return grads[0], None


class Mask(torch.nn.Module):
    """A mask over a matrix of weights, with a score for each of them."""

    def __init__(self, weight: Tensor, ratio: float) -> None:
        super().__init__()
        bound = 1 / sqrt(weight.shape[-1])  # `kaiming_uniform_` with a = √5, as its authors have it
        scores = torch.empty_like(weight, requires_grad=False).uniform_(-bound, bound)
        self.scores = torch.nn.Parameter(scores)
        self.count = num_dropped(ratio, weight.numel())
        self.is_on = False

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weights with 0 in place of those that are dropped."""
        if not self.is_on:
            return weight
        mask: Tensor = _Kept.apply(  # type: ignore[no-untyped-call]
            self.scores.abs(), self.count
        )
        return weight * mask


def attach(network: torch.nn.Module, names: Collection[str], ratio: float) -> None:
    """Freezes a network, and gives some of its matrices masks, which are off.

    Args:
        network: the network.
        names: the names of the matrices.
        ratio: the share of the weights of each matrix that is dropped.

    Raises:
        MeowError: see `check`.
    """
    check(network, names, ratio)
    network.requires_grad_(requires_grad=False)
    for name in sorted(names):
        module, _, attribute = name.rpartition(".")
        owner = network.get_submodule(module)
        mask = Mask(network.get_parameter(name), ratio)
        parametrize.register_parametrization(owner, attribute, mask)


def check(network: Any, names: Collection[str], ratio: float) -> None:
    """Checks that parameters can have masks, and that each mask drops some weights.

    Masks are for matrices of blocks: an embedding may also be the last matrix of the network.

    Raises:
        MeowError: a parameter is not such a matrix, or is so small that none of it is dropped.
    """
    blocks = blocks_of(network)
    for name in sorted(names):
        weight = network.get_parameter(name)
        if weight.dim() < 2 or not name.startswith(f"{blocks}."):
            raise MeowError(
                f"`train.trainable`: it matches {name}, and only matrices of the model's blocks "
                "can be masked. Set a regular expression that matches no other parameters."
            )
        if num_dropped(ratio, weight.numel()) == 0:
            raise MeowError(
                f"`train.settings.ratio`: {ratio:g} of the {weight.numel()} weights of {name} is "
                f"less than half a weight, so none would be dropped. Set {1 / weight.numel():.0e} "
                "or more."
            )


def switch_on(network: torch.nn.Module) -> None:
    """Applies the masks of a network from now on; until then it is the model before training."""
    for module in network.modules():
        if isinstance(module, Mask):
            module.is_on = True


def apply(network: torch.nn.Module) -> None:
    """Sets the dropped weights of a network to 0, and removes the masks with their scores."""
    for module, attribute in list(_masked(network)):
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)


def _masked(network: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str]]:
    """Yields the modules with masked matrices, each with the name of the matrix."""
    for module in network.modules():
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, torch.nn.ModuleDict)
            for attribute in list(module.parametrizations):
                yield module, attribute
