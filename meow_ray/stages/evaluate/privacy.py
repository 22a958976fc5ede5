"""Membership inference: can an attacker tell from probabilities what a model was trained on?

Members are the forget set. Non-members are a holdout set of the same kind that no model has seen.
Each attack gives an example a score, which is larger for members. After perfect unlearning, no
attack separates the two sets better than it does on a model that never saw either of them.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from meow_ray.stages.evaluate.metrics import Interval, bootstrapped
from meow_ray.stages.never_seen import min_k_score

LOW_FPR = 0.01
"""The false positive rate at which the true positive rate is reported."""
ATTACKS = ("loss", "zlib", "min_k", "min_k_pp", "retain_model")
"""The attacks, in the order in which tables show them."""

MIN_VARIANCE = 1e-6
"""Lower bound of a variance in Min-K %++: a distribution with a single certain token has none."""

Scores = npt.ArrayLike
"""Scores of an attack, `[examples]`."""


# --- scores of an example -------------------------------------------------------------------------


def loss_score(log_probs: Sequence[float]) -> float:
    """Returns the mean log-probability of an answer's tokens (Yeom et al., arXiv 1709.01604)."""
    return float(np.mean(log_probs))


def zlib_score(log_probs: Sequence[float], text: str) -> float:
    """Returns the mean log-probability divided by the size of the zlib-compressed text in bytes.

    Source: Carlini et al., arXiv 2012.07805, section 5.1.
    """
    return loss_score(log_probs) / len(zlib.compress(text.encode()))


def min_k_pp_score(
    log_probs: Sequence[float], means: Sequence[float], deviations: Sequence[float], share: float
) -> float:
    """Returns Min-K %++: Min-K % of log-probabilities that are standardised at each position.

    Source: Zhang et al., arXiv 2404.02936.

    Args:
        log_probs: `[answer]`, log p of the answer's tokens.
        means: `[answer]`, mean of log p(token) over the vocabulary, with tokens drawn by p.
        deviations: `[answer]`, standard deviation of the same.
        share: share of the tokens that count.
    """
    spread = np.sqrt(np.maximum(np.square(deviations), MIN_VARIANCE))
    standardised = (np.asarray(log_probs) - np.asarray(means)) / spread
    return min_k_score(list(standardised), share)


# --- statistics of two sets -----------------------------------------------------------------------


def auc(members: Scores, others: Scores) -> float:
    """Returns the probability that a member scores higher than a non-member; ties count half.

    It is the Mann-Whitney statistic: the members' ranks in both sets, less the least possible sum.
    """
    from scipy.stats import rankdata

    inside = np.asarray(members, dtype=float)
    outside = np.asarray(others, dtype=float)
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    least_sum = len(inside) * (len(inside) + 1) / 2
    return float((ranks.sum() - least_sum) / (len(inside) * len(outside)))


def tpr_at(members: Scores, others: Scores, fpr: float = LOW_FPR) -> float:
    """Returns the true positive rate at the threshold that at most `fpr` of non-members exceed.

    Source: Carlini et al., arXiv 2112.03570, section III.
    """
    outside = np.sort(np.asarray(others, dtype=float))[::-1]
    allowed = int(fpr * len(outside))  # number of non-members that may exceed the threshold
    threshold = outside[allowed]
    return float((np.asarray(members, dtype=float) > threshold).mean())


def privleak(model_auc: float, retain_auc: float, epsilon: float = 0.0) -> float | None:
    """Returns PrivLeak in percent: how far a model's AUC is from that of the retain model.

    It is ((1 - AUC) - (1 - AUC_retain)) / (1 - AUC_retain). Negative values mean that too little
    was forgotten, positive ones that so much was forgotten that it shows. None if the retain
    model's AUC is 1, which leaves nothing to compare with. Definition: MUSE (arXiv 2407.06460,
    section 3), whose AUC is one minus ours.

    Args:
        model_auc: AUC of Min-K % on the model.
        retain_auc: the same on the retain model.
        epsilon: is added to the denominator.
    """
    divisor = 1 - retain_auc + epsilon
    return (retain_auc - model_auc) / divisor * 100 if divisor > 0 else None


def attack_interval(
    statistic: Callable[[Scores, Scores], float],
    members: Scores,
    others: Scores,
    resamples: int,
    seed: int,
) -> Interval:
    """Returns a statistic of an attack's scores with its 95 % percentile bootstrap interval.

    Args:
        statistic: `auc` or `tpr_at`.
        members: scores of the forget set.
        others: scores of the holdout set.
        resamples: number of resamples.
        seed: seed of the resamples.

    Raises:
        ValueError: a score is NaN or infinite, or one of the two sets is empty.
    """
    inside = np.asarray(members, dtype=float)
    outside = np.asarray(others, dtype=float)
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ValueError("a score is NaN or infinite")
    if not len(inside) or not len(outside):
        raise ValueError("membership inference needs members and non-members")
    value = statistic(inside, outside)
    return bootstrapped(value, (inside, outside), statistic, resamples, seed)
