"""Does a model still know some facts? Their figures are compared with those of facts never seen."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from meow_ray.stages.memo.score import extraction_strength

SHARE = 0.2
"""The share of the least probable tokens that Min-K % is the mean of."""


class Figures(NamedTuple):
    """What tells a memorised answer from another, from one pass over its true tokens."""

    extraction_strength: float
    """The share of the answer that greedy decoding continues, given the rest."""
    min_k: float
    """Mean log-probability of the least probable tokens."""
    fact_log_prob: float
    """Mean log-probability of the fact-bearing tokens."""


def figures(
    log_probs: Sequence[float], is_greedy: Sequence[bool], is_fact: Sequence[bool]
) -> Figures:
    import numpy as np
    least = sorted(log_probs)[: max(1, int(len(log_probs) * SHARE))]
    facts = [p for p, bears in zip(log_probs, is_fact, strict=True) if bears] or list(log_probs)
    return Figures(extraction_strength(is_greedy) or 0.0, float(np.mean(least)), float(np.mean(facts)))


def p_values(
    facts: Sequence[Figures], twins: Sequence[Figures], alternative: Literal["greater", "two-sided"]
) -> dict[str, float]:
    from scipy.stats import ks_2samp
    kind = {"greater": "less", "two-sided": "two-sided"}[alternative]
    return {
        name: float(ks_2samp([f[i] for f in facts], [t[i] for t in twins], alternative=kind).pvalue)
        for i, name in enumerate(Figures._fields)
    }
