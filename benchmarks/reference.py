"""MEMO as the paper describes it (arXiv 2409.11844, section 3.2), in a plain loop over windows.

It shares no code with `meow_ray`. It reads the `head` of a question: all text before the
answer, template included.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from benchmarks.host import peak_rss_mib


@dataclass(frozen=True)
class Pair:
    """An answer and what stands before it."""

    question: str
    head: str
    answer: str


@dataclass(frozen=True)
class Procedure:
    """How an answer is cut and continued."""

    window: Literal["character", "token"]
    step: int
    max_new_tokens: int | Literal["label"]
    raw: bool
    """The head is the question and a blank, so that the whole is tokenised as one text."""
    special_tokens: bool
    """The tokenizer adds its special tokens, since no chat template has written them."""


@dataclass
class Measured:
    """What the loop found and what it took; loading and a warm-up are not in it."""

    memo: list[float | None] = field(default_factory=list)
    """The mean ROUGE-1 precision of each answer; None where it is too short for a window."""
    texts: list[list[str]] = field(default_factory=list)
    """The continuation of each window of each answer."""
    tokens: int = 0
    """All tokens that were generated, ends of sequences too."""
    seconds: float = 0.0
    rouge_seconds: float = 0.0
    """The part of `seconds` that ROUGE took."""
    peak_rss_mib: float = 0.0


def measure(folder: str, dtype: str, pairs: Sequence[Pair], procedure: Procedure) -> Measured:
    """Scores the pairs one by one; each window is one greedy call of `generate` with KV cache."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(os.cpu_count() or 1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    )
    scorer = RougeScorer(["rouge1"], use_stemmer=True)

    def speak(prompt: Sequence[int], limit: int) -> list[int]:
        ids = torch.tensor([prompt], device=device)
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=tokenizer.eos_token_id,
            )
        return list(out[0, len(prompt) :].tolist())

    speak(tokenizer("Warm up")["input_ids"], 4)
    out = Measured()
    start = time.perf_counter()
    for pair in pairs:
        values, texts = [], []
        for prompt, label, limit in windows(tokenizer, pair, procedure):
            said = speak(prompt, limit)
            texts.append(tokenizer.decode(said, skip_special_tokens=True))
            out.tokens += len(said)
            before = time.perf_counter()
            values.append(scorer.score(label, texts[-1])["rouge1"].precision)
            out.rouge_seconds += time.perf_counter() - before
        out.memo.append(fmean(values) if values else None)
        out.texts.append(texts)
    out.seconds = time.perf_counter() - start
    out.peak_rss_mib = peak_rss_mib()
    return out


def windows(
    tokenizer: Any, pair: Pair, procedure: Procedure
) -> Iterator[tuple[list[int], str, int]]:
    """Yields the prompt's tokens, the label, and the most new tokens of each cut."""

    def tokens(text: str, special: bool) -> list[int]:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])

    most = procedure.max_new_tokens
    if procedure.window == "character":
        for k in range(1, len(pair.answer), procedure.step):
            label = pair.answer[k:]
            prompt = tokens(pair.head + pair.answer[:k], procedure.special_tokens)
            yield prompt, label, max(1, len(tokens(label, False))) if most == "label" else most
        return
    if procedure.raw:
        whole, question = tokens(pair.head + pair.answer, True), tokens(pair.question, True)
        start = 0
        while start < min(len(question), len(whole)) and question[start] == whole[start]:
            start += 1
    else:
        prompt = tokens(pair.head, procedure.special_tokens)
        whole, start = prompt + tokens(pair.answer, False), len(prompt)
    for cut in range(start + 1, len(whole), procedure.step):
        label = tokenizer.decode(whole[cut:], skip_special_tokens=True)
        yield whole[:cut], label, len(whole) - cut if most == "label" else most
