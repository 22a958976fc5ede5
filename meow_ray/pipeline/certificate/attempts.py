"""What was attacked with which budget and threshold, what was not, and why."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from meow_ray.config import Audit
from meow_ray.config.auditing import ATTACKS
from meow_ray.pipeline.certificate.evidence import Row
from meow_ray.stages.audit.derived.rows import TIERS
from meow_ray.stages.audit.reasons import explained
from meow_ray.stages.audit.verdicts import Judgement, in_order

DERIVING = tuple(TIERS)
"""The attacks that make models of those that are audited."""

Entry = dict[str, Any]


def _probe(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["attack"], row["variant"]


def budgets(rows: Sequence[Row]) -> list[Entry]:
    """Returns what each attack spent on each model: facts asked, attempts, missing scores."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["attack"], row["variant"], row["tier"], row["model"], row["group"])
        groups.setdefault(key, []).append(row)
    entries = []
    for (attack, variant, tier, model, group), members in sorted(groups.items()):
        attempts = [row["attempts"] for row in members]
        reasons = [row["reason"] for row in members]
        entries.append(
            {
                "attack": attack,
                "variant": variant,
                "tier": tier,
                "model": model,
                "group": group,
                "facts": len(members),
                "fewest_attempts": min(attempts),
                "most_attempts": max(attempts),
                "missing": sum(row["score"] is None for row in members),
                "reasons": dict(sorted(Counter(filter(None, reasons)).items())),
                "extracted": sum(bool(row["extracted"]) for row in members),
            }
        )
    return entries


def thresholds(judgement: Judgement) -> list[Entry]:
    """Returns the controls of each attack, and the threshold that each half of them sets."""
    return [
        {
            "attack": scores.probe[0],
            "variant": scores.probe[1],
            "control": " on ".join(scores.control),
            "num_controls": len(scores.controls),
            "thresholds": [scale.threshold for scale in scores.scales],
        }
        for scores in in_order(judgement.collected.probes.values())
    ]


def derived_models(rows: Sequence[Row], summary: Sequence[Entry]) -> list[Entry]:
    """Returns the models that the audit made of others, with the verdict on each variant.

    `made` has the digest of the weights of each of them, the model that it was made from, and the
    number of rows of the audit for which it was asked; it is empty if none could be made.
    """
    made: dict[tuple[str, str], Counter[tuple[str, str]]] = {}
    for row in rows:
        if row["weights"] is not None:
            asked = made.setdefault(_probe(row), Counter())
            asked[row["model"], row["weights"]] += 1
    return [
        {name: row[name] for name in ("attack", "variant", "verdict", "reason")}
        | {
            "made": [
                {"model": model, "weights": weights, "rows": number}
                for (model, weights), number in sorted(made.get(_probe(row), Counter()).items())
            ]
        }
        for row in summary
        if row["attack"] in DERIVING
    ]


def not_tested(
    rows: Sequence[Row], spec: Audit, summary: Sequence[Entry], metrics: Sequence[Entry]
) -> list[dict[str, str]]:
    """Returns what the audit leaves open, each with its reason, in the order of the attacks."""
    return [
        {"what": what, "why": why}
        for what, why in [
            *_missing_attacks(rows, spec),
            *_inconclusive(summary),
            *_missing_models(rows),
            *_missing_metrics(metrics),
        ]
    ]


def _missing_attacks(rows: Sequence[Row], spec: Audit) -> Iterator[tuple[str, str]]:
    attacked = {row["attack"] for row in rows}
    for attack in ATTACKS:
        if attack in attacked:
            continue
        is_on = attack in spec.attacks
        why = "the audit has no row of it" if is_on else "it is not in audit.attacks"
        yield f"attack {attack}", why


def _inconclusive(summary: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    for row in summary:
        if row["verdict"] == "inconclusive":
            name = " ".join(part for part in _probe(row) if part)
            yield f"attack {name}", explained(row["reason"]) or "inconclusive"


def _missing_models(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    models = {row["model"] for row in rows}
    twins = any(row["group"] == "twins" for row in rows)
    if "retain_model" not in models:
        control = "twins are the control" if twins else "there is no control at all"
        yield "a model that never saw the facts", f"none was given; {control}"


def _missing_metrics(metrics: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    suites = {row["suite"] for row in metrics}
    if not suites:
        yield "utility before and after", "the stage evaluate has not run"
    elif "retain" not in suites:
        yield "facts to retain", "the metrics have no suite retain"
