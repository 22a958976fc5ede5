"""Can a model's figures on facts be told from those on facts that no model has seen?

The facts to forget are compared with *twins*: plausible facts of the same form that no model has
seen. Three figures of each answer come from one teacher-forced pass. If a test cannot tell the
tuned model's figures on the facts from the target's figures on the twins, the model treats the
facts as if it had never seen them. The comparison needs no model that never saw the facts, so it is
called reference-free. Training stops by it, and `evaluate` reports it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from meow_ray.stages.memo.score import extraction_strength

MIN_K_SHARE = 0.2
"""Share of the least probable tokens that Min-K % reads."""


class Figures(NamedTuple):
    """The figures of one answer; each is larger for an answer that the model has memorised."""

    extraction_strength: float
    """Share of the answer that its longest suffix of greedy tokens takes."""
    min_k: float
    """Min-K %: mean log-probability of the least probable tokens."""
    fact_log_prob: float
    """Mean log-probability of the tokens that carry the fact."""


def figures(
    log_probs: Sequence[float],
    is_greedy: Sequence[bool],
    is_fact_bearing: Sequence[bool],
    min_k_share: float = MIN_K_SHARE,
) -> Figures:
    """Returns the figures of one answer from its teacher-forced pass.

    Args:
        log_probs: `[answer]`, log p(token | tokens before it), in nats.
        is_greedy: `[answer]`, whether no token is more probable.
        is_fact_bearing: `[answer]`, whether the token carries the fact; see `novel_token_mask`.
        min_k_share: share of the least probable tokens that Min-K % reads.

    Raises:
        ValueError: no token carries the fact, or the arguments differ in length.
    """
    strength = extraction_strength(is_greedy)
    fact = fact_log_prob(log_probs, is_fact_bearing)
    if strength is None or len(is_greedy) != len(log_probs):
        raise ValueError("each token needs a log-probability and whether it is greedy")
    return Figures(strength, min_k_score(log_probs, min_k_share), fact)


def fact_log_prob(log_probs: Sequence[float], is_fact_bearing: Sequence[bool]) -> float:
    """Returns the mean log-probability of the tokens that carry the fact.

    Raises:
        ValueError: no token carries the fact, or the arguments differ in length.
    """
    values = [
        log_prob
        for log_prob, bears_fact in zip(log_probs, is_fact_bearing, strict=True)
        if bears_fact
    ]
    if not values:
        raise ValueError("no token of the answer carries the fact")
    return float(np.mean(values))


def min_k_score(log_probs: Sequence[float], share: float) -> float:
    """Returns Min-K %: the mean over the given share of least probable tokens, at least one.

    Source: Shi et al., arXiv 2310.16789.
    """
    values = np.sort(np.asarray(log_probs, dtype=float))
    return float(values[: max(1, int(len(values) * share))].mean())


# --- two sets of answers --------------------------------------------------------------------------

Array: TypeAlias = npt.NDArray[np.float64]
Direction = Literal["more", "less", "equal"]


@dataclass(frozen=True)
class Difference:
    """How one figure differs between facts and twins."""

    p_value: float
    """Of the two-sample Kolmogorov-Smirnov test; high if it cannot tell them apart."""
    p_value_of_more: float
    """Of the one-sided test; small if the facts look more memorised than the twins."""
    mean_difference: float
    """Mean over the facts, less that over the twins."""

    @property
    def direction(self) -> Direction:
        """Whether the facts look more or less memorised than the twins."""
        if self.mean_difference == 0:
            return "equal"
        return "more" if self.mean_difference > 0 else "less"


@dataclass(frozen=True)
class Comparison:
    """The differences between facts and twins, by figure."""

    extraction_strength: Difference
    min_k: Difference
    fact_log_prob: Difference

    @property
    def reference_free_forget_quality(self) -> float:
        """The smallest of the three p-values: how well the facts pass for never seen."""
        return min(self.of(name).p_value for name in Figures._fields)

    @property
    def p_values_of_more(self) -> dict[str, float]:
        """The one-sided p-values, by figure."""
        return {name: self.of(name).p_value_of_more for name in Figures._fields}

    def of(self, name: str) -> Difference:
        """Returns the difference of a figure by its name."""
        difference: Difference = getattr(self, name)
        return difference


def compare(facts: Sequence[Figures], twins: Sequence[Figures]) -> Comparison:
    """Compares a model's figures on facts with figures on facts that no model has seen.

    Args:
        facts: of the facts to forget, on the model that shall have forgotten them.
        twins: of the twins, on the target before training.

    Raises:
        ValueError: there are no facts or no twins, or a figure is NaN or infinite.
    """
    if not facts or not twins:
        raise ValueError("a comparison needs facts and twins")
    inside = np.asarray(facts, dtype=float)
    outside = np.asarray(twins, dtype=float)
    if not (np.isfinite(inside).all() and np.isfinite(outside).all()):
        raise ValueError("a figure is NaN or infinite")
    columns = zip(Figures._fields, inside.T, outside.T, strict=True)
    return Comparison(**{name: _difference(ours, others) for name, ours, others in columns})


def looks_never_seen(p_values: Mapping[str, float], level: float) -> bool:
    """Whether no figure tells the facts from the twins: all p-values exceed a level."""
    return bool(p_values) and min(p_values.values()) > level


def _difference(facts: Array, twins: Array) -> Difference:
    """Returns the difference between one figure of facts, `[facts]`, and of twins, `[twins]`."""
    from scipy.stats import ks_2samp

    # exact up to 10,000 facts, as scipy chooses by itself
    test = ks_2samp(facts, twins)
    # scipy names the alternative by the distribution function, which is less if values are greater
    more = ks_2samp(facts, twins, alternative="less")
    return Difference(
        p_value=float(test.pvalue),
        p_value_of_more=float(more.pvalue),
        mean_difference=float(facts.mean() - twins.mean()),
    )
