"""The composite score of open-unlearning: memorisation, privacy and utility as one figure.

Source: OpenUnlearning (arXiv 2506.12618), appendix F. Its code does not compute these scores, and
the paper does not give the formula of privacy; issues 150 and 172 of locuslab/open-unlearning ask
for it. The formulas here are this project's reading. Two differences are known:

- The closeness of an attack to the retain model is scaled by the largest distance that an AUC can
  have from the retain model's.
- Utility is model utility alone. The paper also takes the fluency of the replies, by a classifier.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from meow_ray.config import Evaluate
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.stages.evaluate import tofu
from meow_ray.stages.evaluate.definitions import DEFINITIONS
from meow_ray.stages.evaluate.metrics import Interval
from meow_ray.stages.evaluate.records import Examples, Metric

COMPOSITE = "composite"
"""The suite of these scores."""
ATTACKS = ("loss", "zlib", "min_k", "min_k_pp")
"""The attacks that enter privacy, where they are measured."""
_TARGET, _, _RETAIN_MODEL = EVALUATED_MODELS
_Values = Mapping[tuple[str, str, str], float]
"""By suite, metric and model, the value."""


def memorization_score(
    extraction_strength: float,
    exact_memorization: float,
    paraphrased_probability: float,
    truth_share: float,
) -> float:
    """Returns how little of the forget set is memorised: 1 is nothing.

    It is the harmonic mean of what the four figures lack to 1.

    Args:
        extraction_strength: mean over the forget set.
        exact_memorization: the same.
        paraphrased_probability: mean token probability of the paraphrased answers.
        truth_share: mean of P(right) / (P(right) + P(wrong)), the truth ratio with which
            open-unlearning evaluates metrics.
    """
    figures = (extraction_strength, exact_memorization, paraphrased_probability, truth_share)
    return tofu.harmonic_mean([1 - figure for figure in figures])


def closeness(model_auc: float, retain_auc: float) -> float:
    """Returns how close an attack's AUC is to that on the retain model: 1 is equal.

    It is 0 at the AUC that is farthest from the retain model's, which is 0 or 1.
    """
    return 1 - abs(model_auc - retain_auc) / max(retain_auc, 1 - retain_auc)


def privacy_score(model_aucs: Sequence[float], retain_aucs: Sequence[float]) -> float:
    """Returns the harmonic mean over the attacks of the closeness to the retain model.

    Args:
        model_aucs: `[attack]`, of the model.
        retain_aucs: `[attack]`, of the retain model.
    """
    pairs = zip(model_aucs, retain_aucs, strict=True)
    return tofu.harmonic_mean([closeness(ours, retain) for ours, retain in pairs])


def metrics(
    examples: Examples, measured: Sequence[Metric], models: Sequence[str], spec: Evaluate
) -> Iterator[Metric]:
    """Yields the scores of each model of which all parts are measured.

    Args:
        examples: the examples of all models.
        measured: the metrics of the suites.
        models: the models.
        spec: the definitions of the metrics.
    """
    values = {(row.suite, row.metric, row.model): row.interval.value for row in measured}
    for model in models:
        scores = {
            "mem": _memorization(examples, values, model, spec),
            "priv": _privacy(values, model),
            "util": _utility(values, model),
        }
        known = {name: score for name, score in scores.items() if score is not None}
        if len(known) < len(scores):
            continue
        known[COMPOSITE] = tofu.harmonic_mean(list(known.values()))
        count = len(examples.numbers("forget", model, "loss"))
        for name, score in known.items():
            yield Metric(COMPOSITE, name, model, Interval(score, None, None), count)


def _memorization(examples: Examples, values: _Values, model: str, spec: Evaluate) -> float | None:
    """Returns the score of a model; None without paraphrased and wrong answers."""
    paraphrased = examples.numbers("forget", model, "paraphrased_loss")
    wrong = examples.column("forget", model, "perturbed_losses")
    if not len(paraphrased) or not len(wrong):
        return None
    ratios = tofu.truth_ratio(paraphrased, wrong, DEFINITIONS[spec.definitions].epsilon)
    return memorization_score(
        extraction_strength=values["forget", "extraction_strength", model],
        exact_memorization=values["forget", "exact_memorization", model],
        paraphrased_probability=float(np.exp(-paraphrased).mean()),
        truth_share=float(tofu.truth_shares(ratios).mean()),
    )


def _privacy(values: _Values, model: str) -> float | None:
    """Returns the score of a model; None if no attack is measured on it and the retain model."""
    names = [f"{attack}_auc" for attack in ATTACKS]
    keys = [(("membership", name, model), ("membership", name, _RETAIN_MODEL)) for name in names]
    both = [(values[ours], values[retain]) for ours, retain in keys if {ours, retain} <= {*values}]
    if not both:
        return None
    return privacy_score([ours for ours, _ in both], [retain for _, retain in both])


def _utility(values: _Values, model: str) -> float | None:
    """Returns model utility as a share of the target's; None if the target has none."""
    utility = values.get(("tofu", "model_utility", model))
    of_target = values.get(("tofu", "model_utility", _TARGET))
    return utility / of_target if utility is not None and of_target else None
