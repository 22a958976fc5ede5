"""The engine that runs on Hugging Face transformers.

It runs models that vLLM does not support, the two models of ULD, and the tiny models of the tests.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from meow_ray.core import timeline
from meow_ray.engines.base import Completion, EngineSpec, Sampling, TeacherForced, Tokens
from meow_ray.engines.uld import Assistant
from meow_ray.models import ends, refs, uld
from meow_ray.models.folders import ULD, ULD_ASSISTANT, ULD_BASE

BATCH = 32
"""Number of sequences in one forward pass."""


class TransformersEngine:
    """Implements `Engine` with padded batches."""

    def __init__(self, spec: EngineSpec) -> None:
        import torch

        timeline.mark("libraries imported")
        self.torch = torch
        self.generated = 0
        self.tokenizer = refs.load_tokenizer(spec.model)
        self.max_model_len = refs.context_length(spec.model, spec.max_model_len)
        dtype = refs.stored_dtype(spec.model) if spec.dtype == "auto" else spec.dtype
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = spec.model.folder
        is_uld = (folder / ULD).exists()
        answering = folder / ULD_BASE if is_uld else folder
        self.model = self._load(answering, spec, dtype)
        self.assistant = None
        """The assistant of a ULD model, which corrects each forward pass of the model."""
        if is_uld:
            assistant = self._load(folder / ULD_ASSISTANT, spec, dtype)
            self.assistant = Assistant(self.model, assistant, uld.read_settings(folder))
        self.keeps_logits = "logits_to_keep" in refs.forward_parameters(self.model)
        self.ends = {*ends.declared_ends(answering), *ends.ends_of(self.tokenizer)}

    def _load(self, folder: Path, spec: EngineSpec, dtype: str) -> Any:
        """Loads the weights of one model."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=getattr(self.torch, dtype),
            use_safetensors=True,
            trust_remote_code=spec.model.trust_remote_code,
        )
        return model.to(self.device).eval()

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`.

        Greedy prompts with the same settings share batches. A sampled prompt runs alone, so that
        its seed alone decides its completions.
        """
        limited = [
            replace(spec, max_new_tokens=min(spec.max_new_tokens, self.max_model_len - len(prompt)))
            for prompt, spec in zip(prompts, sampling, strict=True)
        ]
        completions: list[list[Completion]] = [[] for _ in prompts]
        for rows in _batches_of_equal_sampling(prompts, limited):
            replies = self._generate_batch([prompts[i] for i in rows], limited[rows[0]])
            for i, reply in zip(rows, replies, strict=True):
                completions[i] = reply
        self.generated += sum(len(reply.tokens) for replies in completions for reply in replies)
        return completions

    def _generate_batch(
        self, prompts: Sequence[Tokens], sampling: Sampling
    ) -> list[list[Completion]]:
        """Continues prompts that share their sampling settings in one call of the model."""
        torch = self.torch
        pad = self.tokenizer.pad_token_id
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        ids = [[pad] * n + list(prompt) for n, prompt in zip(padding, prompts, strict=True)]
        mask = [[0] * n + [1] * (width - n) for n in padding]
        options = self._generation_options(sampling)
        if sampling.temperature and sampling.seed is not None:
            torch.manual_seed(sampling.seed)
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                max_new_tokens=sampling.max_new_tokens,
                num_return_sequences=sampling.n,
                pad_token_id=pad,
                eos_token_id=sorted(self.ends) or None,
                repetition_penalty=1.0,
                **options,
            )
        completions = [self._completion(row.tolist(), sampling) for row in output[:, width:]]
        return [completions[i : i + sampling.n] for i in range(0, len(completions), sampling.n)]

    def _generation_options(self, sampling: Sampling) -> dict[str, object]:
        """Returns the arguments of `model.generate` that sampling, bad words and stops need."""
        options: dict[str, object] = {
            "do_sample": False,
            "temperature": None,
            "top_p": None,
            "top_k": None,
        }
        if sampling.temperature:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": 0,
            }
        if self.assistant is not None:
            options["logits_processor"] = [self.assistant]
        if sampling.bad_words:
            # a word has other tokens after a space
            variants = [text for word in sampling.bad_words for text in (word, f" {word}")]
            options["bad_words_ids"] = [
                self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in variants
            ]
        if sampling.stop:
            options |= {"stop_strings": list(sampling.stop), "tokenizer": self.tokenizer}
        return options

    def _completion(self, tokens: list[int], sampling: Sampling) -> Completion:
        """Cuts generated tokens at the first end-of-sequence token, and their text at a stop."""
        end = next((i for i, token in enumerate(tokens) if token in self.ends), None)
        text = self.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        positions = [text.find(stop) for stop in sampling.stop]
        cut = min((position for position in positions if position >= 0), default=None)
        return Completion(
            text=text[:cut],
            finished=end is not None or cut is not None,
            tokens=tuple(tokens[:end]),
        )

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`."""
        sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        starts = [len(prompt) for prompt in prompts]
        by_length = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        results: dict[int, TeacherForced] = {}
        for begin in range(0, len(by_length), BATCH):
            rows = by_length[begin : begin + BATCH]
            batch = self._teacher_force_batch(
                [sequences[i] for i in rows], [starts[i] for i in rows], moments
            )
            results |= zip(rows, batch, strict=True)
        return [results[i] for i in range(len(sequences))]

    def _teacher_force_batch(
        self, sequences: Sequence[list[int]], starts: Sequence[int], moments: bool
    ) -> list[TeacherForced]:
        """Runs one forward pass over padded sequences.

        Args:
            sequences: `[row]`, the tokens of prompt and answer; none is empty.
            starts: `[row]`, the position at which the answer begins.
            moments: whether to compute `means` and `deviations`, too.
        """
        torch = self.torch
        pad = self.tokenizer.pad_token_id
        width = max(map(len, sequences))
        padding = [width - len(tokens) for tokens in sequences]
        ids = torch.tensor(
            [tokens + [pad] * n for tokens, n in zip(sequences, padding, strict=True)],
            device=self.device,
        )
        mask = torch.tensor([[1] * (width - n) + [0] * n for n in padding], device=self.device)

        # The logits at a position predict the next token. They are read from the position before
        # the answer up to the last token of the answer, which predicts whether the answer ends.
        positions = [
            range(max(start - 1, 0), len(tokens))
            for start, tokens in zip(starts, sequences, strict=True)
        ]
        row_index = [row for row, span in enumerate(positions) for _ in span]
        position_index = [position for span in positions for position in span]
        next_index = [position + 1 for position in position_index]
        # one column more, because the last position of the longest sequence has no next token
        next_tokens = torch.cat([ids, ids[:, :1]], 1)[row_index, next_index]  # [position]
        # no logits are computed before the first position that any row needs
        first = min(position_index) if self.keeps_logits else 0
        kept = {"logits_to_keep": width - first} if first else {}
        columns = [position - first for position in position_index]
        with torch.inference_mode():
            output = self.model(input_ids=ids, attention_mask=mask, **kept)
            logits = output.logits[row_index, columns].float()  # [position, vocab]
            next_logits = logits.gather(1, next_tokens[:, None])[:, 0]
            chosen = next_logits - logits.logsumexp(-1)
            # not by argmax, which takes one of several tokens with the same largest logit
            is_best = logits == logits.max(-1, keepdim=True).values  # [position, vocab]
            means, deviations = _moments(logits) if moments else (None, None)
        is_greedy = is_best.gather(1, next_tokens[:, None])[:, 0]
        may_end = is_best[:, [end for end in self.ends if end is not None]].any(-1)

        results = []
        ends_of_rows = list(accumulate(len(span) for span in positions))
        for row, end_of_row in enumerate(ends_of_rows):
            # the last position of a row predicts what comes after the answer
            last = end_of_row - 1
            span = slice(end_of_row - len(positions[row]), last)
            has_unpredicted_token = starts[row] == 0 and len(sequences[row]) > 0
            no_number = [math.nan] if has_unpredicted_token else []
            not_greedy = [False] if has_unpredicted_token else []
            results.append(
                TeacherForced(
                    log_probs=no_number + chosen[span].tolist(),
                    is_greedy=not_greedy + is_greedy[span].tolist(),
                    ends=bool(may_end[last]),
                    means=None if means is None else no_number + means[span].tolist(),
                    deviations=(
                        None if deviations is None else no_number + deviations[span].tolist()
                    ),
                )
            )
        return results


def _batches_of_equal_sampling(
    prompts: Sequence[Tokens], sampling: Sequence[Sampling]
) -> Iterator[list[int]]:
    """Yields the indices of prompts that are generated together, shorter prompts first."""
    order = sorted(range(len(prompts)), key=lambda i: (repr(sampling[i]), len(prompts[i])))
    for _, same in groupby(order, key=lambda i: repr(sampling[i])):
        group = list(same)
        size = 1 if sampling[group[0]].temperature else BATCH
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _moments(logits: Any) -> tuple[Any, Any]:
    """Returns mean and standard deviation of log p over the vocabulary, weighted by p.

    Args:
        logits: `[position, vocab]`.

    Returns:
        Two tensors `[position]`.
    """
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = (p * log_p.square()).sum(-1) - mean.square()
    return mean, variance.clamp_min(0).sqrt()
