"""Whether an engine on the device says the same as plain transformers on the CPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.gpu_checks import models
from benchmarks.gpu_checks.values import CheckError, Measurement, Setting
from meow_ray.engines import Completion, EngineSpec, Sampling
from meow_ray.models.refs import ModelRef

TOLERANCE = 1e-3
"""The largest difference of a log-probability in float32, in nats."""
PROMPTS = 12
NEW_TOKENS = 32
MAX_MODEL_LEN = 1024
VLLM_MEMORY = 0.6
"""The share of the GPU's memory that vLLM takes in the checks."""


def parity(engine: str, dtype: str, setting: Setting) -> Iterator[Measurement]:
    """Compares an engine with transformers on the CPU in float32, one prompt at a time.

    - `greedy continuations equal`, a share of 12 prompts with 32 new tokens each.
    - `largest gap at a first difference`, nats: by how much the reference prefers its own token
      where a continuation first differs. In float32 at most 1e-3, which only a tie reaches.
    - `largest difference of log-probabilities` and its mean, nats, over the tokens of 12 true
      answers. In float32 the largest is at most 1e-3.

    Other dtypes are reported, and no value fails.

    Raises:
        CheckError: a float32 result is outside its tolerance.
    """
    ref = models.text_model(setting)
    loaded = load_engine(ref, engine, dtype)
    tokenizer = loaded.tokenizer
    texts = models.facts(PROMPTS)
    prompts = [list(tokenizer(question)["input_ids"]) for question, _ in texts]
    answers = [
        list(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) for _, answer in texts
    ]
    replies = loaded.generate(prompts, [Sampling(NEW_TOKENS)] * PROMPTS)
    forced = loaded.teacher_force(prompts, answers)

    reference = Reference.load(ref, loaded.ends)
    gaps = [reference.gap(prompt, reply[0]) for prompt, reply in zip(prompts, replies, strict=True)]
    largest_gap = max(gap or 0.0 for gap in gaps)
    differences = [
        abs(ours - theirs)
        for prompt, answer, result in zip(prompts, answers, forced, strict=True)
        for ours, theirs in zip(result.log_probs, reference.log_probs(prompt, answer), strict=True)
    ]
    yield Measurement("model", ref.uri.rpartition("/")[2])
    equal = sum(gap is None for gap in gaps) / PROMPTS
    yield Measurement("greedy continuations equal", equal, "share")
    yield Measurement("largest gap at a first difference", largest_gap, "nat")
    yield Measurement("largest difference of log-probabilities", max(differences), "nat")
    yield Measurement("mean difference of log-probabilities", fmean(differences), "nat")
    if dtype == "float32" and not all(value <= TOLERANCE for value in (largest_gap, *differences)):
        raise CheckError(f"float32 differs by more than {TOLERANCE} nat.")


def load_engine(ref: ModelRef, engine: str, dtype: str) -> Any:
    """Loads an engine with a short context, beside other models on the device."""
    return EngineSpec(
        ref,
        engine,  # type: ignore[arg-type]
        dtype,
        max_model_len=MAX_MODEL_LEN,
        gpu_memory_utilization=VLLM_MEMORY,
    ).load()


@dataclass(frozen=True)
class Reference:
    """A model of transformers in float32 on the CPU."""

    model: Any
    ends: frozenset[int]
    """The tokens at which a reply ends."""

    @classmethod
    def load(cls, ref: ModelRef, ends: set[int]) -> "Reference":
        """Loads the reference of a model."""
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(ref.folder, dtype=torch.float32)
        return cls(model.eval(), frozenset(ends))

    def gap(self, prompt: Sequence[int], reply: Completion) -> float | None:
        """Returns by how much the reference prefers its token at the first difference, in nats.

        None means that it says the same. A reply that has ended may stand for any end token.
        """
        tokens = [*reply.tokens, min(self.ends)] if reply.finished else list(reply.tokens)
        rows = self._distributions([*prompt, *tokens])[len(prompt) - 1 : -1]
        for position, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            is_end = reply.finished and position == len(reply.tokens)
            chosen = sorted(self.ends) if is_end else [token]
            gap = float(row.max() - row[chosen].max())
            if gap > 0:
                return gap
        return None

    def log_probs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Returns the log-probabilities of an answer's tokens."""
        rows = self._distributions([*prompt, *answer])[len(prompt) - 1 : -1]
        return [float(row[token]) for row, token in zip(rows, answer, strict=True)]

    def _distributions(self, tokens: Sequence[int]) -> Any:
        """Returns the log-probabilities of all next tokens, `[seq, vocab]`."""
        import torch

        with torch.inference_mode():
            logits = self.model(input_ids=torch.tensor([tokens])).logits[0]
        return torch.log_softmax(logits.float(), -1)
