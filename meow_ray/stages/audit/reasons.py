"""Why a row of an audit has no score: a fixed vocabulary, and how people read it.

A row without a score is missing. It never counts as a fact that was not given away.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Literal, TypeAlias, get_args

Reason: TypeAlias = Literal[
    "no_gpu",
    "no_package",
    "no_retain_model",
    "out_of_memory",
    "engine_failed",
    "unsupported_model",
    "two_models",
    "different_models",
    "too_few_facts",
    "too_long",
    "no_rewording",
    "no_examples",
    "no_wrong_answers",
    "answer_too_short",
    "no_translation",
    "nothing_to_leak",
    "nothing_known",
    "not_asked",
    "not_judged",
    "not_finite",
    "unexplained",
]

REASONS: dict[str, str] = {
    "no_gpu": "the attack needs a GPU",
    "no_package": "the attack needs a package that is not installed",
    "no_retain_model": "the attack needs a model that never saw the facts",
    "out_of_memory": "the memory of one GPU is too small",
    "engine_failed": "the engine of transformers cannot load the model",
    "unsupported_model": "the attack does not know the layers of such a model",
    "two_models": "the attack reads or changes the weights of one model, and ULD has two",
    "different_models": "the layers of two models do not match",
    "too_few_facts": "two facts are needed, one to teach and one to ask for",
    "too_long": "the question does not fit into the context of the model",
    "no_rewording": "the question has no such rewording",
    "no_examples": "there are no questions about others to show",
    "no_wrong_answers": "there are no wrong answers to compare with",
    "answer_too_short": "no part of the answer can begin the reply",
    "no_translation": "the question has no usable translation",
    "nothing_to_leak": "the prompt has all words of the answer",
    "nothing_known": "the original model knows no more than the retain model",
    "not_asked": "the attack asked nothing",
    "not_judged": "the judge gave no verdict on most of the replies",
    "not_finite": "a probability is not a finite number",
    "unexplained": "the attack gave neither a score nor a reason",
}
"""What each reason means."""

assert set(REASONS) == set(get_args(Reason))


class MissingError(Exception):
    """An attack cannot be run here; the message says why in more detail than the reason."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason: Reason = reason


def explained(reason: str | None) -> str:
    """Returns a reason as people read it: `no_gpu: the attack needs a GPU`.

    Args:
        reason: one of `REASONS`, or another text, which is returned as it is; None is empty.
    """
    if reason in REASONS:
        return f"{reason}: {REASONS[reason]}"
    return reason or ""


def most_common(reasons: Iterable[str]) -> str | None:
    """Returns the reason that most rows have, the first by name of equally common ones."""
    counts = Counter(reasons)
    return min(counts, key=lambda reason: (-counts[reason], reason), default=None)
