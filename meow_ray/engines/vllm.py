"""vLLM, in this process on one GPU or on CPU."""

import math
import os
import time
from collections.abc import Sequence
from typing import Any

from meow_ray.engines.base import Completion, EngineSpec, Sampling, TeacherForced, Tokens
from meow_ray.errors import MeowError
from meow_ray.models import refs


class VllmEngine:
    """Generates through `vllm.LLM`; see `Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(spec.kv_cache_gib))))
        import torch
        import vllm

        self.generated = 0
        self.on_gpu = torch.cuda.is_available()
        self.tokenizer = refs.load_tokenizer(spec.model)
        self.max_model_len = refs.context_length(spec.model, spec.max_model_len)
        dtype = refs.stored_dtype(spec.model) if spec.dtype == "auto" else spec.dtype
        if self.on_gpu and spec.tensor_parallel_size == 1:
            _await_memory(spec.gpu_memory_utilization)
        self.llm = vllm.LLM(
            model=str(spec.model.folder),
            dtype=dtype,
            max_model_len=self.max_model_len,
            tensor_parallel_size=spec.tensor_parallel_size,
            distributed_executor_backend="mp" if spec.tensor_parallel_size > 1 else "uni",
            gpu_memory_utilization=spec.gpu_memory_utilization,
            enforce_eager=not self.on_gpu,
            # the CPU default of 128 tokens is longer than most prompts here: nothing of a shared prefix would be reused
            block_size=None if self.on_gpu else 32,
            # on CPU, a prompt that is cut in two takes a seeded generator back by an offset that CPU generators lack
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
                n=s.n,
                temperature=s.temperature,
                top_p=s.top_p if s.temperature else 1.0,
                max_tokens=s.max_new_tokens,
                seed=s.seed if s.temperature else None,
                stop=list(s.stop) or None,
                bad_words=list(s.bad_words) or None,
                structured_outputs=StructuredOutputsParams(json=s.json_schema)
                if s.json_schema
                else None,
                skip_special_tokens=True,
                detokenize=bool(s.stop),
            )
            for s in sampling
        ]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(p)} for p in prompts], params, use_tqdm=False
        )
        self.generated += sum(len(one.token_ids) for output in outputs for one in output.outputs)
        return [
            [self._completion(o, s) for o in output.outputs]
            for output, s in zip(outputs, sampling, strict=True)
        ]

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        """Decodes whole where nothing is cut off; vLLM's own text leaves out a last character that is unfinished."""
        finished, tokens = output.finish_reason == "stop", tuple(output.token_ids)
        if finished and output.stop_reason not in sampling.stop:
            tokens = tokens[:-1]  # the end-of-sequence token
        if sampling.stop:
            return Completion(str(output.text), finished, tokens)
        return Completion(
            str(self.tokenizer.decode(tokens, skip_special_tokens=True)), finished, tokens
        )

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`; vLLM gives log-probabilities of tokens, not the distributions."""
        import vllm

        if moments:
            raise MeowError(
                "vLLM gives no moments of a distribution; set target.engine=transformers for min_k_pp."
            )
        params = vllm.SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False
        )
        texts = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        outputs = self.llm.generate(
            [{"prompt_token_ids": t} for t in texts], params, use_tqdm=False
        )
        out = []
        for text, answer, output in zip(texts, answers, outputs, strict=True):
            found = [
                places[token] if places else None
                for places, token in zip(
                    output.prompt_logprobs, text, strict=True
                )  # None: nothing before the first
            ][len(text) - len(answer) :]
            out.append(
                TeacherForced(
                    log_probs=[float(place.logprob) if place else math.nan for place in found],
                    is_greedy=[place is not None and place.rank == 1 for place in found],
                    ends=output.outputs[0].finish_reason == "stop",
                )
            )
        return out


def _await_memory(share: float, seconds: int = 60) -> None:
    """Waits until an engine that has just ended has given its GPU memory back; vLLM would refuse to start before."""
    import torch

    for _ in range(seconds):
        free, total = torch.cuda.mem_get_info()
        if free >= share * total:
            return
        time.sleep(1)
