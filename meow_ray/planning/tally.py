"""An engine that counts what it is asked, for estimates of a run's work."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from meow_ray.engines import Completion, Sampling, TeacherForced
from meow_ray.engines.base import Tokens

MISMATCHES = 3
"""Every third token is assumed not to be greedy; MEMO continues each such token of a window."""


@dataclass
class Tally:
    """An engine that counts its requests and answers them with empty texts."""

    tokenizer: Any
    max_model_len: int
    ends: set[int] = field(default_factory=set)
    reply_tokens: float | None = None
    """The assumed length of a reply; None assumes the longest that sampling allows."""
    requests: int = 0
    passes: int = 0
    read: int = 0
    generated: int = 0

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """Counts prompts and their continuations; see `Engine.generate`."""
        self.read += sum(map(len, prompts))
        for params in sampling:
            length = min(params.max_new_tokens, self.reply_tokens or params.max_new_tokens)
            self.requests += params.n
            self.generated += params.n * round(length)
        return [[Completion("", True)] * params.n for params in sampling]

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """Counts prompts and answers; see `Engine.teacher_force`."""
        self.passes += len(prompts)
        self.read += sum(map(len, prompts)) + sum(map(len, answers))
        return [
            TeacherForced(
                log_probs=[0.0] * len(answer),
                is_greedy=[i % MISMATCHES > 0 for i in range(len(answer))],
                ends=True,
                means=[0.0] * len(answer),
                deviations=[0.0] * len(answer),
            )
            for answer in answers
        ]


@dataclass
class StageWork:
    """The work of one stage, summed over its actors or workers."""

    stage: str
    by: str
    """The field of `Rates` that applies."""
    requests: float = 0
    """Continuations."""
    passes: float = 0
    """Sequences that are read in forward passes without a continuation."""
    read: float = 0
    """Tokens of prompts and of teacher-forced answers."""
    generated: float = 0
    """Generated tokens, an upper bound."""
    trained: float = 0
    """Tokens that are trained on."""
    storage: float = 0
    """Bytes of the stage's artifact."""
    starts: float = 1
    """Engines that are loaded one after another."""
    derived: float = 0
    """Quantised, pruned and relearned models that an audit makes."""
    steps: float = 0
    """Optimiser steps that an audit takes to make them."""

    def add(self, tally: Tally, factor: float) -> None:
        """Adds the counts of a tally, multiplied by a factor."""
        self.requests += factor * tally.requests
        self.passes += factor * tally.passes
        self.read += factor * tally.read
        self.generated += factor * tally.generated
