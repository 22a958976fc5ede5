"""Estimates of what repeated sampling gets from a model, with their bounds.

`leak_at_k` and its bounds read the scores of sampled replies. `extraction_probability` and
`samples_to_extract` need no sample: they follow from the probability of the answer, which one
teacher-forced pass measures.
"""

import math
from collections.abc import Sequence

import numpy as np

LOG_HALF = math.log(0.5)
TINY = -36.0
"""Below this log-probability p, log(1 - p) is -p in double precision."""


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


def extraction_probability(log_prob: float, samples: int) -> float:
    """Returns the probability that the answer is among a number of sampled replies.

    It is `1 - (1 - p)^samples`, where p is the probability of the answer; an answer is
    (n, p)-extractable if n samples bring it with a probability of at least p.

    Source: Hayes et al., arXiv 2410.19482.

    Args:
        log_prob: log-probability of the whole answer at temperature 1, in nats, at most 0.
        samples: number of replies, at least 0.

    Raises:
        ValueError: the log-probability is above 0 or NaN, or the number is negative.
    """
    _check_log_prob(log_prob)
    if samples < 0:
        raise ValueError(f"the number of samples must not be negative (got {samples})")
    if not samples:
        return 0.0
    if log_prob == 0:
        return 1.0
    return -math.expm1(-math.exp(min(math.log(samples) + _log_rate(log_prob), 700.0)))


def samples_to_extract(log_prob: float, probability: float = 0.5) -> float:
    """Returns the fewest samples that bring the answer with at least the given probability.

    It is a whole number, or infinity if it exceeds what a float can hold; see
    `log_samples_to_extract` for the latter case.

    Source: Hayes et al., arXiv 2410.19482.

    Args:
        log_prob: log-probability of the whole answer at temperature 1, in nats, at most 0.
        probability: above 0 and below 1.

    Raises:
        ValueError: the log-probability is above 0 or NaN, or the probability not between 0 and 1.
    """
    log_samples = log_samples_to_extract(log_prob, probability)
    if log_samples > 700:
        return math.inf
    samples = max(1.0, math.ceil(math.exp(log_samples)))
    # rounding may be one off where numbers are small enough to tell
    if samples < 2**50:
        while samples > 1 and extraction_probability(log_prob, int(samples) - 1) >= probability:
            samples -= 1
        while extraction_probability(log_prob, int(samples)) < probability:
            samples += 1
    return samples


def log_samples_to_extract(log_prob: float, probability: float = 0.5) -> float:
    """Returns the natural logarithm of the samples that bring the answer; not rounded up.

    It stays finite for answers so improbable that their probability is 0 as a float. See
    `samples_to_extract` for the arguments and errors.
    """
    _check_log_prob(log_prob)
    if not 0 < probability < 1:
        raise ValueError(f"the probability must be between 0 and 1 (got {probability})")
    if log_prob == 0:
        return 0.0
    return math.log(-math.log1p(-probability)) - _log_rate(log_prob)


def _log_rate(log_prob: float) -> float:
    """Returns log(-log(1 - p)) for a log-probability below 0."""
    if log_prob < TINY:
        return log_prob
    if log_prob > LOG_HALF:
        return math.log(-math.log(-math.expm1(log_prob)))
    return math.log(-math.log1p(-math.exp(log_prob)))


def _check_log_prob(log_prob: float) -> None:
    if not log_prob <= 0:
        raise ValueError(f"a log-probability must be at most 0 (got {log_prob})")


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of scores, {n} (got {k})")


def _finite(scores: Sequence[float]) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    values = np.asarray(scores, dtype=float)
    if not values.size or np.isnan(values).any():
        raise ValueError("there must be at least one score, and none may be NaN")
    return values
