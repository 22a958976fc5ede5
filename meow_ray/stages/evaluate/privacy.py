"""Membership inference: can an attacker tell what a model was trained on from the probabilities that it gives?

Members are the forget set, non-members a holdout set of the same kind that no model has seen. Every attack gives an
example a score, larger for members. After perfect unlearning none tells the two apart better than it does on a model
that never saw either.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from meow_ray.stages.evaluate import metrics
from meow_ray.stages.evaluate.metrics import Interval

LOW_FPR = 0.01
"""The false positive rate at which the true positive rate is reported."""
ATTACKS = ("loss", "zlib", "min_k", "min_k_pp", "reference")
"""The attacks, in the order that people read them."""


Scores = npt.ArrayLike


def loss_score(log_probs: Sequence[float]) -> float:
    """Returns the mean log-probability of an answer's tokens (Yeom et al., arXiv 1709.01604)."""
    return float(np.mean(log_probs))


def zlib_score(log_probs: Sequence[float], text: str) -> float:
    """Returns the mean log-probability over the size of the text compressed by zlib, in bytes.

    Source: Carlini et al., arXiv 2012.07805, section 5.1.
    """
    return loss_score(log_probs) / len(zlib.compress(text.encode()))


def min_k_score(log_probs: Sequence[float], share: float) -> float:
    """Returns Min-K %: the mean over the least probable share of the tokens, one at least (arXiv 2310.16789)."""
    values = np.sort(np.asarray(log_probs, dtype=float))
    return float(values[: max(1, int(len(values) * share))].mean())


def min_k_pp_score(
    log_probs: Sequence[float], means: Sequence[float], deviations: Sequence[float], share: float
) -> float:
    """Returns Min-K %++: Min-K % of log-probabilities that are standardised at each position (arXiv 2404.02936).

    `means` and `deviations` are those of log p(token) over the vocabulary, tokens drawn by p; `[answer]`.
    """
    spread = np.sqrt(np.maximum(np.square(deviations), 1e-6))  # a certain model has no spread
    return min_k_score(list((np.asarray(log_probs) - np.asarray(means)) / spread), share)


def auc(members: Scores, others: Scores) -> float:
    """Returns the probability that a member scores higher than a non-member, a tie counting half."""
    from scipy.stats import rankdata

    inside, outside = np.asarray(members, dtype=float), np.asarray(others, dtype=float)
    ranks = rankdata(np.concatenate([inside, outside]))[: len(inside)]
    return float((ranks.sum() - len(inside) * (len(inside) + 1) / 2) / (len(inside) * len(outside)))


def tpr_at(members: Scores, others: Scores, fpr: float = LOW_FPR) -> float:
    """Returns the share of members above a threshold that at most the share `fpr` of non-members is above.

    Source: Carlini et al., arXiv 2112.03570, section III.
    """
    outside = np.sort(np.asarray(others, dtype=float))[::-1]
    threshold = outside[int(fpr * len(outside))]  # so many may be above it
    return float((np.asarray(members, dtype=float) > threshold).mean())


def privleak(model_auc: float, reference_auc: float) -> float | None:
    """Returns PrivLeak in percent: how far a model's AUC is from that of the model that never saw the forget set.

    It is ((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref): negative where too little was forgotten, positive where so much
    that it shows; None where the reference's AUC is 1, to which nothing can be compared. Definition: MUSE (arXiv
    2407.06460, section 3), whose AUC is one minus ours.
    """
    rest = 1 - reference_auc
    return ((1 - model_auc) - rest) / rest * 100 if rest > 0 else None


def bootstrapped(
    statistic: Callable[[Scores, Scores], float],
    members: Scores,
    others: Scores,
    resamples: int,
    seed: int,
) -> Interval:
    """Returns a statistic of members and non-members with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: a score is not a number, or one of the two sets is empty.
    """
    inside, outside = np.asarray(members, dtype=float), np.asarray(others, dtype=float)
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ValueError("a score is not a number")
    if not len(inside) or not len(outside):
        raise ValueError("membership inference needs members and non-members")
    return metrics.bootstrapped(
        statistic(inside, outside), (inside, outside), statistic, resamples, seed
    )
