"""The report: one self-contained page about what a run forgot and what it retained."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from meow_ray.config import Report
from meow_ray.core import storage
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import EXAMPLES_FILE, Artifact
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.stages.audit.verdicts import VERDICTS
from meow_ray.stages.report import audit_part, soup_page, templates
from meow_ray.stages.report.counts import stage_counts
from meow_ray.stages.report.ending import ending_of
from meow_ray.stages.report.meanings import MEANINGS
from meow_ray.stages.report.plots import (
    MAX_DUMBBELLS,
    SUITE_ORDER,
    ExamplePair,
    count_of_facts,
    distribution_plot,
    ending_plot,
    loss_plot,
    memo_plot,
    rank_in,
)

MAX_EXAMPLES = 200
"""Largest number of rows in the table of examples."""


class MetricRow(NamedTuple):
    """A row of the page's table of metrics: one suite and metric.

    `before`, `after` and `retain_model` are rows of the table `metrics`; None if not measured.
    """

    suite: str
    metric: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    retain_model: dict[str, Any] | None


class ForgetExample(NamedTuple):
    """A fact of the forget set; `before` and `after` are rows of `EXAMPLES_SCHEMA`.

    `after` is None if the target alone was evaluated.
    """

    fact_id: str
    before: dict[str, Any]
    after: dict[str, Any] | None

    @property
    def last(self) -> dict[str, Any]:
        """The row of the tuned model, or else of the target."""
        return self.after or self.before


def render(spec: Report, inputs: Mapping[str, Artifact], stop_level: float | None = None) -> str:
    """Returns the page as HTML that loads nothing; the same inputs give the same page.

    Args:
        spec: title, note, and whether the text of facts may be shown.
        inputs: `facts`, `candidates`, `memo`, `selected`, `target`, `model` and `metrics`; of an
            evaluation of the target alone only `facts`, `target` and `metrics`. Inputs from outside
            have no examples, training history or counts; the page leaves those out. `soup`, the
            curve of `meow soup`, and `audit` need not be there.
        stop_level: the p-value at which training ends; None if it ends after its epochs.

    Raises:
        MeowError: an artifact cannot be read.
    """
    metrics = inputs["metrics"]
    rows = metric_rows(metrics.table.to_pylist())
    measured = {row.metric for row in rows}
    examples = _examples_of(metrics)
    history = _training_history(inputs["model"]) if "model" in inputs else []
    ending = ending_of(history, stop_level)
    curve = inputs["soup"].value if "soup" in inputs else None
    with_memo = [pair for pair in example_pairs(examples) if _has_memo(pair)]
    forget = sorted(forget_examples(examples), key=_by_remaining_leak)
    return templates.render(
        "report.html.j2",
        spec=spec,
        outcome=outcome(rows),
        meanings={name: meaning for name, meaning in MEANINGS.items() if name in measured},
        is_alone="model" not in inputs,
        models=_column_titles(rows),
        has_quality="forget_quality" in measured,
        has_reference_free="reference_free_forget_quality" in measured,
        rows=rows,
        memo_plot=memo_plot(with_memo) if with_memo else None,
        dumbbells=len(with_memo) <= MAX_DUMBBELLS,
        distribution_plot=distribution_plot(inputs["memo"]) if "memo" in inputs else None,
        loss_plot=loss_plot(history) if history else None,
        history=history,
        ending=ending,
        ending_plot=ending_plot(ending) if ending else None,
        **soup_page.curve_parts(curve),
        audit=audit_part.audit_part(inputs.get("audit")),
        verdict_names=VERDICTS,
        max_audit_facts=audit_part.MAX_FACTS,
        counts=stage_counts(inputs),
        examples=forget[:MAX_EXAMPLES],
        num_forget=len(forget),
        inputs=inputs,
        versions=metrics.manifest.versions if metrics.manifest else {},
    )


# --- what the page shows --------------------------------------------------------------------------


def metric_rows(table: Sequence[dict[str, Any]]) -> list[MetricRow]:
    """Returns the rows of a table `metrics` with all models of a metric in one row.

    Suites are in the order of `SUITE_ORDER`, metrics in that of `MEANINGS`; others come last.
    """
    by_metric: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in table:
        by_metric.setdefault((row["suite"], row["metric"]), {})[row["model"]] = row
    metric_order = list(MEANINGS)

    def position(key: tuple[str, str]) -> tuple[int, str, int, str]:
        suite, metric = key
        return rank_in(suite, SUITE_ORDER), suite, rank_in(metric, metric_order), metric

    rows = []
    for suite, metric in sorted(by_metric, key=position):
        models = [by_metric[suite, metric].get(model) for model in EVALUATED_MODELS]
        rows.append(MetricRow(suite, metric, *models))
    return rows


def _column_titles(rows: Sequence[MetricRow]) -> dict[str, str]:
    """Returns the titles of the columns of models in the table of metrics, by model."""
    measured = [name for name in EVALUATED_MODELS if any(getattr(row, name) for row in rows)]
    titles = {"before": "Before", "after": "After", "retain_model": "Retain model"}
    if "after" not in measured:
        titles["before"] = "Target"
    return {name: titles[name] for name in measured}


Examples = Mapping[tuple[str, str], Mapping[str, dict[str, Any]]]
"""By suite and fact, the rows of `examples` by model."""


def _examples_of(metrics: Artifact) -> Examples:
    by_example: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    if EXAMPLES_FILE in metrics.files:
        for row in metrics.extra(EXAMPLES_FILE).to_pylist():
            by_example.setdefault((row["suite"], row["fact_id"]), {})[row["model"]] = row
    return by_example


def example_pairs(examples: Examples) -> list[ExamplePair]:
    """Returns the examples that were answered both before and after."""
    return [
        ExamplePair(suite, fact_id, models["before"], models["after"])
        for (suite, fact_id), models in examples.items()
        if models.keys() >= {"before", "after"}
    ]


def forget_examples(examples: Examples) -> list[ForgetExample]:
    """Returns the facts of the forget set that the target has answered."""
    return [
        ForgetExample(fact_id, models["before"], models.get("after"))
        for (suite, fact_id), models in examples.items()
        if suite == "forget" and "before" in models
    ]


def _has_memo(pair: ExamplePair) -> bool:
    return pair.before["memo"] is not None and pair.after["memo"] is not None


def _by_remaining_leak(example: ForgetExample) -> tuple[float, str]:
    """Sorts the largest leak first, and facts without a leak last."""
    leak = example.last["leak"]
    return (1.0 if leak is None else -leak, example.fact_id)


def _training_history(model: Artifact) -> list[dict[str, Any]]:
    if HISTORY_FILE not in model.files:
        return []
    return list(storage.read_json(storage.join(model.uri, HISTORY_FILE)))


def outcome(rows: Sequence[MetricRow]) -> str:
    """Returns one sentence about what was forgotten and what was retained.

    If the target alone was evaluated, the sentence says what it knows.
    """
    by_metric = {(row.suite, row.metric): row for row in rows}
    clauses = [
        _leak_clause(by_metric.get(("forget", "leak"))),
        _retained_clause(by_metric.get(("retain", "rougeL_recall"))),
        _quality_clause("forget quality", by_metric.get(("tofu", "forget_quality"))),
        _quality_clause(
            "reference-free forget quality",
            by_metric.get(("never_seen", "reference_free_forget_quality")),
        ),
        _utility_clause(by_metric.get(("tofu", "model_utility"))),
    ]
    sentence = "; ".join(clause for clause in clauses if clause)
    if not sentence:
        return (
            "The metrics contain neither the leak of the forget set nor the ROUGE-L recall of the "
            "retain set."
        )
    return f"{sentence[0].upper()}{sentence[1:]}."


def _leak_clause(row: MetricRow | None) -> str | None:
    if row is None or row.before is None:
        return None
    facts = count_of_facts((row.after or row.before)["num_examples"])
    if row.after is None:
        return f"the leak of the forget set is {row.before['value']:.3f} over {facts}"
    return f"the leak of the forget set went from {_change(row.before, row.after)} over {facts}"


def _retained_clause(row: MetricRow | None) -> str | None:
    if row is None or row.before is None:
        return None
    if row.after is None:
        return f"the ROUGE-L recall of the retain set is {row.before['value']:.3f}"
    if row.before["value"] <= 0:
        return None
    share = row.after["value"] / row.before["value"]
    percent = f"{share:.1%}".removesuffix("%")
    return f"the retain set still has {percent} % of its ROUGE-L recall"


def _quality_clause(name: str, row: MetricRow | None) -> str | None:
    last = row and (row.after or row.before)
    return f"{name} is {format_number(last['value'])}" if last else None


def _utility_clause(row: MetricRow | None) -> str | None:
    if row is None or row.before is None:
        return None
    if row.after is None:
        return f"model utility is {row.before['value']:.3f}"
    return f"model utility went from {_change(row.before, row.after)}"


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return f"{before['value']:.3f} to {after['value']:.3f}"
