"""Rules for inverted facts: one small function per rule, checked in the order of this file.

The rules are lexical. They reject visibly unfit texts, but they cannot prove that a text
contradicts the true answer; a judge can be asked about that. The docstring of a rule is shown to
users: it completes "A candidate is rejected if it …".
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from meow_ray.config import Invert
from meow_ray.errors import MeowError
from meow_ray.models.text import STOP_WORDS, is_unspaced, novel_words, rouge, share_of, words
from meow_ray.stages.invert.forms import (
    ends_like_sentence,
    has_clause,
    has_sentence_end,
    is_bare,
    is_brief,
)
from meow_ray.stages.invert.values import Values, bare_words, states_value

_OPEN_END = re.compile(r"[,:;،؛、，：；–—-]\s*$")
_MARKUP = re.compile(r"^\s*(?:```|[{\[<|])|[}\]|]\s*$")
_REFUSAL = re.compile(
    r"\b(as an ai|language model|i (?:cannot|can['’]t|am unable|don['’]t know|do not know)"
    r"|i['’]m (?:sorry|not sure|unable)|sorry, |apologi[sz]e|no information"
    r"|not (?:publicly )?available)\b",
    re.IGNORECASE,
)
_META = re.compile(
    r"^\s*(sure|here (?:are|is)|of course|certainly|question|answer|true answer|note"
    r"|(?:inverted|alternative|different|false|incorrect) (?:answer|fact)s?)\b",
    re.IGNORECASE,
)
_NUMBERING = re.compile(r"^\s*(?:\(?\d{1,2}[.):]\s|[-*•]\s)")
_DANGLING = frozenset(
    """
    a an and as at because but by for from her his if into its nor of or our than the their to whose
    with your
    """.split()
)
"""Words that another word must follow."""
_POLARITY_WORDS = {
    True: frozenset("yes yeah yep oui sí si sim ja da да ναι evet हाँ हां نعم 是 はい 네".split()),
    False: frozenset("no nope non nein não nee nie нет όχι hayır नहीं لا 不 いいえ 아니요".split()),
}
_CHOICE = "or"
"""A word of questions that name the possible answers."""
_QUESTION_MARKS = frozenset("?？؟")
_QUOTES = tuple("\"'“‘«「")
_PRONOUNS = frozenset(
    "he she it they his her hers its their theirs this that these those the".split()
)


@dataclass(frozen=True)
class Proposal:
    """A text that a generator offers as an inverted answer."""

    text: str
    finished: bool
    """Whether the generator ended it, rather than its token limit."""

    @cached_property
    def words(self) -> list[str]:
        """Words of the text, case folded."""
        return words(self.text)


@dataclass(frozen=True)
class Fact:
    """A question and its true answer, with the properties that the rules compare."""

    question: str
    answer: str

    @cached_property
    def length(self) -> int:
        """Number of words of the true answer, at least 1."""
        return max(1, len(words(self.answer)))

    @cached_property
    def is_bare(self) -> bool:
        """Whether the true answer is no sentence, but for example a year, a name or a list."""
        return is_bare(self.answer)

    @cached_property
    def novel(self) -> list[str]:
        """Words that the true answer adds to the question; see `text.novel_words`."""
        return novel_words(self.answer, self.question)

    @cached_property
    def known(self) -> set[str]:
        """All words of the question and the true answer."""
        return {*words(self.question), *words(self.answer)}

    @cached_property
    def topic(self) -> set[str]:
        """Words of the question and the true answer, without function words."""
        return bare_words(f"{self.question} {self.answer}") - STOP_WORDS

    @cached_property
    def repeats_question(self) -> bool:
        """Whether the true answer repeats a word of the question other than a function word."""
        return bool(bare_words(self.question) & bare_words(self.answer) - STOP_WORDS)

    @cached_property
    def values(self) -> Values:
        """Dates, numbers and names of the true answer that are not in the question."""
        return Values.of(self.answer, bare=self.is_bare) - Values.of(self.question)

    def shares_numbers(self, text: str, most: float) -> bool:
        """Tells whether a text repeats more than this share of the true answer's numbers.

        `1,200,000` repeats two words of `1,500,000`, but not the number.
        """
        numbers = self.values.numbers
        return len(numbers & Values.of(text).numbers) > most * len(numbers)

    def is_of_values(self, share: float) -> bool:
        """Tells whether at least this share of the novel words are dates, numbers and names."""
        value_words = [
            word
            for word in self.novel
            if states_value(word) or bare_words(word) <= self.values.names
        ]
        return bool(self.values) and len(value_words) >= share * len(self.novel)


Rule = Callable[[Proposal, Fact, Invert], bool]

RULES: dict[str, Rule] = {}
"""The rules by name, in the order in which they are checked."""


def _rule(function: Rule) -> Rule:
    RULES[function.__name__] = function
    return function


def check_names(names: Iterable[str]) -> None:
    """Raises MeowError if a name is not that of a rule."""
    for name in names:
        if name not in RULES:
            raise MeowError(
                f"`invert.skip_rules`: no rule {name!r}. The rules are {', '.join(RULES)}."
            )


def fault(proposal: Proposal, fact: Fact, spec: Invert) -> str | None:
    """Returns the name of the first rule that a proposal breaks, or None if it is valid."""
    for name, is_broken in RULES.items():
        if name not in spec.skip_rules and is_broken(proposal, fact, spec):
            return name
    return None


@_rule
def empty(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has no words."""
    return not proposal.words


@_rule
def unfinished(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It was cut off by its token limit."""
    return not proposal.finished


@_rule
def garbled(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It contains broken bytes."""
    return "\ufffd" in proposal.text


@_rule
def question(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It asks a question."""
    return bool(_QUESTION_MARKS & set(proposal.text) - set(fact.answer))


@_rule
def numbering(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It begins with the number or dash of a list, and the true answer does not."""
    return bool(_NUMBERING.match(proposal.text)) and not _NUMBERING.match(fact.answer)


@_rule
def no_sentence_end(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It does not end like a sentence, as the true answer does, or it breaks off at a comma."""
    if has_sentence_end(fact.answer):
        return not ends_like_sentence(proposal.text)
    return bool(_OPEN_END.search(proposal.text)) and not _OPEN_END.search(fact.answer)


@_rule
def sentence(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It is a sentence, but the true answer is bare, such as a year, a name or a list."""
    return fact.is_bare and has_clause(proposal.text)


@_rule
def dangling(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It ends with a word that needs another word, as in `He was born in`."""
    last_word = proposal.words[-1:]
    return bool(last_word) and last_word[0] in _DANGLING and last_word != words(fact.answer)[-1:]


@_rule
def meta(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It comments on the answer instead of giving it, or has brackets around it."""
    has_markup = _MARKUP.search(proposal.text) and not _MARKUP.search(fact.answer)
    return bool(has_markup or _META.match(proposal.text))


@_rule
def refusal(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It refuses, or claims not to know."""
    return bool(_REFUSAL.search(proposal.text))


@_rule
def too_short(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has fewer than `min_length_ratio` times as many words as the true answer."""
    if is_brief(fact.answer):
        return False
    return len(proposal.words) < spec.min_length_ratio * fact.length


@_rule
def too_long(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has more than `max_length_ratio` times as many words as the true answer, plus a few."""
    further = 5 if fact.is_bare else 2
    return len(proposal.words) > spec.max_length_ratio * fact.length + further


@_rule
def loop(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It repeats three words in a row, or has the same word three times in a row."""
    tokens = proposal.words
    # a name of three letters occurs twice in a good answer
    span = 6 if any(map(is_unspaced, tokens)) else 3
    runs = [tuple(tokens[i : i + span]) for i in range(len(tokens) - span + 1)]
    repeats_run = len(set(runs)) < len(runs)
    triples = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return repeats_run or any(a == b == c for a, b, c in triples)


@_rule
def true_answer(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has a ROUGE-L F1 to the true answer above `max_rouge_l`."""
    return rouge([fact.answer], [proposal.text])[0]["rougeL"].f1 > spec.max_rouge_l


@_rule
def keeps_the_fact(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It repeats more than `max_novel_overlap` of the true answer's novel words."""
    is_number = fact.is_bare and fact.values.numbers and fact.is_of_values(spec.min_value_share)
    if is_number:
        return fact.shares_numbers(proposal.text, spec.max_novel_overlap)
    return (share_of(fact.novel, proposal.text) or 0.0) > spec.max_novel_overlap


@_rule
def same_values(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It has all dates, numbers and names of a true answer made of them (`min_value_share`)."""
    return fact.is_of_values(spec.min_value_share) and fact.values.all_in(proposal.text)


@_rule
def same_polarity(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It says yes or no like the true answer, and one of the two says nothing else."""
    polarity = _polarity(proposal.text)
    if polarity is None or polarity != _polarity(fact.answer):
        return False
    added_words = {*novel_words(proposal.text, "")} - fact.known
    both_say_more = _without_polarity(added_words) and _without_polarity(fact.novel)
    return not both_say_more


@_rule
def says_nothing_new(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It consists of words of the question and the true answer; a choice may be in the question."""
    if fact.is_bare and _CHOICE in words(fact.question):
        return not set(proposal.words) - set(words(fact.answer))
    return not set(proposal.words) - fact.known


@_rule
def off_topic(proposal: Proposal, fact: Fact, spec: Invert) -> bool:
    """It shares no content word with the question or the true answer, which share one."""
    # a pronoun and a quoted title at the beginning count as being on topic
    if fact.is_bare or not fact.repeats_question or proposal.text.startswith(_QUOTES):
        return False
    return not bare_words(proposal.text) & (fact.topic | _PRONOUNS)


def _without_polarity(texts: Iterable[str]) -> set[str]:
    """Returns the words other than yes and no."""
    return {*texts} - _POLARITY_WORDS[True] - _POLARITY_WORDS[False]


def _polarity(text: str) -> bool | None:
    """Returns True if a text begins with yes, False if it begins with no, else None."""
    first_word = next(iter(words(text)), "")
    for polarity, polarity_words in _POLARITY_WORDS.items():
        if first_word in polarity_words:
            return polarity
    return None
