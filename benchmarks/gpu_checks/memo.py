"""MEMO by the stage's steps, by the bare engine, and by one `model.generate` per window."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_checks import models
from benchmarks.gpu_checks.parity import load_engine
from benchmarks.gpu_checks.values import Measurement, Setting
from benchmarks.reference import Pair, Procedure, windows
from meow_ray.engines import Completion, Sampling
from meow_ray.models import ends, refs
from meow_ray.models.refs import ModelRef

PROCEDURE = Procedure(
    window="character", step=5, max_new_tokens="label", raw=True, special_tokens=True
)
"""The paper's windows, with continuations as long as the rest of the answer."""


@dataclass(frozen=True)
class Window:
    """A prompt, and the most tokens of its continuation."""

    prompt: tuple[int, ...]
    limit: int


def memo(engine: str, setting: Setting) -> Iterator[Measurement]:
    """Times MEMO of 64 answers (reduced: 2) in three ways, in the model's own dtype.

    - `plain loop`, tokens/s: one greedy `model.generate` of transformers per window, on every tenth
      window (reduced: every third). ROUGE is not computed.
    - `bare engine`, tokens/s: the engine on the distinct prompts of all windows at once.
    - `our steps`, s per answer: prepare, generate and finish of the stage, with ROUGE.
    - `our steps against the plain loop`: how many times faster. The loop's time for all windows is
      its time per token, times the tokens of all windows.
    - `our steps against the bare engine`: the engine's time divided by that of our steps.
    - `continuations equal`: the share of the loop's continuations that the engine repeats. In 16
      bits they differ, since sums depend on the size of a batch, so that no value fails.

    `our steps` needs pyarrow, pydantic and rouge_score_rs. Loading and a first call do not count.
    """
    ref = models.text_model(setting)
    texts = models.facts(2 if setting.reduced else 64)
    tokenizer = refs.load_tokenizer(ref)
    cut = [
        Window(tuple(prompt), limit)
        for pair in (Pair(question, f"{question} ", answer) for question, answer in texts)
        for prompt, _, limit in windows(tokenizer, pair, PROCEDURE)
    ]
    sample = cut[:: 3 if setting.reduced else 10]
    said, loop_seconds = _plain_loop(ref, tokenizer, sample, setting.device)
    loop_tokens = models.total(said)
    yield Measurement("windows", float(len(cut)))
    yield Measurement("plain loop", loop_tokens / loop_seconds, "tokens/s")

    loaded = load_engine(ref, engine, "auto")
    loaded.generate([list(cut[0].prompt)] * 2, [Sampling(4)] * 2)
    limits: dict[tuple[int, ...], int] = {}
    for window in cut:
        limits[window.prompt] = max(window.limit, limits.get(window.prompt, 0))
    began = time.perf_counter()
    replies = loaded.generate(list(limits), [Sampling(limit) for limit in limits.values()])
    bare_seconds = time.perf_counter() - began
    reply_to = {prompt: reply[0] for prompt, reply in zip(limits, replies, strict=True)}
    generated = sum(_num_tokens(reply, limits[prompt]) for prompt, reply in reply_to.items())
    yield Measurement("bare engine", generated / bare_seconds, "tokens/s")
    window_tokens = sum(_num_tokens(reply_to[window.prompt], window.limit) for window in cut)
    whole_loop = loop_seconds / loop_tokens * window_tokens
    yield Measurement("bare engine against the plain loop", whole_loop / bare_seconds, "times")
    equal = [
        _without_end(tokens, loaded.ends) == list(reply_to[window.prompt].tokens[: window.limit])
        for window, tokens in zip(sample, said, strict=True)
    ]
    yield Measurement("continuations equal", sum(equal) / len(equal), "share")

    from meow_ray.config import Memo
    from meow_ray.stages.memo.steps import MemoSteps

    steps = MemoSteps(Memo(max_new_tokens="label"), "raw")
    steps.score(loaded, texts[:1])
    began = time.perf_counter()
    steps.score(loaded, texts)
    our_seconds = time.perf_counter() - began
    yield Measurement("our steps", our_seconds / len(texts), "s/answer")
    yield Measurement("our steps against the plain loop", whole_loop / our_seconds, "times")
    yield Measurement("our steps against the bare engine", bare_seconds / our_seconds, "times")


def _plain_loop(
    ref: ModelRef, tokenizer: Any, sample: Sequence[Window], device: str
) -> tuple[list[list[int]], float]:
    """Continues windows one by one; returns the new tokens of each, and the seconds of all."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, refs.stored_dtype(ref))
    model = AutoModelForCausalLM.from_pretrained(ref.folder, dtype=dtype).to(device).eval()
    end_tokens = {*ends.declared_ends(ref.folder), *ends.ends_of(tokenizer)}

    def continue_window(window: Window) -> list[int]:
        ids = torch.tensor([window.prompt], device=device)
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=window.limit,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=sorted(end_tokens) or None,
            )
        return list(out[0, len(window.prompt) :].tolist())

    continue_window(Window(sample[0].prompt, 4))
    began = time.perf_counter()
    said = [continue_window(window) for window in sample]
    return said, time.perf_counter() - began


def _num_tokens(reply: Completion, limit: int) -> int:
    """Returns the tokens that a continuation takes, with the end of the sequence."""
    return min(len(reply.tokens) + reply.finished, limit)


def _without_end(tokens: Sequence[int], end_tokens: set[int]) -> list[int]:
    return [token for token in tokens if token not in end_tokens]
