"""From examples to the `metrics` table: means, TOFU's figures, membership inference, each with its interval."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from meow_ray.config import Evaluate
from meow_ray.core import storage, tables
from meow_ray.core.schema import EVALUATED_MODELS, MEASURES, SCHEMAS
from meow_ray.core.tables import Query, TableSource, text_literal
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import privacy, tofu
from meow_ray.stages.evaluate.examples import write_examples
from meow_ray.stages.evaluate.metrics import Interval, bootstrapped, mean_interval
from meow_ray.stages.evaluate.sets import HOLDOUT
from meow_ray.stages.evaluate.suites import TEXT
from meow_ray.stages.evaluate.tofu import Array, Results

TOFU = "tofu"
"""The suite of TOFU's figures over several sets."""
MEMBERSHIP = "membership"
"""The suite of membership inference: forget set against holdout set."""
RETAIN_MODEL = EVALUATED_MODELS[-1]
"""What the model that never saw the forget set is called in the tables."""


def write(
    found: Mapping[str, Query],
    selected: TableSource,
    spec: Evaluate,
    imported: Mapping[str, Results] | None,
    further: Sequence[Mapping[str, Any]],
    paths: tuple[str, str],
) -> dict[str, Any]:
    """Writes what the models said as examples, and the metrics over them; returns the figures for the manifest.

    Args:
        found: what `EvaluateSteps` gave for each model.
        selected: the inverted facts that were trained on.
        spec: bootstrap and attacks.
        imported: results of the reference model that were measured elsewhere.
        further: rows of metrics that come from elsewhere.
        paths: URIs of the examples and of the metrics.
    """
    examples, metrics = paths
    write_examples(found, selected, examples)
    table = aggregate([examples], spec, imported)
    table = pa.concat_tables(
        [table, pa.Table.from_pylist(list(further), schema=SCHEMAS["metrics"])]
    )
    storage.write_table(table, metrics)
    return {
        "examples": tables.count_rows([examples]),
        "suites": sorted(set(table["suite"].to_pylist())),
        "reference": "model" if RETAIN_MODEL in found else "results" if imported else None,
    }


def aggregate(
    examples: TableSource, spec: Evaluate, imported: Mapping[str, Results] | None = None
) -> pa.Table:
    """Returns the `metrics` table.

    Args:
        examples: a table of `schema.EXAMPLES`.
        spec: bootstrap and attacks.
        imported: results of the reference model that were measured elsewhere.

    Raises:
        MeowError: an example has a figure that is no number; its suite, model and fact are named.
    """
    read = Examples(examples)
    out: list[dict[str, Any]] = []

    def add(suite: str, metric: str, model: str, found: Interval | None, count: int) -> None:
        if found is not None:
            base = {"suite": suite, "metric": metric, "model": model, "num_examples": count}
            out.append(base | {"value": found.value, "low": found.low, "high": found.high})

    for suite, model in read.groups():
        for metric in MEASURES:
            values = read.column(suite, model, metric)
            if len(values):
                add(
                    suite,
                    metric,
                    model,
                    mean_interval(values, spec.bootstrap_resamples, spec.seed),
                    len(values),
                )
        if suite == TEXT:
            add(suite, "perplexity", model, *_perplexity(read, model, spec))
    models = list(dict.fromkeys(model for _, model in read.groups()))
    logs = {model: results(read, model) for model in models}
    for model, log in logs.items():
        add(TOFU, "model_utility", model, *_model_utility(log, spec))
    reference = logs.get(RETAIN_MODEL, imported)
    for model, log in logs.items():
        if reference and "forget" in log and "forget" in reference and model != RETAIN_MODEL:
            pvalue, statistic = tofu.forget_quality(log["forget"], reference["forget"])
            for metric, value in (("forget_quality", pvalue), ("ks_statistic", statistic)):
                add(TOFU, metric, model, Interval(value, None, None), len(log["forget"]))
    for row in _membership(read, models, spec):
        add(*row)
    return pa.Table.from_pylist(out, schema=SCHEMAS["metrics"])


class Examples:
    """Columns of an `examples` table, one suite and model at a time."""

    def __init__(self, source: TableSource) -> None:
        self.source = {"examples": source}

    def groups(self) -> list[tuple[str, str]]:
        """Returns the pairs of suite and model that there are."""
        sql = "SELECT DISTINCT suite, model FROM examples ORDER BY suite, model"
        return [(row["suite"], row["model"]) for row in Query(sql, self.source).rows()]

    def column(self, suite: str, model: str, name: str) -> Any:
        """Returns the values that are not null as `[examples]`, in the order of the facts.

        Raises:
            MeowError: a value is no number.
        """
        where = f"suite = {text_literal(suite)} AND model = {text_literal(model)} AND {name} IS NOT NULL"
        sql = f"SELECT fact_id, {name} AS value FROM examples WHERE {where} ORDER BY fact_id"
        with Query(sql, self.source).batches() as reader:
            table = reader.read_all()
        kind = table["value"].type
        values = table["value"].to_pylist() if pa.types.is_list(kind) else table["value"].to_numpy()
        bad = (
            []
            if name == "answer"
            else [i for i, value in enumerate(values) if not np.isfinite(value).all()]
        )
        if bad:
            raise MeowError(
                f"evaluate: {name} of {len(bad)} examples of {suite}, model {model}, is no number; the first is "
                f"{table['fact_id'][bad[0]].as_py()}. The weights of the model may have become nan or infinite."
            )
        return values


def results(read: Examples, model: str) -> dict[str, Results]:
    """Returns what TOFU's aggregation needs of a model, for the sets that have wrong answers."""
    out = {}
    for suite in tofu.SUITES:
        wrong = read.column(suite, model, "perturbed_losses")
        if len(wrong):
            own, paraphrased = (
                read.column(suite, model, name) for name in ("loss", "paraphrased_loss")
            )
            out[suite] = Results(
                tofu.truth_ratio(paraphrased if len(paraphrased) else own, wrong),
                read.column(suite, model, "probability"),
                read.column(suite, model, "rougeL_recall"),
                tuple(read.column(suite, model, "answer")),
            )
    return out


def _model_utility(log: Mapping[str, Results], spec: Evaluate) -> tuple[Interval | None, int]:
    """Returns model utility; the bootstrap draws the examples of each set anew."""
    value = tofu.model_utility(log)
    if value is None:
        return None, 0
    parts = [log[suite] for suite in tofu.UTILITY]

    def utility(*drawn: Any) -> float:
        means = []
        for suite, part, rows in zip(tofu.UTILITY, parts, drawn, strict=True):
            truth = tofu.truth_scores(suite, part.truth_ratio)
            means += [
                float(values[rows].mean())
                for values in (truth, part.probability, part.rougeL_recall)
            ]  # type: ignore[index]
        return tofu.harmonic_mean(means)

    rows = [np.arange(len(part)) for part in parts]
    return bootstrapped(value, rows, utility, spec.bootstrap_resamples, spec.seed), sum(
        map(len, parts)
    )


def _perplexity(read: Examples, model: str, spec: Evaluate) -> tuple[Interval, int]:
    """Returns exp of the mean loss of a token; the bootstrap draws passages."""
    losses, counts = (read.column(TEXT, model, name) for name in ("loss", "num_tokens"))

    def perplexity(rows: Any) -> float:
        return float(np.exp(np.average(losses[rows], weights=counts[rows])))

    rows = np.arange(len(losses))
    return bootstrapped(
        perplexity(rows), (rows,), perplexity, spec.bootstrap_resamples, spec.seed
    ), len(rows)


_STATISTICS: dict[str, Callable[[Any, Any], float]] = {"auc": privacy.auc, "tpr": privacy.tpr_at}


def _membership(
    read: Examples, models: Sequence[str], spec: Evaluate
) -> list[tuple[str, str, str, Interval | None, int]]:
    """Returns AUC and TPR of each attack on each model, and PrivLeak where there is a reference model."""
    out: list[tuple[str, str, str, Interval | None, int]] = []
    areas: dict[str, Interval] = {}
    for model in models:
        for attack in spec.membership:
            inside, outside = (
                _scores(read, suite, model, attack, models) for suite in ("forget", HOLDOUT)
            )
            if not len(inside) or not len(outside):
                continue
            count = len(inside) + len(outside)
            for name, statistic in _STATISTICS.items():
                found = privacy.bootstrapped(
                    statistic, inside, outside, spec.bootstrap_resamples, spec.seed
                )
                out.append((MEMBERSHIP, f"{attack}_{name}", model, found, count))
                if attack == "min_k" and name == "auc":
                    areas[model] = found
    for model, area in areas.items():
        if model != RETAIN_MODEL and RETAIN_MODEL in areas:
            value = privacy.privleak(area.value, areas[RETAIN_MODEL].value)
            leaked = None if value is None else Interval(value, None, None)
            out.append(
                (MEMBERSHIP, "privleak", model, leaked, len(read.column("forget", model, "min_k")))
            )
    return out


def _scores(read: Examples, suite: str, model: str, attack: str, models: Sequence[str]) -> Array:
    """Returns the scores of an attack, larger for members: `[examples]`, empty where it was not measured."""
    if attack == "loss":
        return -np.asarray(read.column(suite, model, "loss"), dtype=np.float64)
    if attack != "reference":
        return np.asarray(read.column(suite, model, attack), dtype=np.float64)
    if RETAIN_MODEL not in models or model == RETAIN_MODEL:
        return np.array([])
    losses = [
        np.asarray(read.column(suite, name, "loss"), dtype=np.float64)
        for name in (RETAIN_MODEL, model)
    ]
    return losses[0] - losses[1]
