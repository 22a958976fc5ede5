"""Intervals and equivalence margins of an attack's excess over facts never taught.

Source of the margin: two groups that no model was taught differ by chance; an excess that stays
below what such groups show cannot be told from never taught.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

PAIRS = 400
"""Pairs of never-taught groups that the margin is read from."""
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Excess:
    """A difference of two shares with its 95 % interval."""

    value: float
    low: float
    high: float


def generator(seed: int, *names: str) -> np.random.Generator:
    """Returns a random generator that depends on a seed and names only."""
    digest = hashlib.sha256("\0".join((str(seed), *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def resampling_weights(clusters: Sequence[str], resamples: int, rng: np.random.Generator) -> Array:
    """Returns the weights of a hierarchical bootstrap, `[resamples, values]`; each row sums to 1.

    Clusters are drawn with replacement; for each cluster drawn, as many of its values as it has
    are drawn with replacement.

    Args:
        clusters: `[values]`, the cluster of each value, such as the fact of which it is a twin.
        resamples: number of resamples.
        rng: random generator.
    """
    names, cluster_of = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(cluster_of, minlength=len(names))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    weights: Array = np.empty((resamples, len(cluster_of)))
    order = np.argsort(cluster_of, kind="stable")
    starts = np.cumsum(sizes) - sizes
    for size in np.unique(sizes):
        alike = np.flatnonzero(sizes == size)
        counts = rng.multinomial(drawn[:, alike] * size, np.full(size, 1 / size))
        places = order[starts[alike][:, None] + np.arange(size)]
        weights[:, places] = counts
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def excess(values: Array, weights: Array, control: Array, control_weights: Array) -> Excess:
    """Returns the mean of values less that of controls, with its 95 % percentile interval.

    Both sides are resampled on their own, also if they are the same facts, because the margin
    compares groups of different facts.

    Args:
        values: `[values]`.
        weights: `[resamples, values]`, of `resampling_weights`.
        control: `[controls]`.
        control_weights: `[resamples, controls]`.
    """
    differences = weights @ values - control_weights @ control
    low, high = np.quantile(differences, INTERVAL)
    return Excess(float(values.mean() - control.mean()), float(low), float(high))


def equivalence_margin(
    control: Array,
    weights: Array,
    control_weights: Array,
    rng: np.random.Generator,
    pairs: int = PAIRS,
) -> float:
    """Returns the largest upper bound of the excess that never-taught groups show by chance.

    Two groups of the sizes at hand are drawn from the controls, and the interval of their
    difference is computed as for the real groups. The margin is the 95th percentile of its upper
    bound over many such pairs, so a group that knows no more than the controls stays below it in
    95 % of cases. The plain difference of the groups would be a margin that intervals, which are
    wider, seldom stay below.

    Args:
        control: `[controls]`, 1 for each control that is extracted, otherwise 0.
        weights: `[resamples, values]`, of the facts.
        control_weights: `[resamples, controls]`, of the controls.
        rng: random generator.
        pairs: pairs of groups drawn.
    """
    first = rng.choice(control, size=(pairs, weights.shape[1]))
    second = rng.choice(control, size=(pairs, control_weights.shape[1]))
    differences = first @ weights.T - second @ control_weights.T
    bounds = np.quantile(differences, INTERVAL[1], axis=1)
    return float(np.quantile(bounds, 0.95))
