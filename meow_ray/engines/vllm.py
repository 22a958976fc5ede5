"""The engine that runs vLLM in this process, on one GPU or several, or on CPU."""

import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from meow_ray.core import sockets, storage, timeline
from meow_ray.engines.base import Completion, EngineSpec, Sampling, TeacherForced, Tokens
from meow_ray.errors import MeowError
from meow_ray.models import ends, refs, uld

SOCKET_NAME = 1 + 36
"""Bytes of the name that vLLM gives to a socket between the processes of one engine."""


class VllmEngine:
    """Implements `Engine` with `vllm.LLM`."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(spec.kv_cache_gib))))
        import torch

        uld.check_one_model(
            spec.model, "vLLM loads one model", "Set the engine of this model to transformers."
        )
        self.generated = 0
        self.on_gpu = torch.cuda.is_available()
        self.tokenizer = refs.load_tokenizer(spec.model)
        self.ends = {*ends.declared_ends(spec.model.folder), *ends.ends_of(self.tokenizer)}
        longest = refs.context_length(spec.model, spec.max_model_len)
        dtype = refs.stored_dtype(spec.model) if spec.dtype == "auto" else spec.dtype
        if self.on_gpu and spec.tensor_parallel_size == 1:
            _await_memory(spec.gpu_memory_utilization)
        if spec.tensor_parallel_size > 1:
            folder = sockets.short_folder(
                SOCKET_NAME, within=tempfile.gettempdir(), variable="TMPDIR"
            )
            os.environ.setdefault("VLLM_RPC_BASE_PATH", str(folder))
        takes_what_fits = spec.max_model_len is None and not refs.is_longrope(spec.model)
        with _naming_refusals(spec):
            self.llm = self._load(spec, dtype, -1 if takes_what_fits else _max_model_len(spec))
        self.max_model_len = min(longest, self.llm.model_config.max_model_len)
        self.warning = None
        if self.max_model_len < longest and refs.declared_context(spec.model):
            self.warning = (
                f"{storage.display(spec.model.uri)}: vLLM's cache holds {self.max_model_len:,} of "
                f"the model's {longest:,} tokens, so longer rows are refused. For a longer context "
                "raise `kv_cache_gib` (CPU) or `gpu_memory_utilization` in `resources`; set "
                "`max_model_len` in `target` or `invert` to end this warning."
            )

    def _load(self, spec: EngineSpec, dtype: str, max_model_len: int | None) -> Any:
        """Loads vLLM; with a `max_model_len` of -1 it takes the longest context that fits."""
        from vllm import LLM

        timeline.mark("libraries imported")
        return LLM(
            model=str(spec.model.folder),
            dtype=dtype,
            max_model_len=max_model_len,
            tensor_parallel_size=spec.tensor_parallel_size,
            distributed_executor_backend="mp" if spec.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=spec.gpu_memory_utilization,
            enforce_eager=not self.on_gpu,
            # The CPU default of 128 tokens is longer than most prompts here, so that vLLM would
            # never reuse a shared prefix.
            block_size=None if self.on_gpu else 32,
            # With chunked prefill, vLLM rewinds a seeded generator by an offset, and CPU generators
            # do not support that.
            enable_chunked_prefill=None if self.on_gpu else False,
            load_format="safetensors",
            trust_remote_code=spec.model.trust_remote_code,
            disable_log_stats=True,
        )

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        import vllm
        from vllm.sampling_params import StructuredOutputsParams

        params = [
            vllm.SamplingParams(
                n=spec.n,
                temperature=spec.temperature,
                top_p=spec.top_p if spec.temperature else 1.0,
                max_tokens=spec.max_new_tokens,
                seed=spec.seed if spec.temperature else None,
                stop=list(spec.stop) or None,
                stop_token_ids=sorted(self.ends),
                bad_words=list(spec.bad_words) or None,
                structured_outputs=(
                    StructuredOutputsParams(json=spec.json_schema) if spec.json_schema else None
                ),
                skip_special_tokens=True,
                detokenize=bool(spec.stop),
            )
            for spec in sampling
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        results = self.llm.generate(requests, params, use_tqdm=False)
        self.generated += sum(
            len(reply.token_ids) for result in results for reply in result.outputs
        )
        return [
            [self._completion(reply, spec) for reply in result.outputs]
            for result, spec in zip(results, sampling, strict=True)
        ]

    def _completion(self, reply: Any, sampling: Sampling) -> Completion:
        """Returns one output of vLLM as a `Completion`.

        Without a stop string it decodes all tokens at once, because vLLM's own text omits a last
        character that is incomplete.
        """
        finished = reply.finish_reason == "stop"
        tokens = tuple(reply.token_ids)
        if finished and reply.stop_reason not in sampling.stop:
            tokens = tokens[:-1]  # without the end-of-sequence token
        if sampling.stop:
            text = reply.text
        else:
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return Completion(text=str(text), finished=finished, tokens=tokens)

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`.

        vLLM returns log-probabilities of tokens, not whole distributions.
        """
        import vllm

        if moments:
            raise MeowError(
                "`target.engine`: vLLM does not return the distributions that `min_k_pp` needs. "
                "Set `target.engine=transformers`."
            )
        # one log-probability more than that of the token itself: the largest of the position
        params = vllm.SamplingParams(
            temperature=0.0,
            max_tokens=1,
            stop_token_ids=sorted(self.ends),
            prompt_logprobs=1,
            detokenize=False,
        )
        sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        results = self.llm.generate(
            [{"prompt_token_ids": tokens} for tokens in sequences], params, use_tqdm=False
        )
        return [
            _teacher_forced(result, tokens, len(prompt))
            for result, tokens, prompt in zip(results, sequences, prompts, strict=True)
        ]


def _max_model_len(spec: EngineSpec) -> int | None:
    """Returns the context length to ask of vLLM; None leaves it to vLLM.

    vLLM refuses a limit above its own. If a model declares none, vLLM knows its own limit best.
    """
    declared = refs.declared_context(spec.model)
    return min((n for n in (declared, spec.max_model_len) if n), default=None)


def _teacher_forced(result: Any, sequence: Tokens, start: int) -> TeacherForced:
    """Reads the log-probabilities of an answer, which begins at `start`, from vLLM's output.

    A token is greedy if no other token has a larger log-probability. Its rank would not tell: vLLM
    counts tokens of the same log-probability, which are common in bfloat16, as ranked above it.
    """
    log_probs: list[float] = []
    is_greedy: list[bool] = []
    for by_token, token in zip(result.prompt_logprobs[start:], sequence[start:], strict=True):
        if not by_token:  # vLLM predicts nothing for the first token of a sequence
            log_probs.append(math.nan)
            is_greedy.append(False)
            continue
        log_prob = by_token[token].logprob
        log_probs.append(float(log_prob))
        is_greedy.append(log_prob == max(entry.logprob for entry in by_token.values()))
    return TeacherForced(
        log_probs=log_probs,
        is_greedy=is_greedy,
        ends=result.outputs[0].finish_reason == "stop",
    )


@contextmanager
def _naming_refusals(spec: EngineSpec) -> Iterator[None]:
    """Turns vLLM's refusal of a model or of its settings into a MeowError."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        details: Any = getattr(error, "errors", None)  # of pydantic
        reason = str(details()[0]["msg"] if details else error).partition("\n")[0]
        reason = reason.partition(" Try increasing")[0].rstrip(". ")
        raise MeowError(
            f"{storage.display(spec.model.uri)}: vLLM does not load this model. {reason}. Set "
            "`max_model_len` or `dtype` in `target` or `invert`, raise `kv_cache_gib` (CPU) or "
            "`gpu_memory_utilization` in `resources`, or set `engine` to transformers."
        ) from error


def _await_memory(share: float, seconds: int = 60) -> None:
    """Waits until `share` of the GPU's memory is free, `seconds` at most.

    An engine that has just ended returns its memory late, and vLLM refuses to start before that.
    """
    import torch

    for _ in range(seconds):
        free, total = torch.cuda.mem_get_info()
        if free >= share * total:
            return
        time.sleep(1)
