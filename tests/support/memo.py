"""What the tests of MEMO's steps share: facts, an engine that records, a model without batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from meow_ray.config import Memo
from meow_ray.engines import Completion, EngineSpec, Sampling, TeacherForced
from meow_ray.models import refs
from meow_ray.models.ends import ends_of
from meow_ray.stages.memo.score import extraction_likelihood, score_answer
from meow_ray.stages.memo.steps import SCORE_NAMES, MemoSteps
from tests.support.tiny import KNOWN, byte_level, chat, wrapped

Facts = Sequence[tuple[str, list[str]]]
"""Questions, each with the answers to score."""

FACTS: Facts = [
    (KNOWN[0][0], [KNOWN[0][1], "Jean-Paul Sartre", "7"]),
    (KNOWN[1][0], [KNOWN[1][1], "In Mai 1962", "Zoë"]),
]
COMPARATORS = ("ma", "el", "em", "es")
MODES_AND_TEMPLATES = [("suffix", "raw"), ("suffix", "target"), ("prefix", "raw")]


def batch_of(facts: Facts, **columns: list[Any]) -> pa.Table:
    """Returns facts as a batch, with further columns."""
    questions = pa.array([question for question, _ in facts], pa.string())
    texts = pa.array([texts for _, texts in facts], pa.list_(pa.string()))
    return pa.table({"question": questions, "texts": texts, **columns})


def steps_of(**spec: Any) -> MemoSteps:
    """Returns the steps under settings of `memo`, with the chat template as `target.template`."""
    return MemoSteps(Memo(**spec), "chat")


def run_steps(steps: MemoSteps, engine: Any, facts: Facts, **columns: list[Any]) -> pa.Table:
    """Runs the three steps on one batch."""
    prepared = steps.prepare(engine.tokenizer, batch_of(facts, **columns))
    return steps.finish(engine.tokenizer, steps.generate(engine, prepared))


def tokenizer_of_words() -> Any:
    """Returns a tokenizer of words: the tokens of a text depend on where the text ends."""
    from tokenizers import models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend = byte_level(models.BPE())
    backend.train_from_iterator([f"{question} {answer}" for question, answer in KNOWN] * 2, trainer)
    return wrapped(backend, special)


class RecordingEngine:
    """The transformers engine, which also records its calls."""

    def __init__(self, folder: Path) -> None:
        self.engine = EngineSpec(
            model=refs.pin(str(folder), None, "model"), engine="transformers", dtype="float32"
        ).load()
        self.tokenizer = self.engine.tokenizer
        self.ends = self.engine.ends
        self.max_model_len = self.engine.max_model_len
        self.generated: list[tuple[tuple[int, ...], int]] = []
        """Prompts, each with its largest number of new tokens."""
        self.forced: list[tuple[int, ...]] = []
        """Prompts with their answers."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        self.generated += [
            (tuple(prompt), spec.max_new_tokens)
            for prompt, spec in zip(prompts, sampling, strict=True)
        ]
        return self.engine.generate(prompts, sampling)

    def teacher_force(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> list[TeacherForced]:
        self.forced += [(*p, *a) for p, a in zip(prompts, answers, strict=True)]
        return self.engine.teacher_force(prompts, answers)


class PlainModel:
    """The same model without batches and shortcuts: it scores one window at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").to(device).eval()
        self.ends = ends_of(self.tokenizer)
        self.cache: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def encode(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def generate(self, prompt: Sequence[int], limit: int) -> list[int]:
        """Returns the greedy continuation without the end-of-sequence token."""
        import torch

        key = (tuple(prompt), limit)
        if key not in self.cache:
            ids = torch.tensor([list(prompt)], device=self.model.device)
            output = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            tokens = output[0, len(prompt) :].tolist()
            at = next((i for i, token in enumerate(tokens) if token in self.ends), None)
            self.cache[key] = tokens[:at]
        return self.cache[key]

    def is_greedy(self, prompt: Sequence[int], answer: Sequence[int]) -> list[bool]:
        """Returns which tokens of an answer are the most probable ones."""
        import torch

        ids = torch.tensor([[*prompt, *answer]], device=self.model.device)
        with torch.no_grad():
            logits = self.model(ids).logits[0]
        return [
            int(logits[len(prompt) + i - 1].argmax()) == token for i, token in enumerate(answer)
        ]

    def prompt_and_answer(
        self, spec: Memo, question: str, answer: str
    ) -> tuple[list[int], list[int]]:
        """Returns the tokens before an answer, and those of the answer."""
        if spec.template == "target":
            return self.encode(chat(question)), self.encode(answer)
        whole = self.encode(f"{question} {answer}", special=True)
        head = self.encode(question, special=True)
        assert whole[: len(head)] == head
        return head, whole[len(head) :]

    def windows(
        self, spec: Memo, question: str, answer: str
    ) -> list[tuple[list[int], str, list[int]]]:
        """Returns each window's prompt as tokens, and its label as text and as tokens."""
        if spec.window == "token":
            return self._token_windows(spec, question, answer)
        if spec.mode == "prefix":
            pairs = [
                (question[:k], f"{question[k:]} {answer}")
                for k in range(1, len(question), spec.step)
            ]
        else:
            head = f"{question} " if spec.template == "raw" else chat(question)
            pairs = [(head + answer[:k], answer[k:]) for k in range(1, len(answer), spec.step)]
        return [
            (self.encode(prompt, special=spec.template == "raw"), label, self.encode(label))
            for prompt, label in pairs
        ]

    def _token_windows(
        self, spec: Memo, question: str, answer: str
    ) -> list[tuple[list[int], str, list[int]]]:
        head, tail = self.prompt_and_answer(spec, question, answer)
        whole = head + tail
        cuts = range(len(head) + 1, len(whole), spec.step)
        if spec.mode == "prefix":
            cuts = range(len(self.encode("", special=True)) + 1, len(head), spec.step)
        return [(whole[:cut], self.decode(whole[cut:]), whole[cut:]) for cut in cuts]

    def limit(self, spec: Memo, label: Sequence[int]) -> int:
        return len(label) if spec.max_new_tokens == "label" else spec.max_new_tokens

    def score(self, spec: Memo, question: str, answer: str) -> dict[str, Any]:
        """Returns the scores of an answer, with the configured comparators."""
        cuts = self.windows(spec, question, answer)
        continuations = [
            self.generate(prompt, self.limit(spec, label)) for prompt, _, label in cuts
        ]
        texts = [self.decode(tokens) for tokens in continuations]
        score = score_answer([label for _, label, _ in cuts], texts, spec)
        greedy = self.is_greedy(*self.prompt_and_answer(spec, question, answer))
        first = min(k for k in range(len(greedy) + 1) if all(greedy[k:]))
        label_tokens = [label for _, _, label in cuts]
        comparators = {
            "ma": sum(greedy) / len(greedy),
            "em": sum(greedy) / len(greedy),
            "es": 1 - first / len(greedy),
            "el": extraction_likelihood(label_tokens, continuations, spec.el_n),
        }
        return {name: getattr(score, name) for name in SCORE_NAMES} | {
            name: comparators[name] for name in spec.comparators
        }
