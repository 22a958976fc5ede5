"""The form of an answer: a sentence, or bare like a year, a name or a list."""

import re

from meow_ray.models.text import words, written_words
from meow_ray.stages.invert.values import only_value_like

_STOP = re.compile(r"[.。．।॥۔]$")
_SENTENCE_CLOSE = re.compile(r"[.!…。．！।॥۔]['\"”’)\]]*$")
_ABBREVIATION = re.compile(r"(?:(?:\b[A-Z]\.)+|\b(?:[ap]\.m|Jr|Sr|Inc|Ltd|Co|Corp|St|Mt|etc)\.)$")
_CLAUSE_WORDS = frozenset(
    """
    am are became be been can could did do does had has have he is it she there they was were will
    would
    """.split()
)
"""English verbs and pronouns that a bare answer lacks; within a title they have a capital."""
FEW_WORDS = 8
"""Largest number of words of a name or a title."""


def ends_like_sentence(text: str) -> bool:
    """Tells whether a text ends like a sentence."""
    return bool(_SENTENCE_CLOSE.search(text.rstrip()))


def has_sentence_end(answer: str) -> bool:
    """Tells whether a true answer ends like a sentence; the end of `Sammy Davis Jr.` does not."""
    return ends_like_sentence(answer) and not _is_abbreviated_name(answer)


def is_bare(answer: str) -> bool:
    """Tells whether a true answer is no sentence: it has no end of one and no word of a clause."""
    return not has_sentence_end(answer) and not has_clause(answer)


def is_brief(answer: str) -> bool:
    """Tells whether a true answer is bare and short; its number of words says little."""
    return is_bare(answer) and len(words(answer)) <= FEW_WORDS


def has_clause(text: str) -> bool:
    """Tells whether a text has a common English verb or a pronoun in lower case."""
    return not _CLAUSE_WORDS.isdisjoint(written_words(text))


def in_form_of(answer: str, text: str) -> str:
    """Returns a text without what the true answer lacks: a final stop, or words around a value."""
    value = only_value_like(answer, text) if is_bare(answer) else None
    if value is not None:
        return value
    if has_sentence_end(answer) or _is_abbreviated_name(text):
        return text
    return _STOP.sub("", text)


def _is_abbreviated_name(text: str) -> bool:
    """Tells whether a text ends in an abbreviation after names and numbers only."""
    match = _ABBREVIATION.search(text.rstrip())
    if match is None:
        return False
    others = written_words(text[: match.start()])
    return all(word[0].isupper() or word[0].isdecimal() for word in others)
