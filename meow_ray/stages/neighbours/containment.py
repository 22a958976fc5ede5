"""Tells whether a text gives away a fact to forget."""

from dataclasses import replace

from meow_ray.models.text import share_of, words
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.invert.values import Values

MAX_OVERLAP = 0.5
"""The largest share of a true answer's novel words that a text may repeat."""

_PARTICLES = frozenset("al el de da di del della la le du des van von der den bin ibn ben".split())
"""Parts of names that many names have."""


def contains_fact(text: str, fact: Fact, max_overlap: float = MAX_OVERLAP) -> bool:
    """Tells whether a text repeats what a true answer adds to its question.

    That is one of its names, dates and numbers that the question does not state, or more than
    `max_overlap` of its novel words.

    Args:
        text: the text.
        fact: the fact to forget.
        max_overlap: the largest share of the novel words that the text may have.
    """
    return _overlaps(text, fact, max_overlap) or _added_values(fact).any_in(text)


def tells_fact(text: str, fact: Fact, max_overlap: float = MAX_OVERLAP) -> bool:
    """Tells the same of a text that was not made from the fact, and may be on any subject.

    A name, date or number alone says nothing then: the text must also have a name of the question,
    or one of its content words if it has no name.
    """
    if _overlaps(text, fact, max_overlap):
        return True
    question = Fact("", fact.question)
    subject = set(question.values.names or question.novel)
    return bool(subject & set(words(text))) and _added_values(fact).any_in(text)


def _overlaps(text: str, fact: Fact, max_overlap: float) -> bool:
    return (share_of(fact.novel, text) or 0.0) > max_overlap


def _added_values(fact: Fact) -> Values:
    """Returns the values of a true answer that its question states in no spelling."""
    names = {name for name in fact.values.names if len(name) > 1}
    return replace(fact.values, names=frozenset(names - _PARTICLES - set(words(fact.question))))
