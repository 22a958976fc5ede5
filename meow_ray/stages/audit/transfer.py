"""Carries texts about a fact over to its twin, so that both are asked in the same form."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import NamedTuple

_PIECE = re.compile(r"\w+|\s+|[^\w\s]")
_WORD = re.compile(r"\w+")


class Replacement(NamedTuple):
    """A phrase of one question, and what the other question has in its place."""

    old: str
    new: str


def replacements(question: str, other: str) -> list[Replacement]:
    """Returns the phrases in which two questions of the same form differ, the longest first.

    If both phrases have as many words, the words are replaced one by one as well, because another
    text may have a part of a name alone.
    """
    ours, theirs = _PIECE.findall(question), _PIECE.findall(other)
    found: list[Replacement] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if tag == "replace":
            old, new = "".join(ours[i1:i2]), "".join(theirs[j1:j2])
            found += [Replacement(old.strip(), new.strip()), *_word_by_word(old, new)]
    kept = {pair.old: pair for pair in reversed(found) if pair.old and pair.new}
    return sorted(kept.values(), key=lambda pair: (-len(pair.old), pair.old))


def _word_by_word(old: str, new: str) -> Iterator[Replacement]:
    ours, theirs = _WORD.findall(old), _WORD.findall(new)
    if len(ours) == len(theirs):
        yield from map(Replacement, ours, theirs)


def carry_over(text: str, question: str, other: str) -> str | None:
    """Returns a text about one question as a text about another question of the same form.

    Args:
        text: a rewording of `question`, or an answer to it.
        question: the question that the text is about.
        other: the question in which other names, dates and numbers stand.

    Returns:
        The text with the words of `other`; None if nothing had to be replaced, because then the
        text would still be about the first question.
    """
    pairs = replacements(question, other)
    if not pairs:
        return None
    by_old = {pair.old: pair.new for pair in pairs}
    alternatives = "|".join(re.escape(pair.old) for pair in pairs)
    pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)")
    carried, count = pattern.subn(lambda match: by_old[match[0]], text)
    return carried if count else None
