"""How many sampled replies bring an answer, from its probability alone: (n, p)-extraction.

One teacher-forced pass measures the probability, so no reply is sampled.

Source: Hayes et al., arXiv 2410.19482.
"""

import math

LOG_HALF = math.log(0.5)
TINY = -36.0
"""Below this log-probability p, log(1 - p) is -p in double precision."""


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
    samples = max(1.0, float(math.ceil(math.exp(log_samples))))
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
