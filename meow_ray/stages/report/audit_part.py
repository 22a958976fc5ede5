"""The audit on the page of a run: attacks with intervals, and verdicts on facts."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from meow_ray.core.manifest import Artifact
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE
from meow_ray.stages.audit.verdicts import TIERS, VERDICTS

MAX_FACTS = 200
"""Largest number of rows in the table of facts that are not forgotten."""
GRAVITY = ("remembered", "partly")
"""The verdicts on facts that are not forgotten, the worst one first."""


class TierVerdicts(NamedTuple):
    """How many facts have each verdict on a tier."""

    tier: str
    counts: Mapping[str, int]


class AuditPart(NamedTuple):
    """What the page shows of an audit. It holds no text of facts."""

    attacks: list[dict[str, Any]]
    """Rows of `AUDIT_SUMMARY_SCHEMA`."""
    tiers: list[TierVerdicts]
    """In order of what the attacker has; only tiers that were attacked."""
    not_forgotten: list[dict[str, Any]]
    """Rows of `VERDICTS_SCHEMA`, one per fact: its worst verdict, on the lowest tier with that."""


def audit_part(audit: Artifact | None) -> AuditPart | None:
    """Returns what the page shows of an audit; None if there is none or it comes from outside."""
    if audit is None or not {SUMMARY_FILE, VERDICTS_FILE} <= set(audit.files):
        return None
    verdicts = audit.extra(VERDICTS_FILE).to_pylist()
    return AuditPart(
        attacks=audit.extra(SUMMARY_FILE).to_pylist(),
        tiers=_counts(verdicts),
        not_forgotten=_not_forgotten(verdicts),
    )


def _counts(verdicts: Iterable[dict[str, Any]]) -> list[TierVerdicts]:
    by_tier: dict[str, Counter[str]] = {}
    for row in verdicts:
        by_tier.setdefault(row["tier"], Counter())[row["verdict"]] += 1
    return [
        TierVerdicts(tier, {verdict: by_tier[tier][verdict] for verdict in VERDICTS})
        for tier in TIERS
        if tier in by_tier
    ]


def _not_forgotten(verdicts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    worst: dict[str, dict[str, Any]] = {}
    for row in sorted(verdicts, key=_gravity):
        if row["verdict"] in GRAVITY:
            worst.setdefault(row["fact_id"], row)
    return sorted(worst.values(), key=lambda row: (_gravity(row), row["fact_id"]))


def _gravity(row: Mapping[str, Any]) -> tuple[int, int]:
    """Sorts the worst verdict first, and of equal ones that of the weakest attacker."""
    place = GRAVITY.index(row["verdict"]) if row["verdict"] in GRAVITY else len(GRAVITY)
    return place, TIERS.index(row["tier"])
