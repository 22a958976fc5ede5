"""How training ended that ends by itself: its comparisons with facts that no model has seen."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from meow_ray.stages.never_seen import looks_never_seen


class Comparison(NamedTuple):
    """One comparison of the facts to forget with facts that no model has seen."""

    step: int
    """The optimiser step after which it was made, counted from 1."""
    p_values: Mapping[str, float]
    """One-sided p-values by figure; small if the facts look more memorised than the twins."""
    looks_never_seen: bool
    """Whether all of them exceed the stop level."""


class Ending(NamedTuple):
    """The end of a training that ends by itself."""

    comparisons: list[Comparison]
    """In order of steps; at least one."""
    stop_level: float
    """The p-value that all figures have to exceed."""
    step: int
    """The last optimiser step."""

    @property
    def last(self) -> Comparison:
        """The last comparison, which decides whether the facts look never seen."""
        return self.comparisons[-1]


def ending_of(history: Sequence[Mapping[str, Any]], stop_level: float | None) -> Ending | None:
    """Returns how training ended; None if it ended after its epochs, or has no history.

    Args:
        history: one record per optimiser step.
        stop_level: the p-value at which training ends; None if it ends after its epochs.
    """
    compared = [record for record in history if "never_seen" in record]
    if stop_level is None or not compared:
        return None
    comparisons = [
        Comparison(
            step=record["step"],
            p_values=record["never_seen"],
            looks_never_seen=looks_never_seen(record["never_seen"], stop_level),
        )
        for record in compared
    ]
    return Ending(comparisons, stop_level, step=history[-1]["step"])
