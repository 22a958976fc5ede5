"""Generates for the answers that a selection depends on, and bounds MEMO of the others."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from meow_ray.config import Memo
from meow_ray.engines import Engine, TeacherForced
from meow_ray.models.prompts import Prompter
from meow_ray.models.text import most_rouge_tokens, rouge_tokens
from meow_ray.stages.memo.bounds import Beginning, Bounds, Choice, Place, decide, memo_bounds
from meow_ray.stages.memo.characters import character_windows, distinct_prompts, window_limit
from meow_ray.stages.memo.forced import Forced, beginning_of, cuts_and_limits
from meow_ray.stages.memo.greedy import GrowingReplies, Prompt
from meow_ray.stages.memo.score import mismatches


@dataclass(frozen=True)
class OpenWindow:
    """A window whose continuation is known up to a prompt from which the model continues."""

    label: str
    known: Sequence[int]
    """The tokens of the continuation that are known without generating."""
    prompt: Prompt
    """All tokens before what is generated."""
    limit: int
    """The largest number of tokens to generate; 0 if the score of the window is known already."""


# --- windows ------------------------------------------------------------------------------------


def open_character_windows(
    prompter: Prompter,
    question: str,
    texts: Sequence[str],
    prompts: Sequence[Sequence[int]],
    spec: Memo,
) -> list[list[OpenWindow]]:
    """Returns the windows of each answer of a fact that is cut at characters.

    Args:
        prompter: writes the prompts.
        question: the question.
        texts: `[answer]`.
        prompts: the tokens of the fact's distinct prompts; see `distinct_prompts`.
        spec: the settings.
    """
    tokens_of = dict(zip(distinct_prompts(prompter, question, texts, spec), prompts, strict=True))
    return [
        [
            _open_window(
                window.label,
                (),
                tuple(tokens_of[window.prompt]),
                window_limit(prompter, window.label, spec),
            )
            for window in character_windows(prompter, question, text, spec)
        ]
        for text in texts
    ]


def open_token_windows(
    tokenizer: Any, forced: Forced, result: TeacherForced, spec: Memo
) -> list[OpenWindow]:
    """Returns the windows of an answer that is cut at tokens, from its teacher-forced pass."""
    sequence = forced["sequence"]
    cuts, limits = cuts_and_limits(forced, spec)
    labels = _decode(tokenizer, [sequence[cut:] for cut in cuts])
    windows = []
    for label, (cut, mismatch), limit in zip(
        labels, mismatches(result.is_greedy, cuts), limits, strict=True
    ):
        known = sequence[cut:mismatch][:limit]
        ends = mismatch == len(sequence) and result.ends
        room = 0 if ends else limit - len(known)
        windows.append(_open_window(label, known, beginning_of(forced, mismatch), room))
    return windows


def _open_window(label: str, known: Sequence[int], prompt: Prompt, limit: int) -> OpenWindow:
    """Returns a window. A label without words, such as a final stop, scores 0 in any case."""
    return OpenWindow(label, known, prompt, limit if rouge_tokens(label) else 0)


# --- the contest --------------------------------------------------------------------------------


class Contest:
    """The answers of the facts of one batch, and what is known of their MEMO.

    Args:
        engine: the engine of the target.
        facts: the windows of each answer of each fact; the true answer is a fact's first.
        spec: the settings of `memo`.
        choice: what `select` will choose.
    """

    def __init__(
        self,
        engine: Engine,
        facts: Sequence[Sequence[Sequence[OpenWindow]]],
        spec: Memo,
        choice: Choice,
    ) -> None:
        self._tokenizer = engine.tokenizer
        self._facts = facts
        self._spec = spec
        self._choice = choice
        self.replies = GrowingReplies(engine)

    def decide(self) -> list[list[Bounds | None]]:
        """Generates until the selection of each fact is decided.

        Nothing is generated for true answers, since they are never selected.

        Returns:
            The bounds of each answer of each fact; None for an answer without a window.
        """
        of_true_answers = [[self._bounds(answer) for answer in fact[:1]] for fact in self._facts]
        of_candidates = [[self._bounds(answer) for answer in fact[1:]] for fact in self._facts]
        decide(of_candidates, self._narrow, self._choice)
        return [
            [*truth, *others] for truth, others in zip(of_true_answers, of_candidates, strict=True)
        ]

    def _narrow(self, places: Sequence[Place]) -> list[Bounds]:
        """Generates more tokens for candidates, all of them in one batch of the engine."""
        answers = [self._facts[fact][candidate + 1] for fact, candidate in places]
        limits: dict[Prompt, int] = {}
        for window in _windows_of(answers):
            limits[window.prompt] = max(window.limit, limits.get(window.prompt, 0))
        self.replies.grow(limits)
        narrowed = [self._bounds(answer) for answer in answers]
        return [bounds for bounds in narrowed if bounds is not None]

    def _bounds(self, answer: Sequence[OpenWindow]) -> Bounds | None:
        if not answer:
            return None
        stable = [self._known_tokens(window) for window in answer]
        texts = _decode(self._tokenizer, [tokens for tokens, _ in stable])
        beginnings = [
            Beginning(text, further * most_words_of_a_token(self._tokenizer))
            for text, (_, further) in zip(texts, stable, strict=True)
        ]
        return memo_bounds([window.label for window in answer], beginnings, self._spec)

    def _known_tokens(self, window: OpenWindow) -> tuple[list[int], int]:
        """Returns the known tokens of a continuation, and the largest number of further ones.

        A last character that is written in several tokens of a byte each is not known: without its
        last byte, the others are decoded to other characters.
        """
        generated = (self.replies.after(window.prompt) or [])[: window.limit]
        tokens = [*window.known, *generated]
        if self.replies.is_complete(window.prompt, window.limit):
            return tokens, 0
        single_bytes = byte_tokens(self._tokenizer)
        stable = len(tokens)
        while stable and tokens[stable - 1] in single_bytes:
            stable -= 1
        room = window.limit - len(generated)
        return tokens[:stable], room + len(tokens) - stable


def _windows_of(answers: Sequence[Sequence[OpenWindow]]) -> Iterator[OpenWindow]:
    for answer in answers:
        yield from answer


# --- the vocabulary -----------------------------------------------------------------------------


@lru_cache(maxsize=4)
def most_words_of_a_token(tokenizer: Any) -> int:
    """Returns a number of words that no token of the vocabulary adds to a text more of."""
    texts = _decode(tokenizer, [[token] for token in range(len(tokenizer))])
    return max(1, *map(most_rouge_tokens, texts))


@lru_cache(maxsize=4)
def byte_tokens(tokenizer: Any) -> frozenset[int]:
    """Returns the tokens that stand for one byte each, such as `<0xE4>`, if the vocabulary has any.

    A decoder reads a run of them as a whole; while its last character is incomplete, none is text.
    """
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = tokenizer.get_vocab()
    return frozenset(vocabulary[name] for name in names if name in vocabulary)


def _decode(tokenizer: Any, sequences: Sequence[Sequence[int]]) -> list[str]:
    # an empty batch is an error in some tokenizers
    return tokenizer.batch_decode(sequences, skip_special_tokens=True) if sequences else []
