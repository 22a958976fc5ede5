"""What the model generates for a batch of facts: for all windows, or for those of a contest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from meow_ray.config import Memo
from meow_ray.engines import Engine, TeacherForced
from meow_ray.models.prompts import Prompter
from meow_ray.stages.memo.bounds import Bounds, Choice
from meow_ray.stages.memo.contest import (
    Contest,
    OpenWindow,
    open_character_windows,
    open_token_windows,
)
from meow_ray.stages.memo.forced import Branch, Forced, beginning_of, cuts_and_limits
from meow_ray.stages.memo.greedy import GrowingReplies, continue_greedily
from meow_ray.stages.memo.score import branches


@dataclass(frozen=True)
class Batch:
    """A prepared batch as lists by fact, with the passes over its answers."""

    questions: list[str]
    texts: list[list[str]]
    prompts: list[list[list[int]]]
    """Of character windows: the distinct prompts of a fact."""
    limits: list[list[int]]
    """The largest number of new tokens of each prompt."""
    forced: list[list[Forced]]
    passes: list[list[TeacherForced]]
    """The results of the teacher-forced passes."""


@dataclass(frozen=True)
class Generated:
    """What the model generated, as lists by fact."""

    replies: list[list[list[int] | None]]
    """The continuation of each prompt; None if the model did not continue it."""
    branches: list[list[list[Branch]]]
    """Of token windows: the continuations from branches, by answer."""
    bounds: list[list[dict[str, float] | None]]
    """Of each answer, its bounds if it cannot be scored, because not all is generated for it."""


def generate_all(engine: Engine, batch: Batch, spec: Memo) -> Generated:
    """Generates the continuations of all windows."""
    replies = continue_greedily(engine, flatten(batch.prompts), flatten(batch.limits))
    tokens = [list(reply.tokens) for reply in replies]
    branches_of_facts: list[list[list[Branch]]] = [[] for _ in batch.texts]
    if spec.window == "token":
        generated = _generate_branches(engine, flatten(batch.forced), flatten(batch.passes), spec)
        branches_of_facts = regroup(generated, batch.forced)
    return Generated(
        replies=regroup(tokens, batch.prompts),
        branches=branches_of_facts,
        bounds=[[None] * len(texts) for texts in batch.texts],
    )


def _generate_branches(
    engine: Engine, sequences: Sequence[Forced], passes: Sequence[TeacherForced], spec: Memo
) -> list[list[Branch]]:
    """Generates from the branches of each forced sequence, each distinct beginning once.

    A beginning is the tokens before a branch. Several answers, or facts, can share it; the longest
    of their windows then decides how many tokens are generated.
    """
    branches_of_sequences = []
    limits: dict[tuple[int, ...], int] = {}
    for sequence, result in zip(sequences, passes, strict=True):
        cuts, limits_of_cuts = cuts_and_limits(sequence, spec)
        needed = branches(result.is_greedy, result.ends, cuts, limits_of_cuts)
        branches_of_sequences.append([(at, beginning_of(sequence, at)) for at in needed])
        for at, limit in needed.items():
            beginning = beginning_of(sequence, at)
            limits[beginning] = max(limit, limits.get(beginning, 0))
    replies = continue_greedily(engine, list(limits), list(limits.values()))
    reply_to = dict(zip(limits, replies, strict=True))
    return [
        [{"at": at, "tokens": list(reply_to[beginning].tokens)} for at, beginning in positions]
        for positions in branches_of_sequences
    ]


# --- for a selection ----------------------------------------------------------------------------


def generate_for_choice(
    engine: Engine, batch: Batch, spec: Memo, choice: Choice, prompter: Prompter
) -> Generated:
    """Generates until it is certain what `select` chooses from each fact; see `Contest`."""
    windows = [
        _open_windows(engine.tokenizer, batch, fact, spec, prompter)
        for fact in range(len(batch.texts))
    ]
    contest = Contest(engine, windows, spec, choice)
    bounds = contest.decide()
    branches_of_facts: list[list[list[Branch]]] = [[] for _ in batch.texts]
    if spec.window == "token":
        branches_of_facts = [
            [
                _branches_of(answer, len(sequence["prompt"]), contest.replies)
                for answer, sequence in zip(answers, sequences, strict=True)
            ]
            for answers, sequences in zip(windows, batch.forced, strict=True)
        ]
    return Generated(
        replies=[
            [contest.replies.after(tuple(prompt)) for prompt in prompts]
            for prompts in batch.prompts
        ],
        branches=branches_of_facts,
        bounds=[[_open_bounds(answer) for answer in fact] for fact in bounds],
    )


def _open_windows(
    tokenizer: Any, batch: Batch, fact: int, spec: Memo, prompter: Prompter
) -> list[list[OpenWindow]]:
    """Returns the windows of each answer of a fact."""
    if spec.window == "token":
        return [
            open_token_windows(tokenizer, sequence, result, spec)
            for sequence, result in zip(batch.forced[fact], batch.passes[fact], strict=True)
        ]
    return open_character_windows(
        prompter, batch.questions[fact], batch.texts[fact], batch.prompts[fact], spec
    )


def _branches_of(
    answer: Sequence[OpenWindow], prompt_length: int, replies: GrowingReplies
) -> list[Branch]:
    """Returns what was generated from the branches of an answer, without those left alone."""
    branches: list[Branch] = []
    for prompt in dict.fromkeys(window.prompt for window in answer if window.limit):
        tokens = replies.after(prompt)
        if tokens is not None:
            branches.append({"at": len(prompt) - prompt_length, "tokens": tokens})
    return branches


def _open_bounds(bounds: Bounds | None) -> dict[str, float] | None:
    """Returns the bounds of an answer that has no exact score; None for any other."""
    if bounds is None or bounds.is_exact:
        return None
    return {"low": bounds.low, "high": bounds.high}


# --- lists by fact ------------------------------------------------------------------------------


def flatten(lists: Sequence[Sequence[Any]]) -> list[Any]:
    """Returns the items of all lists as one list."""
    return [item for items in lists for item in items]


def regroup(items: Sequence[Any], like: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Cuts a flat list into lists as long as those of `like`."""
    rest = iter(items)
    return [[next(rest) for _ in group] for group in like]
