"""What every engine offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from meow_ray.models.refs import ModelRef

Tokens = Sequence[int]


@dataclass(frozen=True)
class EngineSpec:
    """Which model an engine loads, and how."""

    needs_gpu: ClassVar[bool] = True
    model: ModelRef
    engine: Literal["vllm", "transformers"] = "vllm"
    dtype: str = "auto"
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.9

    def load(self) -> "Engine":
        """Loads the engine in this process."""
        from meow_ray import engines

        return engines.build(self)


@dataclass(frozen=True)
class Sampling:
    """How a prompt is continued; the default is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    json_schema: str | None = None
    """JSON that the reply must be of; engines that cannot guide ignore it."""


@dataclass(frozen=True)
class Completion:
    """A continuation without special tokens."""

    text: str
    finished: bool
    """It ended by itself: by an end-of-sequence token or a stop string."""
    tokens: tuple[int, ...] = ()
    """The tokens before the end-of-sequence token; a stop string is still in them."""


@dataclass(frozen=True)
class TeacherForced:
    """What one pass over a prompt and an answer tells, each position behind the true tokens before it."""

    log_probs: list[float]
    """`[answer]`, log p(token | what stands before it); nan for a first token with nothing before it."""
    is_greedy: list[bool]
    """`[answer]`, whether the token is the most probable one; False for a first token with nothing before it."""
    ends: bool
    """The most probable token behind the answer ends the sequence."""
    means: list[float] | None = None
    """`[answer]`, the mean of log p over the vocabulary, tokens drawn by p; only where moments were asked for."""
    deviations: list[float] | None = None
    """`[answer]`, the standard deviation of the same."""


class Engine(Protocol):
    """A loaded model."""

    tokenizer: Any
    max_model_len: int
    generated: int
    """Tokens generated so far."""

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """Continues each prompt under its own sampling; returns `n` completions a prompt, in order."""
        ...

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """Reads each answer behind its prompt in one pass, and one token further.

        Raises:
            MeowError: `moments` are asked for, and the engine does not see whole distributions.
        """
        ...
