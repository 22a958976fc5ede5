"""What an attack is: the questions that it asks about a fact, and the score of the answers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from meow_ray.config import Audit
from meow_ray.stages.audit.reasons import Reason

Tier = Literal["black box", "static weights", "weights and compute"]
"""What the attacker has: answers to questions; the weights, too; or weights and time to train."""

Group = Literal["facts", "twins"]
"""The facts to forget, or twins: facts of the same form that no model has seen."""


@dataclass(frozen=True)
class Subject:
    """A fact, or a twin, about which a model is asked."""

    fact_id: str
    """Of a twin, `FACT#NUMBER`."""
    group: Group
    question: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    """Rewordings of the question that the user's set or the stage `paraphrases` has."""
    wrong_answers: tuple[str, ...] = ()
    """Plausible answers that are not true."""
    examples: tuple[tuple[str, str], ...] = ()
    """Questions with answers about others, for attacks that show examples."""


@dataclass(frozen=True)
class Question:
    """One question to a model, and what is measured of the reply."""

    variant: str
    """What sets it apart from the other variants of the attack, such as `30 %`; may be empty."""
    question: str
    answer: str
    """What should follow `start`; its probability is measured if `is_scored`."""
    start: str = ""
    """The beginning of the reply, which is set for the model."""
    system: str | None = None
    """A system prompt instead of the target's own; None keeps that."""
    is_chat: bool = True
    """Whether the question is put into the chat template; otherwise it is continued as plain
    text."""
    num_replies: int = 1
    """Number of replies: 1 is the greedy one, more are sampled, 0 is none."""
    is_scored: bool = False
    """Whether the probability of `answer` is measured in a teacher-forced pass."""


@dataclass(frozen=True)
class Answered:
    """A question with what a model made of it."""

    asked: Question
    replies: tuple[str, ...]
    log_probs: tuple[float, ...] = ()
    """`[answer]`, log p(token | tokens before it), in nats; empty unless the question is scored."""
    is_greedy: tuple[bool, ...] = ()
    """`[answer]`, whether no token is more probable."""
    is_fact_bearing: tuple[bool, ...] = ()
    """`[answer]`, whether the token carries the fact."""


@dataclass(frozen=True)
class Outcome:
    """What an attack got from a model about one subject."""

    score: float | None
    """Larger if the model gave away more. None if nothing could be measured, which counts as
    missing and never as forgotten."""
    attempts: int
    """Replies that the attack had, or forward passes if it reads no reply."""
    reply: str | None = None
    """The reply that gave away most."""
    low: float | None = None
    """Lower 95 % bound of a score that is estimated from samples; None for other scores."""
    high: float | None = None
    """Upper 95 % bound."""
    reason: Reason | None = None
    """Why there is no score; None if there is one."""


@dataclass(frozen=True)
class Attack:
    """An attack that asks questions and scores the answers.

    Attributes:
        name: its name in `audit.attacks`.
        tier: what the attacker needs.
        ask: returns the questions about a subject. It must not depend on the model.
        score: returns the outcome from the answered questions of one variant.
        if_unasked: why a subject has no score in a variant of which it is asked nothing.
    """

    name: str
    tier: Tier
    ask: Callable[[Subject, Audit], Iterable[Question]]
    score: Callable[[Subject, Sequence[Answered]], Outcome]
    if_unasked: Reason = "not_asked"
