"""The limit of the largest standardised score that a fact never taught reaches.

The limit for a fact reads the same probes as the verdict on the fact. A fact that is a control
itself is compared with the other controls of its half, whose scores are standardised with the same
scale as its own: were the fact never taught, all of them would be exchangeable, and the fact would
exceed the limit in at most 5 % of cases.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from meow_ray.stages.audit.controls import (
    LEVEL,
    Array,
    Collected,
    Probe,
    ProbeScores,
    Side,
    scale_half,
    upper_limit,
)


@dataclass(frozen=True)
class Limits:
    """The limits of the facts of an audit."""

    collected: Collected
    standardised: Mapping[Side, tuple[list[str], list[Probe], Array]]
    """For each kind of control its facts, its probes, and `[facts, probes]` scores, standardised
    with the scale of the half that a fact is not in; NaN where a score is missing."""
    level: float
    """Share of facts never taught that may exceed the limit of one kind of control."""
    _maxima: dict[tuple[Side, frozenset[Probe]], Array] = field(default_factory=dict)

    @classmethod
    def of(cls, collected: Collected) -> "Limits":
        """Standardises the scores of all controls."""
        by_control: dict[Side, list[ProbeScores]] = {}
        for scores in collected.probes.values():
            if scores.scales:
                by_control.setdefault(scores.control, []).append(scores)
        standardised = {
            control: _standardised(probes, collected.halves[control])
            for control, probes in by_control.items()
        }
        # probes with different kinds of controls share the level
        return cls(collected, standardised, LEVEL / max(1, len(standardised)))

    def for_fact(self, fact_id: str, side: Side, probes: Iterable[Probe]) -> dict[Side, float]:
        """Returns the limit of each kind of control.

        Args:
            fact_id: the fact.
            side: the model and the group whose row is judged.
            probes: the probes with a score of this fact.
        """
        wanted = frozenset(probes)
        return {
            control: self._limit(control, fact_id, side, wanted) for control in self.standardised
        }

    def _limit(self, control: Side, fact_id: str, side: Side, wanted: frozenset[Probe]) -> float:
        facts, _, _ = self.standardised[control]
        halves = self.collected.halves[control]
        tested = 1 - scale_half(control, side, fact_id, halves)
        maxima = self._largest(control, wanted)
        is_own = side[1] == control[1]
        others = [
            value
            for other, value in zip(facts, maxima, strict=True)
            if halves[other] == tested and not (is_own and other == fact_id) and value > -np.inf
        ]
        return upper_limit(others, self.level) if others else np.inf

    def _largest(self, control: Side, wanted: frozenset[Probe]) -> Array:
        """Returns the largest standardised score of each control, `[facts]`."""
        key = (control, wanted)
        if key not in self._maxima:
            _, probes, values = self.standardised[control]
            columns = [at for at, probe in enumerate(probes) if probe in wanted]
            chosen = values[:, columns]
            filled = np.where(np.isnan(chosen), -np.inf, chosen)
            self._maxima[key] = filled.max(axis=1, initial=-np.inf)
        return self._maxima[key]


def _standardised(
    probes: list[ProbeScores], halves: Mapping[str, int]
) -> tuple[list[str], list[Probe], Array]:
    facts = sorted(halves)
    place = {fact_id: at for at, fact_id in enumerate(facts)}
    values = np.full((len(facts), len(probes)), np.nan)
    for column, scores in enumerate(probes):
        for fact_id, score in scores.controls.items():
            scale = scores.scale(scores.control, fact_id, halves)
            values[place[fact_id], column] = scale.standardised(score)
    return facts, [scores.probe for scores in probes], values
