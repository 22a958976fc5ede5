"""The end of training by itself: when the facts look as if the model had never seen them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from meow_ray.stages import never_seen
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.log_odds import raised
from meow_ray.stages.train.passes import Score, Workers, map_pairs, score
from meow_ray.stages.train.watched import Watched
from meow_ray.stages.train.zero import Model

LEAST_STEPS = 5
"""The smallest number of optimiser steps between two comparisons."""


@dataclass(frozen=True)
class Stop:
    """Compares the facts to forget with twins, which no model has seen.

    The figures of the twins are those of the model before training, since a model that was never
    taught the facts would say of them what the target says of the twins. No twin of this half has
    any other part in training.
    """

    truth: Sequence[Pair]
    """The facts to forget with their true answers."""
    twins: Sequence[Figures]
    """The figures of the twins before training, their facts as easy to guess as the true ones."""
    interval: int
    """Number of optimiser steps between two comparisons."""

    @classmethod
    def of(cls, job: Job, model: Model, watched: Watched, workers: Workers) -> "Stop | None":
        """Asks the model before training about the twins; None if training ends by its epochs.

        A comparison takes about a tenth of the time of the steps between two of them.
        """
        if job.objective.until != "never_seen":
            return None
        margin = job.objective.settings.get("margin", 0.0)
        found = map_pairs(job, model, watched.stop, score, workers)
        scores = [
            easier(twin, of_twin, margin + twin.shift)
            for twin, of_twin in zip(watched.stop, found, strict=True)
        ]
        steps_per_pass = -(-len(watched.truth) // job.spec.batch_size)
        return cls(
            truth=watched.truth,
            twins=_figures(watched.stop, scores),
            interval=max(LEAST_STEPS, steps_per_pass),
        )

    def is_due(self, step: int) -> bool:
        """Whether the facts are compared after a step, counted from 1."""
        return step % self.interval == 0

    def compare(self, job: Job, model: Model, workers: Workers) -> dict[str, float]:
        """Returns the p-value of each figure; every worker calls this and gets the same.

        A small one says that the facts are more memorised than facts that no model has seen.
        """
        scores = map_pairs(job, model, self.truth, score, workers)
        return never_seen.compare(_figures(self.truth, scores), self.twins).p_values_of_more


@dataclass(frozen=True)
class CoolDown:
    """The steps after the facts look never seen, in which the learning rate falls to 0.

    The facts are then already forgotten. The smaller steps repair what the large ones damaged:
    neighbours, and true answers that fell below their floors.
    """

    start: int
    """The number of steps before it."""
    length: int
    """Its number of steps."""

    @classmethod
    def of(cls, job: Job, history: Sequence[Mapping[str, Any]]) -> "CoolDown | None":
        """Returns the cool-down of a run with these records; None before its start."""
        for record in history:
            if "never_seen" in record and is_reached(job, record["never_seen"]):
                start = record["step"]
                return cls(start, ceil(start * job.objective.cooldown))
        return None

    @property
    def end(self) -> int:
        """The number of steps of the run."""
        return self.start + self.length

    def share(self, step: int) -> float:
        """Returns the share of the learning rate that a step takes, counted from 0."""
        return (self.end - step) / (self.length + 1)


def is_reached(job: Job, p_values: Mapping[str, float]) -> bool:
    """Whether no figure tells the facts from those that no model has seen."""
    return never_seen.looks_never_seen(p_values, job.objective.stop_level)


def easier(twin: Pair, found: Score, by: float) -> Score:
    """Returns what a model says of a twin, with fact-bearing tokens that are easier to guess.

    Args:
        twin: the twin.
        found: what the model says of its answer.
        by: what is added to the log-odds of its fact-bearing tokens. The floors of the true answer
            to the same fact are raised by the same number.
    """
    if not by:
        return found
    is_raised = np.array(twin.fact_mask)
    log_probs = np.where(is_raised, raised(found.log_probs, by), found.log_probs)
    return found._replace(log_probs=log_probs.tolist())


def _figures(pairs: Sequence[Pair], scores: Sequence[Score]) -> list[Figures]:
    return [
        never_seen.figures(found.log_probs, found.is_greedy, pair.fact_mask)
        for pair, found in zip(pairs, scores, strict=True)
    ]
