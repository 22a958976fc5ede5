"""How far the weights have moved from those before training: a term that needs no data."""

from __future__ import annotations

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
    There each step draws other directions; here they stay the same, so that no copy of the weights
    before training has to be in memory.
    """

    directions: Mapping[str, Any]
    """By parameter: `[columns, directions]`, unit vectors; matrices of one width share them."""

    before: Mapping[str, Any]
    """By parameter: `[rows, directions]`, the sorted projections before training, in float32."""

    @classmethod
    def of(cls, network: Any) -> WeightDistance:
        """Projects the matrices of a network that has not been trained yet."""
        import torch

        matrices = _matrices(network)
        by_width = {(m.shape[1], m.device): _directions(m.shape[1], m.device) for _, m in matrices}
        directions = {name: by_width[m.shape[1], m.device] for name, m in matrices}
        with torch.no_grad():
            before = {name: _projected(m, directions[name]) for name, m in matrices}
        return cls(directions, before)

    def to(self, network: Any) -> Any:
        """Returns the sum of the distances of all matrices, a scalar with a gradient."""
        distance: Any = 0.0
        for name, matrix in _matrices(network):
            change = _projected(matrix, self.directions[name]) - self.before[name]
            distance = distance + change.square().sum() / DIRECTIONS
        return distance


def _matrices(network: Any) -> list[tuple[str, Any]]:
    """Returns the trained matrices with their names."""
    return [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.dim() == 2
    ]


def _directions(columns: int, device: Any) -> Any:
    """Returns unit vectors `[columns, directions]`, the same for all workers and after a resume."""
    import torch

    generator = torch.Generator().manual_seed(columns)
    directions = torch.randn(columns, DIRECTIONS, generator=generator)
    return (directions / directions.norm(dim=0)).to(device)


def _projected(matrix: Any, directions: Any) -> Any:
    """Returns the sorted projections of a matrix `[rows, columns]`, `[rows, directions]`."""
    return (matrix.float() @ directions).sort(dim=0).values
