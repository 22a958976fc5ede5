"""The tokens of a question and an answer that the model reads in one teacher-forced pass."""

from collections.abc import Sequence
from typing import TypedDict

import pyarrow as pa

from meow_ray.config import Memo
from meow_ray.models.prompts import Prompter
from meow_ray.stages.memo.score import token_cuts

TOKENS_TYPE = pa.list_(pa.int32())
FORCED_TYPE = pa.struct([("prompt", TOKENS_TYPE), ("sequence", TOKENS_TYPE), ("start", pa.int32())])
BRANCH_TYPE = pa.struct([("at", pa.int32()), ("tokens", TOKENS_TYPE)])


class Forced(TypedDict):
    """A question and an answer as tokens, of the Arrow type `FORCED_TYPE`."""

    prompt: list[int]
    sequence: list[int]
    """The tokens after the prompt, which the pass compares with the greedy ones."""
    start: int
    """The position in `sequence` at which the answer begins."""


class Branch(TypedDict):
    """What the model generates from a position of a sequence, of the Arrow type `BRANCH_TYPE`."""

    at: int
    tokens: list[int]


def forced_sequence(prompter: Prompter, question: str, text: str, spec: Memo) -> Forced:
    """Tokenises a question and an answer.

    With `memo.template` `target`, prompt and answer have the tokens of training. With `raw`, they
    are tokenised as one text, and the answer begins at the first token that differs from those of
    the question alone. In mode `prefix`, the cuts lie in the question, so `sequence` begins with
    the question, after the special tokens.
    """
    if spec.template == "target":
        return {
            "prompt": prompter.encode_prompt(prompter.prompt(question)),
            "sequence": prompter.encode_answer(text)[:-1],  # without the end-of-sequence token
            "start": 0,
        }
    whole = prompter.encode_prompt(f"{question} {text}")
    start = _first_difference(whole, prompter.encode_prompt(question))
    if spec.mode == "suffix":
        return {"prompt": whole[:start], "sequence": whole[start:], "start": 0}
    special = len(prompter.encode_prompt(""))
    return {"prompt": whole[:special], "sequence": whole[special:], "start": start - special}


def _first_difference(tokens: Sequence[int], prefix: Sequence[int]) -> int:
    """Returns the first position at which tokens differ from a prefix, or the prefix's length."""
    for i, (token, expected) in enumerate(zip(tokens, prefix, strict=False)):
        if token != expected:
            return i
    return len(prefix)


def cuts_and_limits(forced: Forced, spec: Memo) -> tuple[range, list[int]]:
    """Returns the cuts of a sequence and the largest number of new tokens of each window."""
    length = len(forced["sequence"])
    end = length if spec.mode == "suffix" else forced["start"]
    cuts = token_cuts(end, spec)
    limit = spec.max_new_tokens
    return cuts, [length - cut if limit == "label" else limit for cut in cuts]


def beginning_of(forced: Forced, at: int) -> tuple[int, ...]:
    """Returns all tokens before a position of a sequence, those of the prompt included."""
    return (*forced["prompt"], *forced["sequence"][:at])


SURELY_LONGER = 32
"""A text with more characters, several words among them, has more than one token."""


def has_window(prompter: Prompter, question: str, text: str, spec: Memo) -> bool:
    """Whether an answer has a window, without which it gets no score."""
    cut_text = text if spec.mode == "suffix" else question
    if spec.window == "character":
        return len(cut_text) > 1
    if len(cut_text) > SURELY_LONGER and len(cut_text.split()) > 1:
        return True
    cuts, _ = cuts_and_limits(forced_sequence(prompter, question, text, spec), spec)
    return len(cuts) > 0
