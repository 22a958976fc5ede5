"""Dates, numbers and names in a text, so that two ways to write one value are seen as one."""

import re
import unicodedata
from calendar import month_abbr, month_name
from dataclasses import dataclass
from typing import NamedTuple

from text_to_num import alpha2digit

from meow_ray.models.text import STOP_WORDS, words, written_words


class Date(NamedTuple):
    """A date as far as it is given."""

    year: int | None = None
    month: int | None = None
    day: int | None = None

    def agrees(self, other: "Date") -> bool:
        """Tells whether both give something in common, and the same."""
        both = [(a, b) for a, b in zip(self, other, strict=True) if a is not None and b is not None]
        return bool(both) and all(a == b for a, b in both)


_MONTHS = {
    name.casefold(): i for names in (month_name, month_abbr) for i, name in enumerate(names) if name
}
_MONTHS["sept"] = 9
_ONE = 1.5
"""`one` is no number: it is a pronoun more often."""
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>[12]\d{3})"
_TEXT_DATES = (
    rf"\b{_DAY}(?: day)?(?: of)? {_MONTH}(?:,? (?:of )?{_YEAR})?\b",
    rf"\b{_MONTH} (?:the )?{_DAY}\b(?!,\d)(?:,? (?:of )?{_YEAR})?\b",
    rf"\b{_MONTH},?(?: of)? {_YEAR}\b",
    rf"\b(?:in|of|during|every|each|since) {_MONTH}\b",
    rf"\b{_YEAR}-(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}})\b",
    rf"\b(?P<day>\d{{1,2}})(?P<mark>[-/.])(?P<month>\d{{1,2}})(?P=mark){_YEAR}\b",
    rf"(?<![\d,.]){_YEAR}(?!\d|[.,]\d)",
)
_DATES = [re.compile(pattern, re.IGNORECASE) for pattern in _TEXT_DATES]
_SPELLED_YEAR = re.compile(r"\b(1\d|20) (\d\d)\b")
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


@dataclass(frozen=True)
class Values:
    """What a text states that can be compared."""

    dates: frozenset[frozenset[Date]] = frozenset()
    """Each date by all its readings: 05/06/1972 has two."""
    numbers: frozenset[float] = frozenset()
    names: frozenset[str] = frozenset()
    """Words with a capital letter inside a sentence, case folded."""

    @classmethod
    def of(cls, text: str) -> "Values":
        """Finds the values of a text; number words and the names of months are read in English."""
        text = unicodedata.normalize("NFC", text)
        digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
        rest = _SPELLED_YEAR.sub(r"\1\2", alpha2digit(digits, "en", threshold=_ONE))
        dates: set[frozenset[Date]] = set()
        for pattern in _DATES:
            for match in pattern.finditer(rest):
                dates.add(_readings(match.groupdict()))
            rest = pattern.sub(" ; ", rest)
        numbers = {float(match.replace(",", "")) for match in _NUMBER.findall(rest)}
        return cls(frozenset(dates), frozenset(numbers), frozenset(_names(text)))

    def __sub__(self, known: "Values") -> "Values":
        dates = frozenset(date for date in self.dates if not _among(date, known.dates))
        return Values(dates, self.numbers - known.numbers, self.names - known.names)

    def all_in(self, text: str) -> bool:
        """Tells whether a text has each of these values: dates as far as both give them, names in any case."""
        other = Values.of(text)
        dates = all(_among(date, other.dates) for date in self.dates)
        return dates and self.numbers <= other.numbers and self.names <= bare_words(text)

    def __bool__(self) -> bool:
        return bool(self.dates or self.numbers or self.names)


def bare_words(text: str) -> set[str]:
    """Returns the words of a text without the English genitive."""
    return {word.removesuffix("'s") for word in words(text)}


def states_value(word: str) -> bool:
    """Tells whether a case folded word is a number or a month."""
    return word in _MONTHS or any(c.isdecimal() for c in alpha2digit(word, "en", threshold=_ONE))


def _readings(parts: dict[str, str | None]) -> frozenset[Date]:
    """Returns the dates that a match may mean: a day and a month in digits come in either order."""
    year, day = (int(parts[name]) if parts.get(name) else None for name in ("year", "day"))  # type: ignore[arg-type]
    month = parts.get("month")
    if month is None or not month.isdigit():
        return frozenset(
            {Date(year, _MONTHS[month.casefold().rstrip(".")] if month else None, day)}
        )
    found = {Date(year, int(month), day)}
    if parts.get("mark"):
        found.add(Date(year, day, int(month)))
    return frozenset(date for date in found if date.month is None or date.month <= 12) or frozenset(
        found
    )


def _among(date: frozenset[Date], dates: frozenset[frozenset[Date]]) -> bool:
    return any(one.agrees(other) for readings in dates for other in readings for one in date)


def _names(text: str) -> set[str]:
    """Returns the words that begin with a capital letter where no sentence begins."""
    found = set()
    for sentence in _SENTENCE.split(text):
        found |= bare_words(
            " ".join(word for word in written_words(sentence)[1:] if word[0].isupper())
        )
    return found - STOP_WORDS - {*_MONTHS}


_SENTENCE = re.compile(r"(?<=[.!?])\s+")
