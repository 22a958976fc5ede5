"""One self-contained page for people: what was forgotten, what was kept, and how it came about."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from meow_ray.config import Report
from meow_ray.core import storage
from meow_ray.core.manifest import EXAMPLES_FILE, HISTORY_FILE, Artifact
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.stages.report.compare import number
from meow_ray.stages.report.plots import (
    MAX_DUMBBELLS,
    SUITE_ORDER,
    ExamplePair,
    count_of_facts,
    distribution_plot,
    loss_plot,
    memo_plot,
    rank_in,
)

MAX_EXAMPLES = 200
"""Rows of the table of examples."""

MEANINGS = {
    "memo": "how much of the true text the model continues by itself when it is given a part; 1 is known by heart",
    "rougeL_recall": "share of the true answer that the model's answer says, in the same order (ROUGE-L recall)",
    "probability": "how probable the model finds the true answer, as the mean over its tokens (geometric); for real "
    "authors and world facts, among right and wrong answers (TOFU)",
    "truth_ratio": "TOFU's truth ratio, of wrong answers to a right one in other words: on the forget set 1 if the "
    "model holds both for equally likely, on other sets 1 if it holds the wrong ones for impossible",
    "leak": "share of the true answer's words that the question does not give away and the model's answer says",
    "exact_memorization": "share of the true answer's tokens that are the model's first choice behind those before",
    "extraction_strength": "share of the true answer that follows by itself from its beginning; 0 if none does",
    "extraction_likelihood": "share of the n-grams that the model continues with which stand in the true answer (EL)",
    "rep3": "share of the answer's word triples that repeat an earlier one; 0 is fluent, gibberish loops",
    "bleu": "BLEU of how the model continues the first half of a passage, against as many tokens of the second",
    "perplexity": "exponential of the model's mean loss on a token of the passages' second halves, each behind its "
    "first; lower is more at home",
    "states_inverted": "share of answers that state one of the inverted facts that were trained on",
    "model_utility": "harmonic mean of probability, ROUGE-L recall and truth ratio of the retain set, real authors "
    "and world facts (TOFU)",
    "forget_quality": "p-value of the test whether the model can be told from one that never saw the forget set, by "
    "its truth ratios there (TOFU); high is well forgotten",
    "ks_statistic": "the distance that this test measures (Kolmogorov-Smirnov); 0 is none",
    "privleak": "PrivLeak of Min-K %: below 0 too little was forgotten, above 0 so much that it shows (MUSE)",
}
"""What each metric says, in one line."""

_ATTACK = "how well membership inference by {} tells the forget set from the holdout set"
for _name, _by in (
    ("loss", "loss"),
    ("zlib", "loss over compressed size"),
    ("min_k", "Min-K %"),
    ("min_k_pp", "Min-K %++"),
    ("reference", "loss against the reference model"),
):
    MEANINGS[f"{_name}_auc"] = f"{_ATTACK.format(_by)}: area under the ROC curve, .5 is not at all"
    MEANINGS[f"{_name}_tpr"] = f"{_ATTACK.format(_by)}: true positives at 1 % false positives"


class MetricRow(NamedTuple):
    """One suite and metric; `before`, `after` and `reference` are rows of the `metrics` table."""

    suite: str
    metric: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reference: dict[str, Any] | None


def render(spec: Report, inputs: Mapping[str, Artifact]) -> str:
    """Returns the page as HTML that loads nothing; the same inputs give the same page.

    Args:
        spec: title, note, and whether the text of facts may be shown.
        inputs: `facts`, `candidates`, `memo`, `selected`, `target`, `model` and `metrics`. What only a stage of this
            pipeline leaves behind (examples, training history, counts) is passed over for inputs from outside.

    Raises:
        MeowError: an artifact cannot be read.
    """
    metrics, model = inputs["metrics"], inputs["model"]
    rows = metric_rows(metrics.table.to_pylist())
    pairs = (
        example_pairs(metrics.extra(EXAMPLES_FILE).to_pylist())
        if EXAMPLES_FILE in metrics.files
        else []
    )
    history = (
        storage.read_json(storage.join(model.uri, HISTORY_FILE))
        if HISTORY_FILE in model.files
        else []
    )
    scored = [p for p in pairs if p.before["memo"] is not None and p.after["memo"] is not None]
    forget = sorted((p for p in pairs if p.suite == "forget"), key=_by_remaining_leak)
    measured = {row.metric for row in rows}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            spec=spec,
            outcome=outcome(rows),
            meanings={name: meaning for name, meaning in MEANINGS.items() if name in measured},
            has_reference=any(row.reference for row in rows),
            has_quality=any(row.metric == "forget_quality" for row in rows),
            rows=rows,
            memo_plot=memo_plot(scored) if scored else None,
            distribution_plot=distribution_plot(inputs["memo"]),
            dumbbells=len(scored) <= MAX_DUMBBELLS,
            loss_plot=loss_plot(history) if history else None,
            history=history,
            counts=_counts(inputs),
            examples=forget[:MAX_EXAMPLES],
            num_forget=len(forget),
            inputs=inputs,
            versions=metrics.manifest.versions if metrics.manifest else {},
        )
    )


def metric_rows(table: Sequence[dict[str, Any]]) -> list[MetricRow]:
    """Puts before and after beside each other: forget and retain first, metrics as people read them."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in table:
        found.setdefault((row["suite"], row["metric"]), {})[row["model"]] = row
    order = list(MEANINGS)
    keys = sorted(
        found,
        key=lambda key: (rank_in(key[0], SUITE_ORDER), key[0], rank_in(key[1], order), key[1]),
    )
    return [MetricRow(*key, *(found[key].get(model) for model in EVALUATED_MODELS)) for key in keys]


def example_pairs(table: Sequence[dict[str, Any]]) -> list[ExamplePair]:
    """Returns the examples that were answered before and after."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in table:
        found.setdefault((row["suite"], row["fact_id"]), {})[row["model"]] = row
    return [
        ExamplePair(*key, f["before"], f["after"])
        for key, f in found.items()
        if f.keys() >= {"before", "after"}
    ]


def outcome(rows: Sequence[MetricRow]) -> str:
    """Says in one sentence what was forgotten and what was kept."""
    found = {(row.suite, row.metric): row for row in rows}
    parts = []
    leak, kept = found.get(("forget", "leak")), found.get(("retain", "rougeL_recall"))
    if leak and leak.before and leak.after:
        change = f"{leak.before['value']:.3f} to {leak.after['value']:.3f}"
        parts.append(
            f"the leak of the forget set went from {change} over {count_of_facts(leak.after['num_examples'])}"
        )
    if kept and kept.before and kept.after and kept.before["value"] > 0:
        share = kept.after["value"] / kept.before["value"]
        parts.append(f"the retain set kept {share:.1%} of its ROUGE-L recall".replace("%", " %"))
    quality, utility = found.get(("tofu", "forget_quality")), found.get(("tofu", "model_utility"))
    if quality and quality.after:
        parts.append(f"forget quality is {_number(quality.after['value'])}")
    if utility and utility.before and utility.after:
        parts.append(
            f"model utility went from {utility.before['value']:.3f} to {utility.after['value']:.3f}"
        )
    if not parts:
        return "The metrics hold neither the leak of the forget set nor the ROUGE-L recall of the retain set."
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _by_remaining_leak(pair: ExamplePair) -> tuple[float, str]:
    leak = pair.after["leak"]
    return (1.0 if leak is None else -leak, pair.fact_id)


def _counts(inputs: Mapping[str, Artifact]) -> list[tuple[str, str]]:
    """Returns what the manifests of inversion, MEMO and selection count, in words."""
    out = []
    if manifest := inputs["candidates"].manifest:
        found = manifest.summary
        out.append(
            (
                "Facts with enough inverted facts",
                f"{found['facts_with_enough']} of {found['facts']}",
            )
        )
        for label, key in (
            ("to the true answer", "mean_distance"),
            ("between two of a fact", "mean_distinctness"),
        ):
            out.append((f"Distance of inverted answers {label} (1 - ROUGE-L)", _number(found[key])))
        rejects = ", ".join(f"{rule} {count}" for rule, count in found["rejected_by_rule"].items())
        out.append(("Proposals rejected, by rule", rejects or "none"))
    if manifest := inputs["memo"].manifest:
        found = manifest.summary
        for label, key in (("true", "true_answers"), ("inverted", "candidates")):
            part = found[key]
            out.append(
                (
                    f"MEMO of the {label} answers: mean, cv",
                    f"{_number(part['mean'])}, {_number(part['cv'])}",
                )
            )
        out.append(
            ("MEMO of a true answer above the mean of its inverted ones", _number(found["gap"]))
        )
        for label, key in (("Most", "most_memorised"), ("Least", "least_memorised")):
            facts = ", ".join(f"{row['fact_id'][:8]} {row['memo']:.3f}" for row in found[key][:5])
            out.append((f"{label} memorised facts", facts or "none"))
        out.append(
            ("Answers too short to be scored", f"{found['too_short']} of {found['answers']}")
        )
    if manifest := inputs["selected"].manifest:
        found, top_k = manifest.summary, manifest.ingredients["spec"]["select"]["top_k"]
        out.append(
            (
                f"Facts with all {top_k} chosen (top_k)",
                f"{found['facts_with_top_k']} of {found['facts']}",
            )
        )
        out.append(
            (
                "Facts with fewer",
                f"{found['facts_with_fewer']}, and {found['facts_with_none']} with none",
            )
        )
    return out


def _number(value: float | None) -> str:
    return "–" if value is None else number(value)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("meow_ray.stages.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "display": storage.display}
    return environment
