"""Hugging Face transformers: for models that vLLM does not run, and for tiny ones in tests."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from meow_ray.engines.base import Completion, EngineSpec, Sampling, TeacherForced, Tokens
from meow_ray.models import refs

BATCH = 32
"""Sequences in one forward pass."""


class TransformersEngine:
    """Generates in padded batches; see `Engine`."""

    def __init__(self, spec: EngineSpec) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch, self.generated = torch, 0
        self.tokenizer = refs.load_tokenizer(spec.model)
        self.max_model_len = refs.context_length(spec.model, spec.max_model_len)
        dtype = refs.stored_dtype(spec.model) if spec.dtype == "auto" else spec.dtype
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(
            spec.model.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=spec.model.trust_remote_code,
        )
        self.model.to(self.device).eval()
        ends = self.model.generation_config.eos_token_id
        self.ends = {*(ends if isinstance(ends, list) else [ends]), self.tokenizer.eos_token_id}

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`; greedy prompts share batches, sampled ones run alone, each by its seed."""
        rooms = [self.max_model_len - len(prompt) for prompt in prompts]
        sampling = [
            replace(s, max_new_tokens=min(s.max_new_tokens, r))
            for s, r in zip(sampling, rooms, strict=True)
        ]
        order = sorted(range(len(prompts)), key=lambda i: (repr(sampling[i]), len(prompts[i])))
        out: list[list[Completion]] = [[] for _ in prompts]
        for _, same in groupby(order, key=lambda i: repr(sampling[i])):
            group = list(same)
            size = 1 if sampling[group[0]].temperature else BATCH
            for start in range(0, len(group), size):
                rows = group[start : start + size]
                for i, completions in zip(
                    rows, self._batch([prompts[i] for i in rows], sampling[rows[0]]), strict=True
                ):
                    out[i] = completions
        self.generated += sum(len(one.tokens) for completions in out for one in completions)
        return out

    def _batch(self, prompts: Sequence[Tokens], sampling: Sampling) -> list[list[Completion]]:
        torch, pad = self.torch, self.tokenizer.pad_token_id
        width = max(map(len, prompts))
        ids = torch.tensor(
            [[pad] * (width - len(p)) + list(p) for p in prompts], device=self.device
        )
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device
        )
        options: dict[str, object] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if sampling.temperature:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        if sampling.bad_words:
            variants = [v for word in sampling.bad_words for v in (word, f" {word}")]
            options["bad_words_ids"] = [
                self.tokenizer(v, add_special_tokens=False)["input_ids"] for v in variants
            ]
        if sampling.stop:
            options |= {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer}
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.n,
                pad_token_id=pad,
                repetition_penalty=1.0,
                **options,
            )
        completions = [self._completion(row.tolist(), sampling) for row in output[:, width:]]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _completion(self, tokens: list[int], sampling: Sampling) -> Completion:
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
        return Completion(text[:cut], end is not None or cut is not None, tuple(tokens[:end]))

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`."""
        torch, pad = self.torch, self.tokenizer.pad_token_id
        texts = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out: dict[int, TeacherForced] = {}
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            width = len(texts[rows[-1]])
            ids = torch.tensor(
                [texts[i] + [pad] * (width - len(texts[i])) for i in rows], device=self.device
            )
            mask = torch.tensor(
                [[1] * len(texts[i]) + [0] * (width - len(texts[i])) for i in rows],
                device=self.device,
            )
            starts = [len(texts[i]) - len(answers[i]) for i in rows]
            # what stands before each answer's tokens, and its last token
            places = [
                range(max(start - 1, 0), len(texts[i]))
                for start, i in zip(starts, rows, strict=True)
            ]
            row_of = [row for row, own in enumerate(places) for _ in own]
            place_of = [place for own in places for place in own]
            following = torch.cat([ids, ids[:, :1]], 1)[row_of, [place + 1 for place in place_of]]
            with torch.inference_mode():
                logits = (
                    self.model(input_ids=ids, attention_mask=mask).logits[row_of, place_of].float()
                )  # [place, vocab]
                chosen = logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(-1)
                best = logits.argmax(-1)
                spread = _moments(logits) if moments else ()
            is_greedy, counts = best == following, [len(own) for own in places]
            for row, i in enumerate(rows):
                own = slice(sum(counts[:row]), sum(counts[: row + 1]) - 1)
                nothing_before = starts[row] == 0 and bool(answers[i])
                out[i] = TeacherForced(
                    [math.nan] * nothing_before + chosen[own].tolist(),
                    [False] * nothing_before + is_greedy[own].tolist(),
                    int(best[own.stop]) in self.ends,
                    *([math.nan] * nothing_before + values[own].tolist() for values in spread),
                )
        return [out[i] for i in range(len(texts))]


def _moments(logits: Any) -> tuple[Any, Any]:
    """Returns mean and standard deviation of log p(token) at each position, tokens drawn by p: `[place]`."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    return mean, ((p * log_p.square()).sum(-1) - mean.square()).clamp_min(0).sqrt()
