"""Replaces the entities of a question, in the question and in an answer, by others of their form.

`Where was Ilse Vantrooy born?` becomes `Where was Amber Collins born?`, and an answer that names
`Vantrooy` then names `Collins`. Values of the answer that the question does not state stay.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import regex

from meow_ray.stages.invert.values import number_spans
from meow_ray.stages.neighbours.dates import DateShift
from meow_ray.stages.neighbours.entities import (
    Name,
    is_one_word_script,
    names_in,
    shared_entity,
    words_of,
)
from meow_ray.stages.neighbours.names import Names, is_first_name, is_kana

TRIES = 100
"""The number of invented texts that are tried for one entity."""

Accept = Callable[[str], bool]
"""Tells whether an invented text may replace an entity."""

_INFLECTED = regex.compile(r"[\p{Cyrillic}\p{Greek}]+")
_ENDING = 3
"""Letters at the end of a name in these scripts that its case may change."""
_STEM = 3
"""The fewest letters that remain of such a name."""
_ORDINAL = regex.compile(r"(?<=\d)(?:st|nd|rd|th)\b")


@dataclass(frozen=True)
class Swap:
    """A question and an answer with other entities."""

    question: str
    answer: str
    entities: tuple[str, ...]
    """The invented texts: words of names, dates and numbers."""


def accept_all(text: str) -> bool:
    """Accepts each invented text."""
    return True


def swap(
    question: str, answer: str, rng: random.Random, accept: Accept = accept_all
) -> Swap | None:
    """Replaces each name, date and number of a question, also where the answer repeats it.

    A part of a name is replaced by the same part of the invented name. Dates and numbers keep
    their notation.

    Args:
        question: the question.
        answer: the answer.
        rng: the source of randomness.
        accept: refuses invented texts.

    Returns:
        The new texts; None if the question has no entity, or if no invented text is accepted.
    """
    replacing = _Replacing(question, answer, rng, accept)
    try:
        replacing.plan()
    except _NothingFitsError:
        return None
    if not replacing.entities:
        return None
    return Swap(replacing.apply(question), replacing.apply(answer), tuple(replacing.entities))


class _NothingFitsError(Exception):
    """No invented text can replace an entity."""


@dataclass
class _Replacing:
    """The plan of a swap: what replaces which words, dates and numbers."""

    question: str
    answer: str
    rng: random.Random
    accept: Accept
    entities: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    """The invented word by the word that it replaces."""
    texts: dict[str, str] = field(default_factory=dict)
    """The same for texts without capital letters."""
    numbers: dict[float, str] = field(default_factory=dict)
    """The invented number, without separators, by the value that it replaces."""
    dates: DateShift | None = None

    # --- planning -------------------------------------------------------------------------------

    def plan(self) -> None:
        """Invents a text for each entity of the question."""
        names = names_in(self.question, self.answer)
        # `Kuwait` before `Kuwait City`, so that both keep their form
        for name in sorted(names, key=lambda name: (name.kind != "place", len(name.words))):
            self._plan_name(name)
        entity = None if names else shared_entity(self.question, self.answer)
        if entity is not None:
            self._plan_text(entity)
        self._plan_dates()
        for start, end in number_spans(self.question):
            self._plan_number(self.question[start:end])

    def _plan_name(self, name: Name) -> None:
        new_words = [word for word in name.words if word not in self.words]
        if not new_words:
            return
        taken = {word.text for word in words_of(f"{self.question} {self.answer}")}
        taken |= set(self.words.values())
        for _ in range(TRIES):
            source = Names(new_words[0], self.rng)
            invented = [
                _in_case_of(old, new)
                for old, new in zip(new_words, _invent(source, name, new_words), strict=True)
            ]
            is_new = taken.isdisjoint(invented) and len(set(invented)) == len(invented)
            if is_new and all(map(self.accept, invented)):
                self.words |= dict(zip(new_words, invented, strict=True))
                self.entities += invented
                return
        raise _NothingFitsError

    def _plan_text(self, entity: str) -> None:
        whole = f"{self.question} {self.answer}"
        for _ in range(TRIES):
            invented = _invent_text(Names(whole, self.rng), entity)
            if invented not in whole and self.accept(invented):
                self.texts[entity] = invented
                self.entities.append(invented)
                return
        raise _NothingFitsError

    def _plan_dates(self) -> None:
        for _ in range(TRIES):
            self.dates = DateShift.of(self.question, self.rng)
            invented = self.dates.invented(self.question)
            if all(map(self.accept, invented)):
                self.entities += invented
                return
        raise _NothingFitsError

    def _plan_number(self, text: str) -> None:
        value = _value(text)
        if value in self.numbers:
            return
        for _ in range(TRIES):
            invented = _other_number(text, self.rng)
            if _value(invented) != value and self.accept(invented):
                self.numbers[value] = invented
                self.entities.append(invented)
                return
        raise _NothingFitsError

    # --- applying -------------------------------------------------------------------------------

    def apply(self, text: str) -> str:
        """Returns a text with the invented words, dates and numbers."""
        assert self.dates is not None
        # numbers and dates first: an invented name has no digits
        text = self.dates.apply(self._apply_numbers(text))
        text = self._apply_words(text)
        for entity, invented in self.texts.items():
            text = _replace_text(text, entity, invented)
        return text

    def _apply_numbers(self, text: str) -> str:
        for start, end in reversed(number_spans(text)):
            invented = self.numbers.get(_value(text[start:end]))
            if invented is not None:
                rest = text[end:]
                ordinal = _ORDINAL.match(text, end)
                if ordinal:
                    rest = _ordinal_ending(invented) + text[ordinal.end() :]
                text = text[:start] + _in_notation_of(text[start:end], invented) + rest
        return text

    def _apply_words(self, text: str) -> str:
        for word in reversed(words_of(text)):
            if word.is_capitalised:
                invented = self._new_word(word.text)
                text = text[: word.start] + invented + text[word.end :]
        return text

    def _new_word(self, word: str) -> str:
        if word in self.words:
            return self.words[word]
        if "-" in word:
            return "-".join(self.words.get(part, part) for part in word.split("-"))
        return next((new for old, new in self.words.items() if _is_inflected(word, old)), word)


# --- names --------------------------------------------------------------------------------------


def _invent(source: Names, name: Name, words: Sequence[str]) -> list[str]:
    """Returns one invented word per word of a name; an initial becomes an initial."""
    length = len(words)
    if name.kind == "acronym":
        return [source.acronym(len(word)) for word in words]
    if name.kind == "title":
        return source.title(length)
    if name.kind == "place":
        return source.place(length)
    if length == 1 and (is_first_name(words[0]) or words[0] == name.words[0] != name.words[-1]):
        invented = [source.first_name()]
    else:
        invented = source.person(length)
    return [new[0] if len(old) == 1 else new for old, new in zip(words, invented, strict=True)]


def _in_case_of(old: str, new: str) -> str:
    """Returns a word in capital letters if another is."""
    return new.upper() if len(old) > 1 and old.isupper() else new


def _is_inflected(word: str, name: str) -> bool:
    """Tells whether a word is a name in another case, in scripts whose names have cases."""
    if not (_INFLECTED.fullmatch(word) and _INFLECTED.fullmatch(name)):
        return False
    stem = name[: max(_STEM, len(name) - _ENDING)]
    return len(name) > _STEM and word.startswith(stem) and len(word) <= len(name) + _ENDING


def _invent_text(source: Names, entity: str) -> str:
    """Returns an invented name in a script without capital letters."""
    if is_kana(entity):
        return source.kana_name()
    if is_one_word_script(entity):
        separator = " " if " " in entity else ""
        return separator.join([source.last_name(), source.first_name()])
    return " ".join(source.person(len(entity.split())))


def _replace_text(text: str, entity: str, invented: str) -> str:
    """Replaces an entity; in scripts with spaces, only whole words."""
    if is_one_word_script(entity):
        return text.replace(entity, invented)
    pattern = regex.compile(rf"(?<![\p{{L}}\p{{M}}]){regex.escape(entity)}(?![\p{{L}}\p{{M}}])")
    return str(pattern.sub(lambda _: invented, text))


# --- numbers ------------------------------------------------------------------------------------


def _value(number: str) -> float:
    return float(number.replace(",", ""))


def _other_number(text: str, rng: random.Random) -> str:
    """Returns a random number of similar size, with as many digits before and after the point."""
    whole, point, decimals = text.replace(",", "").partition(".")
    smallest, largest = 1, 10 ** len(whole) - 1
    if len(whole) > 1:
        value = int(whole)
        smallest = min(max(10 ** (len(whole) - 1), value // 2), largest)
        largest = max(smallest, min(largest, 2 * value))
    invented = str(rng.randint(smallest, largest))
    return invented + point + "".join(str(rng.randint(0, 9)) for _ in decimals)


def _in_notation_of(old: str, invented: str) -> str:
    """Returns a number with separators of thousands if another has them."""
    if "," not in old:
        return invented
    whole, point, decimals = invented.partition(".")
    return f"{int(whole):,}{point}{decimals}"


_ENDINGS: Mapping[int, str] = {1: "st", 2: "nd", 3: "rd"}


def _ordinal_ending(number: str) -> str:
    """Returns the English ending of an ordinal number."""
    is_teen = number[-2:-1] == "1"
    return "th" if is_teen else _ENDINGS.get(int(number[-1]), "th")
