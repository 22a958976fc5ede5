"""Rows without a score: every attack has a row per variant, model and subject, with a reason.

Something that could not be measured must not look like something that was not asked for. So a
subject of which an attack asks nothing has a row, too, and a score that is no number is missing.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from meow_ray.stages.audit.attack import Attack, Outcome
from meow_ray.stages.audit.reasons import REASONS
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow, scored_row


def unasked_rows(
    audit: AuditContext, attacks: Sequence[Attack], rows: Iterable[ScoredRow]
) -> Iterator[ScoredRow]:
    """Yields a row without score for each subject of which a variant of an attack asks nothing.

    An attack that asks nothing at all has one variant without a name.

    Args:
        audit: the subjects and models.
        attacks: the attacks that ask questions.
        rows: the rows that they gave.
    """
    asked: dict[str, dict[str, set[tuple[str, ...]]]] = {attack.name: {} for attack in attacks}
    for row in rows:
        of_variant = asked[row.attack].setdefault(row.variant, set())
        of_variant.add((row.model, row.group, row.fact_id))
    for attack in attacks:
        outcome = Outcome(None, 0, reason=attack.if_unasked)
        for variant, known in (asked[attack.name] or {"": set()}).items():
            for model in audit.models:
                for subject in audit.asked_of(model):
                    if (model, subject.group, subject.fact_id) not in known:
                        yield scored_row(attack.name, variant, attack.tier, model, subject, outcome)


def settled(outcome: Outcome) -> Outcome:
    """Returns an outcome that has either a finite score or a reason.

    An attack of the user's own may give neither, and a damaged model gives numbers that are none.
    """
    if outcome.score is None:
        reason = outcome.reason if outcome.reason in REASONS else "unexplained"
        return replace(outcome, reason=reason)
    if not math.isfinite(outcome.score):
        return replace(outcome, score=None, low=None, high=None, reason="not_finite")
    return replace(outcome, reason=None)
