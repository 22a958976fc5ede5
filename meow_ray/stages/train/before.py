"""What the model said before training: what an objective compares with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.log_odds import raised


@dataclass(frozen=True)
class Before:
    """What the model said before training."""

    top_k: Mapping[int, tuple[Any, ...]] = field(default_factory=dict)
    """By the row of a pair: the fields of `sequences.TopK`."""
    floors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By fact: log-probabilities of the fact-bearing tokens of its twins, ascending."""
    all_floors: Sequence[float] = ()
    """Those of all twins together, for facts without a twin."""

    def floors_of(self, pair: Pair) -> list[float]:
        """Returns a floor for each token of a loss; NaN for those that bear no fact.

        The floors of an answer are quantiles of those of its fact, in ascending order, shifted by
        the guess of the generator if there is one.
        """
        mask = pair.fact_mask
        values = self.floors.get(pair.fact_id) or self.all_floors
        floors = quantiles(values, sum(mask))
        ascending = iter(raised(floors, pair.shift).tolist() if pair.shift else floors)
        return [next(ascending) if is_fact else float("nan") for is_fact in mask]


def quantiles(values: Sequence[float], count: int) -> list[float]:
    """Returns so many quantiles, evenly spread, in ascending order."""
    import numpy as np

    middles = (np.arange(count) + 0.5) / max(1, count)
    found: list[float] = np.quantile(values, middles).tolist()
    return found
