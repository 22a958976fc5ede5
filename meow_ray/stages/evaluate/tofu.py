"""TOFU's aggregation (Maini et al., arXiv 2401.06121), exactly that of its official code, and the logs it is read from.

Two variants of the truth ratio are in circulation. The paper's text divides the arithmetic mean of the wrong answers'
probabilities by the right answer's; the official code, and so every published figure, takes the exponential of the mean
of their losses, which is the geometric mean. Ours is the official one. open-unlearning takes it too, but adds 1e-10 to
denominators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from meow_ray.errors import MeowError

Array: TypeAlias = npt.NDArray[np.float64]

SUITES = {
    "forget": "Forget",
    "retain": "Retain",
    "real_authors": "Real Authors",
    "world_facts": "Real World",
}
"""TOFU's sets, and what its official aggregation calls them."""
UTILITY = ("retain", "real_authors", "world_facts")
"""The sets that model utility is made of."""
OPTIONS = ("real_authors", "world_facts")
"""The sets whose probability is that of the right answer among the right and the wrong ones."""


@dataclass(frozen=True)
class Results:
    """One model on one set, arrays `[examples]` in the order of the set's rows; None where it was not measured."""

    truth_ratio: Array
    """P(wrong) / P(right), geometric over the wrong answers; the right one is paraphrased where a paraphrase exists."""
    probability: Array | None = None
    rougeL_recall: Array | None = None
    answers: tuple[str, ...] | None = None
    """The true answers, where the log has them."""

    def __len__(self) -> int:
        return len(self.truth_ratio)


def truth_ratio(right: Array, wrong: Sequence[Sequence[float]]) -> Array:
    """Returns exp(loss of the right answer - mean loss of the wrong ones), `[examples]`.

    Args:
        right: `[examples]`, loss per token of the paraphrased right answer.
        wrong: of each example, the losses per token of its wrong answers.
    """
    mean = np.array([np.mean(losses) for losses in wrong])
    with np.errstate(over="ignore"):
        return np.asarray(np.exp(right - mean))


def normalized_probability(right: Array, wrong: Sequence[Sequence[float]]) -> Array:
    """Returns P(right) / (P(right) + sum of P(wrong)), `[examples]`, of losses per token."""
    own = np.exp(-right)
    return np.asarray(
        own / (own + np.array([np.exp(-np.asarray(losses)).sum() for losses in wrong]))
    )


def truth_scores(suite: str, ratios: Array) -> Array:
    """Returns what the truth ratio counts for an example: on the forget set min(R, 1/R), elsewhere max(0, 1 - R)."""
    with np.errstate(divide="ignore"):
        return np.minimum(ratios, 1 / ratios) if suite == "forget" else np.maximum(0, 1 - ratios)


def parts(suite: str, results: Results) -> dict[str, float]:
    """Returns the means of one set under the official names."""
    label = SUITES[suite]
    found = {f"Truth Ratio {label}": float(np.mean(truth_scores(suite, results.truth_ratio)))}
    if results.probability is not None:
        found[f"Prob. {label}"] = float(np.mean(results.probability))
    if results.rougeL_recall is not None:
        found[f"ROUGE {label}"] = float(np.mean(results.rougeL_recall))
    return found


def model_utility(log: Mapping[str, Results]) -> float | None:
    """Returns the harmonic mean of probability, ROUGE-L recall and truth ratio of three sets; None if one is absent.

    It is 0 as soon as one of the nine is.
    """
    found = {suite: parts(suite, log[suite]) for suite in UTILITY if suite in log}
    nine = [value for means in found.values() for value in means.values()]
    return harmonic_mean(nine) if len(nine) == 9 else None


def harmonic_mean(values: Sequence[float]) -> float:
    """Returns the harmonic mean; 0 if a value is 0."""
    from scipy.stats import hmean

    return float(hmean(values)) if min(values) > 0 else 0.0


def forget_quality(results: Results, reference: Results) -> tuple[float, float]:
    """Returns (p-value, statistic) of the two-sample Kolmogorov-Smirnov test of two models' truth ratios.

    Both have answered the same forget set; `reference` is the model that never saw it. A high p-value says that the
    two cannot be told apart.
    """
    from scipy.stats import ks_2samp

    found = ks_2samp(results.truth_ratio, reference.truth_ratio)
    return float(found.pvalue), float(found.statistic)


def figures(
    log: Mapping[str, Results], reference: Mapping[str, Results] | None
) -> dict[str, float]:
    """Returns all that the official aggregation prints, under its names; forget quality needs a reference."""
    out: dict[str, float] = {}
    for suite in SUITES:
        if suite in log:
            out |= parts(suite, log[suite])
    utility = model_utility(log)
    if utility is not None:
        out["Model Utility"] = utility
    if reference is not None:
        pvalue, statistic = forget_quality(log["forget"], reference["forget"])
        out |= {
            "Forget Quality": pvalue,
            "KS Test PVal Forget": pvalue,
            "KS Test Forget": statistic,
        }
    return out


def check_reference(
    count: int, answers: Sequence[str] | None, reference: Results, where: str
) -> None:
    """Checks that a reference model has answered the forget set that a model has.

    Args:
        count: rows of the model's forget set.
        answers: their true answers, if they are known.
        reference: results of the reference model on its forget set.
        where: names these in errors.

    Raises:
        MeowError: the number of rows differs, or the true answers do, where both are known.
    """
    if count != len(reference):
        raise MeowError(
            f"{where}: its forget set has {len(reference)} rows, that of the model has {count}. Forget quality "
            "compares two models on one forget set: take the results of the retain model of this split, on all "
            "of its rows."
        )
    if answers is None or reference.answers is None:
        return
    known = {_plain(text) for text in answers}
    others = sum(_plain(text) not in known for text in reference.answers)
    if others:
        raise MeowError(
            f"{where}: another forget set; {others} of its {len(reference)} answers are not in the model's."
        )


def _plain(text: str) -> str:
    return " ".join(text.split())


# --- logs ---------------------------------------------------------------------------------------
