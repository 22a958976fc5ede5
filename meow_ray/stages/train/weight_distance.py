"""How far the weights have moved from those before training: a term that needs no data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DIRECTIONS = 100
"""Number of random directions of each matrix, as in the paper's code."""


@dataclass(frozen=True)
class WeightDistance:
    """The sliced Wasserstein distance of each trained matrix from itself before training.

    The rows of a matrix W are points. Projected on a unit vector u and sorted, they are the
    quantiles of a distribution; the distance is the mean over directions u of
    ‖sort(W₀ u) − sort(W u)‖². It is the regulariser of Opt-Out (Choi et al., arXiv 2406.12329).
    There the directions are drawn anew in each step; here they stay the same, so that no copy of
    the weights before training has to be in memory.
    """

    before: Mapping[str, Any]
    """By parameter: `[rows, directions]`, the sorted projections before training, in float32."""

    @classmethod
    def of(cls, network: Any) -> WeightDistance:
        """Projects the matrices of a network that has not been trained yet."""
        import torch

        with torch.no_grad():
            return cls({name: _projected(name, matrix) for name, matrix in _matrices(network)})

    def to(self, network: Any) -> Any:
        """Returns the sum of the distances of all matrices, a scalar with a gradient."""
        distance: Any = 0.0
        for name, matrix in _matrices(network):
            change = _projected(name, matrix) - self.before[name]
            distance = distance + change.square().sum() / DIRECTIONS
        return distance


def _matrices(network: Any) -> list[tuple[str, Any]]:
    """Returns the trained matrices with their names."""
    return [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.dim() == 2
    ]


def _projected(name: str, matrix: Any) -> Any:
    """Returns the sorted projections of a matrix `[rows, columns]`, `[rows, directions]`.

    The directions depend on the name of the parameter alone, so that all workers have the same.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(matrix.shape[1], DIRECTIONS, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(matrix.device)
    return (matrix.float() @ directions).sort(dim=0).values
