"""`meow` with an engine that logs the prompts it continues, and the process that does so.

Run it as `python -m tests.support.counting stage memo …`.
"""

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
"""The environment variable with the path of the log."""
PAUSE = "MEOW_TEST_PAUSE"
"""Seconds to wait after each batch, so that a stage can be disturbed; the default is 0.3."""


@dataclass(frozen=True)
class LoggedPrompt:
    """A prompt that was continued."""

    name: str
    process: int
    """The id of the actor's process."""


def name_of(prompt: Sequence[int]) -> str:
    """Returns the name of a prompt in the log."""
    return hashlib.sha256(" ".join(map(str, prompt)).encode()).hexdigest()[:16]


def read_log(path: Path) -> list[LoggedPrompt]:
    """Returns the logged prompts, in order; none if there is no log yet."""
    if not path.exists():
        return []
    lines = [line.split() for line in path.read_text().splitlines()]
    return [LoggedPrompt(name, int(process)) for name, process in lines]


@dataclass(frozen=True)
class CountingSpec(EngineSpec):
    """The spec of an engine that logs its prompts."""

    log: str = ""
    pause: float = 0

    def load(self) -> "CountingEngine":
        return CountingEngine(self)


class CountingEngine:
    """A real engine that logs each prompt that it has continued, then waits."""

    def __init__(self, spec: CountingSpec) -> None:
        self.inner = engines.build(spec)
        self.log = Path(spec.log)
        self.pause = spec.pause
        self.tokenizer = self.inner.tokenizer
        self.ends = self.inner.ends
        self.max_model_len = self.inner.max_model_len

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        completions = self.inner.generate(prompts, sampling)
        lines = [f"{name_of(prompt)} {os.getpid()}\n" for prompt in prompts]
        with self.log.open("a") as file:
            file.write("".join(lines))
        time.sleep(self.pause)
        return completions

    @property
    def generated(self) -> int:
        return self.inner.generated

    def teacher_force(
        self, prompts: Sequence[Any], answers: Sequence[Any], moments: bool = False
    ) -> list[TeacherForced]:
        return self.inner.teacher_force(prompts, answers, moments)


def counting_spec(*arguments: Any) -> CountingSpec:
    """Takes the place of `engine_spec`: returns the spec of the same engine with a log."""
    spec = engine_spec(*arguments)
    values = {field.name: getattr(spec, field.name) for field in fields(spec)}
    return CountingSpec(**values, log=os.environ[LOG], pause=float(os.environ.get(PAUSE, "0.3")))


if __name__ == "__main__":
    from tests.support import counting

    main(engine_spec=counting.counting_spec)
