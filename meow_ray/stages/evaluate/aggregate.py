"""From examples to the table `metrics`: means, TOFU's figures and membership inference."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from meow_ray.config import Evaluate
from meow_ray.core import storage, tables
from meow_ray.core.schema import EVALUATED_MODELS, MEASURES, SCHEMAS
from meow_ray.core.tables import Query, TableSource
from meow_ray.stages.evaluate import composite, privacy, tofu, twins
from meow_ray.stages.evaluate.definitions import DEFINITIONS, Definitions
from meow_ray.stages.evaluate.examples import write_examples
from meow_ray.stages.evaluate.metrics import Interval, bootstrapped
from meow_ray.stages.evaluate.records import Examples, Metric, mean_of
from meow_ray.stages.evaluate.sets import HOLDOUT
from meow_ray.stages.evaluate.suites import TEXT
from meow_ray.stages.evaluate.tofu import Array, ModelLog, Results

TOFU = "tofu"
"""The suite of TOFU's figures over several sets."""
MEMBERSHIP = "membership"
"""The suite of membership inference: forget set against holdout set."""
RETAIN_MODEL = EVALUATED_MODELS[-1]
"""The name of the model that never saw the forget set, in the column `model`."""


def write_metrics(
    *,
    answered: Mapping[str, Query],
    selected: TableSource,
    spec: Evaluate,
    retain_log: ModelLog | None,
    task_scores: Sequence[Mapping[str, Any]],
    examples_uri: str,
    metrics_uri: str,
) -> dict[str, Any]:
    """Writes the tables of examples and of metrics; returns the summary for the manifest.

    Args:
        answered: by model, the rows that `EvaluateSteps` answered.
        selected: the inverted facts that the model was trained on.
        spec: bootstrap and attacks.
        retain_log: results of the retain model, if they were read from a file.
        task_scores: rows of `metrics` from lm-evaluation-harness.
        examples_uri: URI of the examples.
        metrics_uri: URI of the metrics.
    """
    write_examples(answered, selected, examples_uri)
    measured = aggregate([examples_uri], spec, retain_log)
    scores = pa.Table.from_pylist(list(task_scores), schema=SCHEMAS["metrics"])
    table = pa.concat_tables([measured, scores])
    storage.write_table(table, metrics_uri)
    retain_source = "results" if retain_log else None
    if RETAIN_MODEL in answered:
        retain_source = "model"
    return {
        "examples": tables.count_rows([examples_uri]),
        "suites": sorted(set(table["suite"].to_pylist())),
        "retain_model": retain_source,
    }


def aggregate(
    examples: TableSource, spec: Evaluate, retain_log: ModelLog | None = None
) -> pa.Table:
    """Returns the table `metrics`.

    Args:
        examples: a table of `EXAMPLES_SCHEMA`.
        spec: bootstrap and attacks.
        retain_log: results of the retain model, if they were read from a file.

    Raises:
        MeowError: a value of an example is NaN or infinite; the error names suite, model and fact.
    """
    reader = Examples(examples)
    groups = reader.groups()
    models = list(dict.fromkeys(model for _, model in groups))
    metrics = [
        *_means(reader, groups, spec),
        *_tofu_metrics(reader, models, spec, retain_log),
        *_membership(reader, models, spec, retain_log),
        *twins.metrics(reader, models, spec),
    ]
    metrics += composite.metrics(reader, metrics, models, spec)
    return pa.Table.from_pylist([metric.as_row() for metric in metrics], schema=SCHEMAS["metrics"])


# --- means ----------------------------------------------------------------------------------------


def _means(
    examples: Examples, groups: Sequence[tuple[str, str]], spec: Evaluate
) -> Iterator[Metric]:
    """Yields the metrics that are means over examples, and perplexity."""
    for suite, model in groups:
        for name in MEASURES:
            values = examples.column(suite, model, name)
            if len(values):
                yield mean_of(values, suite, name, model, spec)
        if suite == TEXT:
            yield _perplexity(examples, model, spec)


def _perplexity(examples: Examples, model: str, spec: Evaluate) -> Metric:
    """Returns the exponential of the mean loss per token; the bootstrap resamples passages."""
    losses = examples.column(TEXT, model, "loss")
    counts = examples.column(TEXT, model, "num_tokens")

    def perplexity(passages: Any) -> float:
        return float(np.exp(np.average(losses[passages], weights=counts[passages])))

    passages = np.arange(len(losses))
    interval = bootstrapped(
        perplexity(passages), (passages,), perplexity, spec.bootstrap_resamples, spec.seed
    )
    return Metric(TEXT, "perplexity", model, interval, len(passages))


# --- TOFU -----------------------------------------------------------------------------------------


def tofu_results(examples: Examples, model: str, epsilon: float = 0.0) -> dict[str, Results]:
    """Returns the results of a model that TOFU's aggregation reads, by suite with wrong answers.

    Args:
        examples: the examples of all models.
        model: the model.
        epsilon: see `tofu.truth_ratio`.
    """
    by_suite = {}
    for suite in tofu.SUITES:
        wrong = examples.column(suite, model, "perturbed_losses")
        if not len(wrong):
            continue
        loss = examples.column(suite, model, "loss")
        paraphrased_loss = examples.column(suite, model, "paraphrased_loss")
        right = paraphrased_loss if len(paraphrased_loss) else loss
        by_suite[suite] = Results(
            truth_ratio=tofu.truth_ratio(right, wrong, epsilon),
            probability=examples.column(suite, model, "probability"),
            rougeL_recall=examples.column(suite, model, "rougeL_recall"),
            answers=tuple(examples.column(suite, model, "answer")),
        )
    return by_suite


def _tofu_metrics(
    examples: Examples, models: Sequence[str], spec: Evaluate, retain_log: ModelLog | None
) -> Iterator[Metric]:
    """Yields model utility, and forget quality if there is a retain model."""
    epsilon = DEFINITIONS[spec.definitions].epsilon
    logs = {model: tofu_results(examples, model, epsilon) for model in models}
    for model, log in logs.items():
        utility = _model_utility(log, spec)
        if utility is not None:
            count = sum(len(log[suite]) for suite in tofu.UTILITY)
            yield Metric(TOFU, "model_utility", model, utility, count)
    read_results = retain_log.suites if retain_log else {}
    retain_results = logs.get(RETAIN_MODEL, read_results).get("forget")
    if retain_results is None:
        return
    for model, log in logs.items():
        if model == RETAIN_MODEL or "forget" not in log:
            continue
        pvalue, statistic = tofu.forget_quality(log["forget"], retain_results)
        for name, value in (("forget_quality", pvalue), ("ks_statistic", statistic)):
            yield Metric(TOFU, name, model, Interval(value, None, None), len(log["forget"]))


def _model_utility(log: Mapping[str, Results], spec: Evaluate) -> Interval | None:
    """Returns model utility; the bootstrap resamples the examples of each set."""
    value = tofu.model_utility(log)
    if value is None:
        return None
    results = [log[suite] for suite in tofu.UTILITY]

    def utility(*drawn: Any) -> float:
        means = []
        for suite, result, rows in zip(tofu.UTILITY, results, drawn, strict=True):
            truth = tofu.truth_scores(suite, result.truth_ratio)
            for values in (truth, result.probability, result.rougeL_recall):
                assert values is not None
                means.append(float(values[rows].mean()))
        return tofu.harmonic_mean(means)

    all_rows = [np.arange(len(result)) for result in results]
    return bootstrapped(value, all_rows, utility, spec.bootstrap_resamples, spec.seed)


# --- membership inference -------------------------------------------------------------------------

_STATISTICS: dict[str, Callable[[Any, Any], float]] = {"auc": privacy.auc, "tpr": privacy.tpr_at}


def _membership(
    examples: Examples, models: Sequence[str], spec: Evaluate, retain_log: ModelLog | None
) -> Iterator[Metric]:
    """Yields AUC and TPR of each attack on each model, and PrivLeak if there is a retain model."""
    definitions = DEFINITIONS[spec.definitions]
    min_k_aucs: dict[str, float] = {}
    for model in models:
        for attack in spec.membership:
            members = _attack_scores(examples, "forget", model, attack, models, definitions)
            others = _attack_scores(examples, HOLDOUT, model, attack, models, definitions)
            if not len(members) or not len(others):
                continue
            for name, statistic in _STATISTICS.items():
                interval = privacy.attack_interval(
                    statistic, members, others, spec.bootstrap_resamples, spec.seed
                )
                count = len(members) + len(others)
                yield Metric(MEMBERSHIP, f"{attack}_{name}", model, interval, count)
                if attack == "min_k" and name == "auc":
                    min_k_aucs[model] = interval.value
    retain_auc = min_k_aucs.get(RETAIN_MODEL)
    if retain_auc is None and retain_log and retain_log.min_k:
        retain_auc = retain_log.min_k.auc
    if retain_auc is None:
        return
    for model, area in min_k_aucs.items():
        value = privacy.privleak(area, retain_auc, definitions.epsilon)
        if model != RETAIN_MODEL and value is not None:
            count = len(examples.column("forget", model, "min_k"))
            yield Metric(MEMBERSHIP, "privleak", model, Interval(value, None, None), count)


def _attack_scores(
    examples: Examples,
    suite: str,
    model: str,
    attack: str,
    models: Sequence[str],
    definitions: Definitions,
) -> Array:
    """Returns the scores of an attack, larger for members: `[examples]`, empty if not measured."""
    if attack == "loss":
        return -examples.numbers(suite, model, "loss")
    if attack != "retain_model":
        return definitions.attack_sign * examples.numbers(suite, model, attack)
    if RETAIN_MODEL not in models or model == RETAIN_MODEL:
        return np.array([])
    retain_losses = examples.numbers(suite, RETAIN_MODEL, "loss")
    return retain_losses - examples.numbers(suite, model, "loss")
