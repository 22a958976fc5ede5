"""The engine that runs vLLM in this process, on one GPU or several, or on CPU."""

import math
import os
import time
from collections.abc import Sequence
from typing import Any

from meow_ray.engines.base import Completion, EngineSpec, Sampling, TeacherForced, Tokens
from meow_ray.errors import MeowError
from meow_ray.models import ends, refs


class VllmEngine:
    """Implements `Engine` with `vllm.LLM`."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(spec.kv_cache_gib))))
        import torch
        import vllm

        self.generated = 0
        self.on_gpu = torch.cuda.is_available()
        self.tokenizer = refs.load_tokenizer(spec.model)
        self.ends = {*ends.declared_ends(spec.model.folder), *ends.ends_of(self.tokenizer)}
        dtype = refs.stored_dtype(spec.model) if spec.dtype == "auto" else spec.dtype
        if self.on_gpu and spec.tensor_parallel_size == 1:
            _await_memory(spec.gpu_memory_utilization)
        try:
            self.llm = vllm.LLM(
                model=str(spec.model.folder),
                dtype=dtype,
                max_model_len=_max_model_len(spec),
                tensor_parallel_size=spec.tensor_parallel_size,
                distributed_executor_backend="mp" if spec.tensor_parallel_size > 1 else "uni",
                gpu_memory_utilization=spec.gpu_memory_utilization,
                enforce_eager=not self.on_gpu,
                # The CPU default of 128 tokens is longer than most prompts here, so that vLLM would
                # never reuse a shared prefix.
                block_size=None if self.on_gpu else 32,
                # With chunked prefill, vLLM rewinds a seeded generator by an offset, and CPU
                # generators do not support that.
                enable_chunked_prefill=None if self.on_gpu else False,
                load_format="safetensors",
                trust_remote_code=spec.model.trust_remote_code,
                disable_log_stats=True,
            )
        except (ValueError, NotImplementedError) as error:  # such as an architecture
            reason = str(error).strip().splitlines()[0]
            raise MeowError(
                f"vLLM cannot run the model {spec.model.uri} on this machine ({reason}). Set the "
                "engine of this model to transformers."
            ) from None
        own_limit: int = self.llm.llm_engine.model_config.max_model_len
        self.max_model_len = min(own_limit, refs.context_length(spec.model, spec.max_model_len))

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
