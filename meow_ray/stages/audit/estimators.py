"""Estimates of what repeated sampling gets from a model, with their bounds.

They read the scores of sampled replies. What follows from the probability of an answer alone is in
`stages/memo/extraction.py`.
"""

import math
from collections.abc import Sequence

import numpy as np


def leak_at_k(scores: Sequence[float], k: int) -> float:
    """Returns the expected best score of k replies, from n scored replies.

    The estimate is the mean over all subsets of k replies of their best score, so it is unbiased:
    with sorted scores, the sum of `C(j - 1, k - 1) / C(n, k) * s_j` over j from k to n.

    Source: leak@k, arXiv 2511.04934.

    Args:
        scores: `[replies]`, in any order.
        k: replies that an attacker reads, from 1 to n.

    Raises:
        ValueError: k is not between 1 and the number of scores, or a score is NaN.
    """
    ordered = np.sort(_finite(scores))
    n = ordered.size
    _check_k(k, n)
    # C(j - 2, k - 1) / C(j - 1, k - 1) is (j - k) / (j - 1), so weights follow from the largest
    j = np.arange(n, k, -1, dtype=float)
    weights = k / n * np.concatenate([[1.0], np.cumprod((j - k) / (j - 1))])
    return float(weights[::-1] @ ordered[k - 1 :])


def leak_at_k_bounds(
    scores: Sequence[float],
    k: int,
    level: float = 0.95,
    lowest: float = 0.0,
    highest: float = 1.0,
) -> tuple[float, float]:
    """Returns bounds of the expected best score of k replies that hold for every distribution.

    They follow from the Dvoretzky-Kiefer-Wolfowitz band around the distribution function F of a
    score: the expected best of k is `lowest` plus the integral of 1 - F(x)^k. The bounds hold for
    all k at once.

    Source: Massart, 1990, for the constant of the band; Scholten et al., arXiv 2410.03523, for its
    use on replies.

    Args:
        scores: `[replies]`, in any order.
        k: replies that an attacker reads, at least 1; it may exceed the number of scores.
        level: probability that the bounds hold.
        lowest: smallest score that is possible.
        highest: largest score that is possible.

    Raises:
        ValueError: k is below 1, there is no score, or a score is outside of its range.
    """
    values = _finite(scores)
    if k < 1:
        raise ValueError(f"k must be at least 1 (got {k})")
    if values.min() < lowest or values.max() > highest:
        raise ValueError(f"a score is outside of {lowest} to {highest}")
    edges = np.concatenate([[lowest], np.sort(values), [highest]])
    share = np.arange(values.size + 1) / values.size
    half = dkw_half_width(values.size, level)
    widths = np.diff(edges)
    low = lowest + float(widths @ (1 - np.minimum(1.0, share + half) ** k))
    high = lowest + float(widths @ (1 - np.maximum(0.0, share - half) ** k))
    return low, high


def dkw_half_width(n: int, level: float = 0.95) -> float:
    """Returns half the width of the two-sided band around an empirical distribution function.

    The true distribution function lies within the band everywhere with a probability of at least
    `level`: `sqrt(ln(2 / (1 - level)) / (2 n))`.

    Raises:
        ValueError: n is below 1, or the level is not between 0 and 1.
    """
    if n < 1 or not 0 < level < 1:
        raise ValueError("a band needs at least one value and a level between 0 and 1")
    return math.sqrt(math.log(2 / (1 - level)) / (2 * n))


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Returns the exact two-sided interval of a probability after a number of trials.

    Source: Clopper and Pearson, 1934.

    Raises:
        ValueError: there is no trial, or the successes are not between 0 and the trials.
    """
    from scipy.stats import binomtest

    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials are not possible")
    interval = binomtest(successes, trials).proportion_ci(level, method="exact")
    return float(interval.low), float(interval.high)


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of scores, {n} (got {k})")


def _finite(scores: Sequence[float]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    values = np.asarray(scores, dtype=float)
    if not values.size or np.isnan(values).any():
        raise ValueError("there must be at least one score, and none may be NaN")
    return values
