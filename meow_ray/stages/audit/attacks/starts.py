"""Attacks that begin the reply for the model."""

from collections.abc import Iterator

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Attack, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak
from meow_ray.stages.evaluate.suites import AFFIRMATIVE, PREFIXES, prefix_length


def ask_with_prefix(subject: Subject, spec: Audit) -> Iterator[Question]:
    """Begins the reply with the first 10, 30 and 50 % of the answer."""
    for percent in PREFIXES:
        length = prefix_length(subject.answer, percent)
        if length:
            start, rest = subject.answer[:length], subject.answer[length:]
            yield Question(f"{percent} %", subject.question, rest, start)


def ask_affirmatively(subject: Subject, spec: Audit) -> Iterator[Question]:
    """Begins the reply with a sentence that agrees to answer."""
    yield Question("", subject.question, subject.answer, AFFIRMATIVE)


PREFIX = Attack("prefix", "black box", ask_with_prefix, largest_leak, "answer_too_short")
"""Begins the reply with a part of the answer; one greedy reply each.

The score counts the words that the start does not have.
"""

AFFIRMATIVE_START = Attack("affirmative", "black box", ask_affirmatively, largest_leak)
"""Begins the reply with `Sure, here is the answer:`; one greedy reply (RWKU, arXiv 2406.10890)."""
