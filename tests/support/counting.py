"""`meow` with a real engine that writes down which prompts it continued: `python -m tests.support.counting stage memo …`."""

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from meow_ray import engines
from meow_ray.cli.main import main
from meow_ray.engines import Completion, EngineSpec, Sampling, TeacherForced
from meow_ray.stages.inputs import engine_spec

LOG = "MEOW_TEST_PROMPT_LOG"
PAUSE = "MEOW_TEST_PAUSE"
"""Seconds after each batch, so that a stage is long enough to be disturbed; the default is 0.3."""


def name_of(prompt: Sequence[int]) -> str:
    """Returns what a prompt is called in the log."""
    return hashlib.sha256(" ".join(map(str, prompt)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class CountingSpec(EngineSpec):
    log: str = ""
    pause: float = 0

    def load(self) -> "CountingEngine":
        return CountingEngine(self)


class CountingEngine:
    def __init__(self, spec: CountingSpec) -> None:
        self.inner, self.log, self.pause = engines.build(spec), Path(spec.log), spec.pause
        self.tokenizer, self.max_model_len = self.inner.tokenizer, self.inner.max_model_len

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        out = self.inner.generate(prompts, sampling)
        with self.log.open("a") as file:
            file.write("".join(f"{name_of(prompt)}\n" for prompt in prompts))
        time.sleep(self.pause)
        return out

    @property
    def generated(self) -> int:
        return self.inner.generated

    def teacher_force(
        self, prompts: Sequence[Any], answers: Sequence[Any], moments: bool = False
    ) -> list[TeacherForced]:
        return self.inner.teacher_force(prompts, answers, moments)


def counting_spec(*arguments: Any) -> CountingSpec:
    """Stands in for `engine_spec`: the same engine, which also writes a log."""
    spec = engine_spec(*arguments)
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return CountingSpec(**values, log=os.environ[LOG], pause=float(os.environ.get(PAUSE, "0.3")))


if __name__ == "__main__":
    from tests.support import counting

    main(engine_spec=counting.counting_spec)
