"""The metrics that compare the forget set with facts that no model has seen."""

from collections.abc import Iterator, Sequence

import numpy as np

from meow_ray.config import Evaluate
from meow_ray.core.schema import EVALUATED_MODELS, MEASURES
from meow_ray.stages.evaluate.definitions import DEFINITIONS
from meow_ray.stages.evaluate.metrics import Interval, bootstrapped
from meow_ray.stages.evaluate.records import Examples, Metric, mean_of
from meow_ray.stages.evaluate.suites import TWINS
from meow_ray.stages.evaluate.tofu import Array
from meow_ray.stages.never_seen import Figures, compare

NEVER_SEEN = "never_seen"
"""The suite of the comparison: the forget set against the twins."""
TARGET = EVALUATED_MODELS[0]
"""The name of the target before training, in the column `model`."""


def metrics(examples: Examples, models: Sequence[str], spec: Evaluate) -> Iterator[Metric]:
    """Yields the figures of forget set and twins, and their comparison; nothing without twins.

    Each model's figures on the forget set are compared with the *target's* on the twins. So a model
    that training has made unsure of everything does not pass for one that has never seen the facts.

    Args:
        examples: the examples of all models.
        models: the models.
        spec: bootstrap and definitions.
    """
    twins = _figures(examples, TWINS, TARGET, spec)
    if not len(twins):
        return
    for model in models:
        for suite in ("forget", TWINS):
            yield from _means(examples, suite, model, spec)
        facts = _figures(examples, "forget", model, spec)
        if len(facts):
            yield from _comparison(facts, twins, model, spec)


def _figures(examples: Examples, suite: str, model: str, spec: Evaluate) -> Array:
    """Returns the figures of each example, `[examples, figure]`, larger if memorised."""
    signs = {"min_k": DEFINITIONS[spec.definitions].attack_sign}
    columns = [
        signs.get(name, 1) * examples.numbers(suite, model, name) for name in Figures._fields
    ]
    return np.stack(columns, axis=1)


def _means(examples: Examples, suite: str, model: str, spec: Evaluate) -> Iterator[Metric]:
    """Yields the means of the figures of a suite that are not measures of all suites."""
    figures = _figures(examples, suite, model, spec)
    for name, values in zip(Figures._fields, figures.T, strict=True):
        if len(values) and name not in MEASURES:
            yield mean_of(values.tolist(), suite, name, model, spec)


def _comparison(facts: Array, twins: Array, model: str, spec: Evaluate) -> Iterator[Metric]:
    """Yields the p-values, the differences of the means, and reference-free forget quality."""
    comparison = compare(
        [Figures(*row) for row in facts.tolist()], [Figures(*row) for row in twins.tolist()]
    )
    count = len(facts) + len(twins)

    def mean_difference(ours: Array, others: Array) -> float:
        return float(ours.mean() - others.mean())

    for name, ours, others in zip(Figures._fields, facts.T, twins.T, strict=True):
        difference = comparison.of(name)
        interval = bootstrapped(
            difference.mean_difference,
            (ours, others),
            mean_difference,
            spec.bootstrap_resamples,
            spec.seed,
        )
        yield Metric(
            NEVER_SEEN, f"{name}_p_value", model, Interval(difference.p_value, None, None), count
        )
        yield Metric(NEVER_SEEN, f"{name}_difference", model, interval, count)
    quality = Interval(comparison.reference_free_forget_quality, None, None)
    yield Metric(NEVER_SEEN, "reference_free_forget_quality", model, quality, count)
