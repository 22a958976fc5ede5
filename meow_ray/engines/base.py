"""The interface of an inference engine, and the values that go in and come out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

from meow_ray.models.ends import ends_of
from meow_ray.models.refs import ModelRef

Tokens = Sequence[int]


@dataclass(frozen=True)
class EngineSpec:
    """A model and the settings with which an engine loads it."""

    needs_gpu: ClassVar[bool] = True
    """The engine runs on GPUs if the machine has any."""
    model: ModelRef
    engine: Literal["vllm", "transformers"] = "vllm"
    dtype: str = "auto"
    """Of weights and arithmetic; `auto` is the dtype stored with the model."""
    max_model_len: int | None = None
    """Context length in tokens; None is the model's own."""
    tensor_parallel_size: int = 1
    kv_cache_gib: float = 1.0
    """Size of the key-value cache in GiB, for vLLM on CPU."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory that vLLM may use."""

    def load(self) -> "Engine":
        """Loads the engine in this process."""
        from meow_ray import engines

        return engines.build(self)


@dataclass(frozen=True)
class Sampling:
    """The settings with which a prompt is continued; the default is greedy decoding."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 is greedy decoding."""
    top_p: float = 1.0
    n: int = 1
    """Number of completions of the prompt."""
    seed: int | None = None
    stop: tuple[str, ...] = ()
    """Texts that end a completion; the completion does not contain them."""
    bad_words: tuple[str, ...] = ()
    """Words that a completion never contains."""
    json_schema: str | None = None
    """JSON schema of the completion. An engine without guided decoding ignores it."""


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt, without special tokens."""

    text: str
    finished: bool
    """True if an end-of-sequence token or a stop string ended it, False if its length did."""
    tokens: tuple[int, ...] = ()
    """The tokens before the end-of-sequence token. They include those of a stop string."""


@dataclass(frozen=True)
class TeacherForced:
    """The result of one forward pass over a prompt and an answer.

    Each value belongs to a token of the answer and is conditioned on the true tokens before it. A
    token without any token before it (empty prompt, first token) has no prediction.
    """

    log_probs: list[float]
    """`[answer]`, log p(token | tokens before it); nan for a token without prediction."""
    is_greedy: list[bool]
    """`[answer]`, whether no token is more probable, so that a tie is greedy; False without
    prediction."""
    ends: bool
    """Whether the most probable token after the answer is an end-of-sequence token."""
    means: list[float] | None = None
    """`[answer]`, the mean of log p over the vocabulary, weighted by p; None if not requested."""
    deviations: list[float] | None = None
    """`[answer]`, the standard deviation of log p over the vocabulary, weighted by p."""


class Engine(Protocol):
    """A loaded model that continues prompts and reads given answers."""

    tokenizer: Any
    ends: set[int]
    """The tokens at which a reply ends."""
    max_model_len: int
    """Context length in tokens."""
    generated: int
    """Number of tokens generated so far."""

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """Continues each prompt with the sampling settings at the same index.

        Returns:
            For each prompt its `n` completions, in the order of the prompts.
        """
        ...

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """Runs one forward pass over each prompt and its answer.

        Args:
            prompts: `[pair]`, tokens before the answers.
            answers: `[pair]`, tokens whose probability is measured.
            moments: whether to compute `means` and `deviations`, too.

        Returns:
            One result for each pair, in order.

        Raises:
            MeowError: `moments` is True and the engine does not return whole distributions.
        """
        ...


def force_to_any_end(
    engine: Engine, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
) -> list[TeacherForced]:
    """Runs `Engine.teacher_force`, with either usual end token as the end of an answer.

    A model may end answers with the token that its chat template writes, or with that of its
    tokenizer, such as `<|im_end|>` and `<|endoftext|>`. The probability of the end is the sum of
    theirs, and the end is greedy if one of them is. An answer whose last token is neither is left
    as it is. If both are the same token, there is only one forward pass.
    """
    usual = ends_of(engine.tokenizer)
    passes = engine.teacher_force(prompts, answers, moments)
    ended = [row for row, answer in enumerate(answers) if answer and answer[-1] in usual]
    others = [(row, end) for row in ended for end in sorted(usual - {answers[row][-1]})]
    forced = engine.teacher_force(
        [[*prompts[row], *answers[row][:-1]] for row, _ in others], [[end] for _, end in others]
    )
    for (row, _), other in zip(others, forced, strict=True):
        passes[row] = _with_other_end(passes[row], other)
    return passes


def _with_other_end(forced: TeacherForced, other: TeacherForced) -> TeacherForced:
    """Adds the probability of another token in the place of the last one."""
    both = [forced.log_probs[-1], other.log_probs[-1]]
    largest = max(both)
    total = largest + math.log(sum(math.exp(value - largest) for value in both))
    return replace(
        forced,
        log_probs=[*forced.log_probs[:-1], total],
        is_greedy=[*forced.is_greedy[:-1], forced.is_greedy[-1] or other.is_greedy[-1]],
    )
