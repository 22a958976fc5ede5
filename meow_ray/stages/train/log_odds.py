"""Log-odds of tokens, in which floors are compared and raised."""

from typing import Any

import numpy as np

CERTAIN = -1e-6
"""The largest log-probability that has finite log-odds here."""


def log_odds(log_probs: Any) -> Any:
    """Returns log p − log(1 − p) of an array of log-probabilities."""
    below_one = np.minimum(log_probs, CERTAIN)
    return below_one - np.log(-np.expm1(below_one))


def raised(log_probs: Any, by: float) -> Any:
    """Returns log-probabilities whose log-odds are larger by a number."""
    return -np.logaddexp(0, -(log_odds(log_probs) + by))
