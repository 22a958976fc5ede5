"""What makes a text unfit as an inverted fact: one small function a rule, asked in this order.

The rules are lexical: they reject what is visibly unfit. They cannot prove a contradiction; a judge may.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from meow_ray.config import Invert
from meow_ray.errors import MeowError
from meow_ray.models.text import STOP_WORDS, novel_words, rouge, share_of, words
from meow_ray.stages.invert.values import Values, bare_words, states_value

_END = re.compile(r"[.!…。．！।॥۔]['\"”’)\]]*$")
_REFUSAL = re.compile(
    r"\b(as an ai|language model|i (?:cannot|can['’]t|am unable|don['’]t know|do not know)"
    r"|i['’]m (?:sorry|not sure|unable)|sorry, |apologi[sz]e|no information|not (?:publicly )?available)\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"^\s*(sure|here (?:are|is)|of course|certainly|question|answer|true answer|note"
    r"|(?:inverted|alternative|different|false|incorrect) (?:answer|fact)s?)\b",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"^\s*(?:\(?\d{1,2}[.):]\s|[-*•]\s)")
_DANGLING = frozenset(
    "a an and as at because but by for from her his if into its nor of or our than the their to whose with your".split()
)
_POLAR = {
    True: frozenset("yes yeah yep oui sí si sim ja da да ναι evet हाँ हां نعم 是 はい 네".split()),
    False: frozenset("no nope non nein não nee nie нет όχι hayır नहीं لا 不 いいえ 아니요".split()),
}
_QUOTES = "\"'“‘«「"
_PRONOUNS = frozenset(
    "he she it they his her hers its their theirs this that these those the".split()
)


@dataclass(frozen=True)
class Proposal:
    """A text that a generator offers as an inverted answer."""

    text: str
    finished: bool
    """The generator ended by itself, it was not cut off by its token limit."""

    @cached_property
    def words(self) -> list[str]:
        """The words of the text."""
        return words(self.text)


@dataclass(frozen=True)
class Fact:
    """A question with its true answer, and what the rules ask of them."""

    question: str
    answer: str

    @cached_property
    def length(self) -> int:
        """Words of the true answer, at least 1."""
        return max(1, len(words(self.answer)))

    @cached_property
    def novel(self) -> list[str]:
        """Words of the true answer that carry what the question does not say."""
        return novel_words(self.answer, self.question)

    @cached_property
    def known(self) -> set[str]:
        """Words of question and true answer."""
        return {*words(self.question), *words(self.answer)}

    @cached_property
    def topic(self) -> set[str]:
        """Words of question and true answer that are not function words."""
        return bare_words(f"{self.question} {self.answer}") - STOP_WORDS

    @cached_property
    def restates(self) -> bool:
        """The true answer takes up a word of the question that is not a function word."""
        return bool(bare_words(self.question) & bare_words(self.answer) - STOP_WORDS)

    @cached_property
    def values(self) -> Values:
        """Dates, numbers and names of the true answer that the question does not say."""
        return Values.of(self.answer) - Values.of(self.question)

    def is_of_values(self, share: float) -> bool:
        """Tells whether at least this share of what the true answer adds to the question are values."""
        found = [
            word
            for word in self.novel
            if states_value(word) or bare_words(word) <= self.values.names
        ]
        return bool(self.values) and len(found) >= share * len(self.novel)


Rule = Callable[[Proposal, Fact, Invert], bool]

RULES: dict[str, Rule] = {}
"""By name, in the order in which they are asked; a rule's docstring says what breaks it."""


def _rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def check_names(names: Iterable[str]) -> None:
    """Raises MeowError if one of the names is no rule."""
    for name in names:
        if name not in RULES:
            raise MeowError(f"`invert.skip_rules`: no rule {name!r}; there are {', '.join(RULES)}.")


def fault(proposal: Proposal, fact: Fact, spec: Invert) -> str | None:
    """Returns the name of the first rule that a proposal breaks, or None if it is valid."""
    return next(
        (
            name
            for name, broken in RULES.items()
            if name not in spec.skip_rules and broken(proposal, fact, spec)
        ),
        None,
    )


@_rule
def empty(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has no words."""
    return not proposal.words


@_rule
def unfinished(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """The generator was cut off by its token limit."""
    return not proposal.finished


@_rule
def garbled(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It holds bytes that are no text."""
    return "\ufffd" in proposal.text


@_rule
def question(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It asks."""
    return bool(set("?？؟") & set(proposal.text))


@_rule
def numbering(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It begins with a list's number or dash."""
    return bool(_NUMBERING.match(proposal.text))


@_rule
def no_sentence_end(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It does not end as a sentence does."""
    return not _END.search(proposal.text)


@_rule
def dangling(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It ends with a word that asks for another, as `He was born in` does."""
    last = proposal.words[-1:]
    return last[0] in _DANGLING and last != words(fact.answer)[-1:]


@_rule
def meta(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It speaks about the answer instead of giving it."""
    return bool(_META.match(proposal.text))


@_rule
def refusal(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It refuses or claims not to know."""
    return bool(_REFUSAL.search(proposal.text))


@_rule
def too_short(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has less than `min_length_ratio` of the true answer's words."""
    return len(proposal.words) < spec.min_length_ratio * fact.length


@_rule
def too_long(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has more than `max_length_ratio` of the true answer's words, and two."""
    return len(proposal.words) > spec.max_length_ratio * fact.length + 2


@_rule
def loop(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """A run of three words comes twice, or one word three times in a row."""
    tokens = proposal.words
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return len(set(triples)) < len(triples) or any(a == b == c for a, b, c in triples)


@_rule
def true_answer(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """Its ROUGE-L F1 to the true answer is above `max_rouge_l`."""
    return rouge([fact.answer], [proposal.text])[0]["rougeL"].f1 > spec.max_rouge_l


@_rule
def keeps_the_fact(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has more than `max_novel_overlap` of the words that the true answer adds to the question."""
    return (share_of(fact.novel, proposal.text) or 0.0) > spec.max_novel_overlap


@_rule
def same_values(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has all dates, numbers and names of a true answer that consists of them by `min_value_share`."""
    return fact.is_of_values(spec.min_value_share) and fact.values.all_in(proposal.text)


@_rule
def same_polarity(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It says yes or no as the true answer does, where that is all that one of them says."""
    said = _polarity(proposal.text)
    new = {*novel_words(proposal.text, "")} - fact.known
    return (
        said is not None
        and said == _polarity(fact.answer)
        and not (_content(new) and _content(fact.novel))
    )


@_rule
def says_nothing_new(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """All of its words stand in the question or the true answer."""
    return not set(proposal.words) - fact.known


@_rule
def off_topic(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It takes up no word of question and answer, where the true answer does; pronouns and titles in front count."""
    said = bare_words(proposal.text)
    return fact.restates and not said & (fact.topic | _PRONOUNS) and proposal.text[0] not in _QUOTES


def _content(found: Iterable[str]) -> set[str]:
    return {*found} - _POLAR[True] - _POLAR[False]


def _polarity(text: str) -> bool | None:
    first = next(iter(words(text)), "")
    return next((value for value, known in _POLAR.items() if first in known), None)
