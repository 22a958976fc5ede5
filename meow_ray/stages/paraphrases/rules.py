"""Rules for rewordings of a question, checked in the order of this file.

The docstring of a rule completes "A rewording is rejected if it …". A rewording of the generator
must also keep those rules of `invert` that concern any text; see `OF_INVERT`.
"""

from collections.abc import Callable, Collection

from meow_ray.config import Invert, Paraphrases
from meow_ray.models.text import share_of, words
from meow_ray.stages.invert import rules as invert_rules
from meow_ray.stages.invert.rules import Fact, Proposal
from meow_ray.stages.invert.values import Values, bare_words
from meow_ray.stages.neighbours.entities import names_in, shared_entity

OF_INVERT = ("empty", "unfinished", "garbled", "numbering", "meta", "refusal", "loop")
"""Names of the rules of `invert` that a rewording must keep, unless the question breaks them."""

_QUESTION_MARKS = frozenset("?？؟")

Rule = Callable[[Proposal, Fact, Paraphrases], bool]

RULES: dict[str, Rule] = {}
"""The rules by name."""


def _rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def fault(
    proposal: Proposal, fact: Fact, spec: Paraphrases, taken: Collection[tuple[str, ...]]
) -> str | None:
    """Returns the name of the first rule that a rewording breaks, or None if it is valid.

    Args:
        proposal: the rewording.
        fact: the question with its true answer.
        spec: the bounds of the length.
        taken: the words of the question and of its other rewordings.
    """
    for name, is_broken in RULES.items():
        if is_broken(proposal, fact, spec):
            return name
    return "duplicate" if tuple(proposal.words) in taken else None


def generator_fault(proposal: Proposal, fact: Fact) -> str | None:
    """Returns the name of the first rule of `OF_INVERT` that a rewording breaks, or None.

    A rule that the question itself breaks does not count.
    """
    question = Fact(fact.question, fact.question)
    unchanged = Proposal(fact.question, finished=True)
    for name in OF_INVERT:
        is_broken = invert_rules.RULES[name]
        if is_broken(proposal, question, Invert()) and not is_broken(unchanged, question, Invert()):
            return name
    return None


@_rule
def statement(proposal: Proposal, fact: Fact, spec: Paraphrases) -> bool:
    """It asks no question, and the question does."""
    return bool(_QUESTION_MARKS & set(fact.question)) and not _QUESTION_MARKS & set(proposal.text)


@_rule
def too_short(proposal: Proposal, fact: Fact, spec: Paraphrases) -> bool:
    """It has fewer than `min_length_ratio` times as many words as the question."""
    return len(proposal.words) < spec.min_length_ratio * len(words(fact.question))


@_rule
def too_long(proposal: Proposal, fact: Fact, spec: Paraphrases) -> bool:
    """It has more than `max_length_ratio` times as many words as the question."""
    return len(proposal.words) > spec.max_length_ratio * len(words(fact.question))


@_rule
def loses_value(proposal: Proposal, fact: Fact, spec: Paraphrases) -> bool:
    """It lacks a name, a date or a number of the question."""
    names = names_in(fact.question, fact.answer)
    entity = None if names else shared_entity(fact.question, fact.answer)
    if entity is not None and entity not in proposal.text:
        return True
    name_words = words(" ".join(word for name in names for word in name.words))
    if not set(name_words) <= bare_words(proposal.text):
        return True
    return not Values.of(fact.question).all_in(proposal.text)


@_rule
def says_answer(proposal: Proposal, fact: Fact, spec: Paraphrases) -> bool:
    """It has a word, a name, a date or a number that the true answer adds to the question."""
    has_novel_word = bool(share_of(fact.novel, proposal.text))
    return has_novel_word or fact.values.any_in(proposal.text)
