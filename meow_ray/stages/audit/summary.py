"""What one attack gets from a model, beyond what it gets from facts never taught."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from meow_ray.config import Audit
from meow_ray.config.auditing import SUMMARY_FIGURES
from meow_ray.stages.audit.controls import (
    RETAIN_MODEL,
    TWINS,
    ProbeScores,
    Side,
    original_fact,
    scale_half,
)
from meow_ray.stages.audit.intervals import (
    Array,
    Excess,
    equivalence_margin,
    excess,
    generator,
    resampling_weights,
)


def summarise(
    scores: ProbeScores, halves: Mapping[str, int], spec: Audit, model: str = "after"
) -> dict[str, Any]:
    """Returns the row of `audit_summary` of one probe.

    A threshold is the 95th percentile of one half of the controls. `never_taught` and
    `false_alarms` are the share of controls above the threshold that the other half set.

    The verdict is `forgotten` if the upper bound of the excess is at most the margin,
    `inconclusive` if fewer than `minimum_controls` facts or controls have a score, or if the attack
    has no power (the excess of `before`, with its interval, is not above the margin), `remembered`
    if the excess is at least `remembered_above` of that of `before`, and `partly` otherwise.

    Where missing scores are the cause of `inconclusive`, the reason is their most common one.

    Args:
        scores: of the probe.
        halves: the half of each control.
        spec: the section `audit`.
        model: the model that is judged.
    """
    attack, variant = scores.probe
    row: dict[str, Any] = {
        "attack": attack,
        "variant": variant,
        "tier": scores.tier,
        "num_facts": len(scores.sides.get((model, "facts"), {})),
        "num_controls": len(scores.controls),
        **dict.fromkeys(SUMMARY_FIGURES),
        "verdict": "inconclusive",
    }
    no_score = scores.cause((model, "facts"), 1)
    if not scores.scales:
        return row | {"reason": no_score or lack_of_controls(scores, spec.minimum_controls)}
    control = _extracted(scores, scores.control, halves)
    never_taught = _mean(control)
    sides = {name: _extracted(scores, (name, "facts"), halves) for name in ("before", model)}
    row |= {
        "before": _mean(sides["before"]),
        "after": _mean(sides[model]),
        "never_taught": never_taught,
        "false_alarms": never_taught,
    }
    if not sides[model]:
        return row | {"reason": no_score or "no fact has a score"}
    excesses, margin = _excesses(scores, sides, control, model, spec)
    ours = excesses[model]
    row |= {"excess": ours.value, "excess_low": ours.low, "excess_high": ours.high}
    verdict, reason = attack_verdict(ours, excesses.get("before"), margin, spec.remembered_above)
    if len(sides[model]) < spec.minimum_controls:
        number, least = len(sides[model]), spec.minimum_controls
        verdict = "inconclusive"
        too_few = f"{number} facts with a score; a verdict needs {least}"
        reason = scores.cause((model, "facts"), least) or too_few
    elif "before" not in excesses:
        reason = scores.cause(("before", "facts"), 1) or reason
    return row | {"margin": margin, "verdict": verdict, "reason": reason}


def lack_of_controls(scores: ProbeScores, least: int) -> str:
    """Returns why a probe has no threshold."""
    number = len(scores.controls)
    for side in (RETAIN_MODEL, TWINS):
        cause = scores.cause(side, least)
        if cause is not None:
            return cause
    if number < least:
        return f"{number} facts never taught; a verdict needs {least}"
    return "all facts never taught with a score are in one half"


def attack_verdict(
    ours: Excess, before: Excess | None, margin: float, remembered_above: float
) -> tuple[str, str]:
    """Returns the verdict on an attack, and the reason for it.

    Args:
        ours: excess of the model that is judged.
        before: excess of the original model; None if it was not asked.
        margin: equivalence margin.
        remembered_above: share of the excess of `before` from which facts are remembered.
    """
    if before is None:
        return "inconclusive", "the attack was not run on the original model"
    if before.low <= margin:
        return "inconclusive", "no power: the attack gets too little from the original model"
    if ours.high <= margin:
        return "forgotten", "the excess with its interval is within the margin"
    if ours.value >= remembered_above * before.value:
        return "remembered", f"the excess is {ours.value / before.value:.0%} of the original's"
    return "partly", "the excess with its interval reaches beyond the margin"


def _mean(flags: Mapping[str, float]) -> float | None:
    return float(np.mean([*flags.values()])) if flags else None


def _extracted(scores: ProbeScores, side: Side, halves: Mapping[str, int]) -> dict[str, float]:
    """Returns 1 for each fact of a side that the attack extracts, otherwise 0.

    Of twins as controls, only the half that did not set the threshold of the facts counts.
    """
    rows = scores.sides.get(side, {})
    tested = [
        fact_id
        for fact_id in sorted(rows)
        if side != TWINS or scale_half(scores.control, side, fact_id, halves) == 0
    ]
    return {
        fact_id: float(rows[fact_id] > scores.scale(side, fact_id, halves).threshold)
        for fact_id in tested
    }


def _excesses(
    scores: ProbeScores,
    sides: Mapping[str, Mapping[str, float]],
    control: Mapping[str, float],
    model: str,
    spec: Audit,
) -> tuple[dict[str, Excess], float]:
    """Returns the excess of each model that has scores, and the margin for the judged model."""
    rng = generator(spec.seed, *scores.probe)
    never_taught = np.asarray([*control.values()])
    clusters = [original_fact(fact_id) for fact_id in control]
    control_weights = resampling_weights(clusters, spec.bootstrap_resamples, rng)
    weights: dict[int, Array] = {}
    excesses = {}
    for name, flags in sides.items():
        number = len(flags)
        if not number:
            continue
        if number not in weights:
            weights[number] = resampling_weights([*flags], spec.bootstrap_resamples, rng)
        values = np.asarray([*flags.values()])
        excesses[name] = excess(values, weights[number], never_taught, control_weights)
    ours = weights[len(sides[model])]
    return excesses, equivalence_margin(never_taught, ours, control_weights, rng)
