"""Dates, numbers and names in a text, in a form that does not depend on their notation.

`8 September 1956`, `08/09/1956` and `nineteen fifty-six` agree as dates.
"""

import re
import unicodedata
from calendar import month_abbr, month_name
from dataclasses import dataclass
from typing import NamedTuple

from text_to_num import alpha2digit

from meow_ray.models.text import STOP_WORDS, words, written_words


class Date(NamedTuple):
    """A date, of which some parts may be unknown."""

    year: int | None = None
    month: int | None = None
    day: int | None = None

    def agrees(self, other: "Date") -> bool:
        """Tells whether the dates share known parts, and all of these are equal."""
        shared = [
            (part, other_part)
            for part, other_part in zip(self, other, strict=True)
            if part is not None and other_part is not None
        ]
        return bool(shared) and all(part == other_part for part, other_part in shared)


_MONTHS = {
    name.casefold(): i for names in (month_name, month_abbr) for i, name in enumerate(names) if name
}
_MONTHS["sept"] = 9
_SMALLEST_NUMBER = 1.5
"""Smallest number that is read in words: `one` is more often a pronoun than a number."""
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
"""Patterns of dates, the most specific first; text that one matches is hidden from the others."""
_SPELLED_YEAR = re.compile(r"\b(1\d|20) (\d\d)\b")
"""Matches `19 56`, which is left of `nineteen fifty-six` after number words become digits."""
_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_FREE_NUMBER = re.compile(rf"(?<![^\W\d])(?<![^\W\d]-)(?<![\d.,]){_NUMBER.pattern}")
"""Matches a number outside words such as COVID-19."""
_PART = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d]+|.", re.DOTALL)
"""Matches a part of a value: a number, a word, or a single character between them."""
_DIGITS_OF_YEAR = 4
_SENTENCE_GAP = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Values:
    """The dates, numbers and names in a text."""

    dates: frozenset[frozenset[Date]] = frozenset()
    """Each date as the set of its readings: 05/06/1972 has two."""
    numbers: frozenset[float] = frozenset()
    names: frozenset[str] = frozenset()
    """Words with a capital letter inside a sentence, case folded."""

    @classmethod
    def of(cls, text: str, bare: bool = False) -> "Values":
        """Returns the values in a text; number words and names of months are read in English.

        Args:
            text: the text.
            bare: whether the text is no sentence, so that its first word may be a name.
        """
        text = unicodedata.normalize("NFC", text)
        rest = _with_digits(text)
        dates: set[frozenset[Date]] = set()
        for pattern in _DATES:
            for match in pattern.finditer(rest):
                dates.add(_readings(match.groupdict()))
            rest = pattern.sub(" ; ", rest)
        numbers = {float(match.replace(",", "")) for match in _NUMBER.findall(rest)}
        return cls(
            dates=frozenset(dates),
            numbers=frozenset(numbers),
            names=frozenset(_names(text, first=0 if bare else 1)),
        )

    def __sub__(self, known: "Values") -> "Values":
        return Values(
            dates=frozenset(date for date in self.dates if not _among(date, known.dates)),
            numbers=self.numbers - known.numbers,
            names=self.names - known.names,
        )

    def all_in(self, text: str) -> bool:
        """Tells whether a text has all these values.

        Dates are compared by their known parts, names without regard to case.
        """
        other = Values.of(text)
        has_dates = all(_among(date, other.dates) for date in self.dates)
        return has_dates and self.numbers <= other.numbers and self.names <= bare_words(text)

    def any_in(self, text: str) -> bool:
        """Tells whether a text has one of these values, compared as in `all_in`."""
        other = Values.of(text)
        has_date = any(_among(date, other.dates) for date in self.dates)
        return has_date or bool(self.numbers & other.numbers) or bool(self.names & bare_words(text))

    def __bool__(self) -> bool:
        return bool(self.dates or self.numbers or self.names)


def bare_words(text: str) -> set[str]:
    """Returns the words of a text without the English genitive."""
    return {word.removesuffix("'s") for word in words(text)}


class DateSpan(NamedTuple):
    """The place of a date in a text."""

    start: int
    end: int
    parts: dict[str, tuple[int, int]]
    """Start and end of `year`, `month` and `day`, as far as the date has them."""
    readings: frozenset[Date]


def date_spans(text: str) -> list[DateSpan]:
    """Returns the dates of a text in order; their months are numbers or English."""
    spans = []
    rest = text
    for pattern in _DATES:
        for match in pattern.finditer(rest):
            groups = {name: part for name, part in match.groupdict().items() if part}
            parts = {name: match.span(name) for name in groups if name != "mark"}
            spans.append(DateSpan(*match.span(), parts, _readings(match.groupdict())))
        rest = pattern.sub(lambda match: ";" * len(match[0]), rest)
    return sorted(spans)


def number_spans(text: str) -> list[tuple[int, int]]:
    """Returns start and end of the numbers in digits that are no dates and no part of a word."""
    for span in date_spans(text):
        text = text[: span.start] + ";" * (span.end - span.start) + text[span.end :]
    return [match.span() for match in _FREE_NUMBER.finditer(text)]


def month_number(name: str) -> int | None:
    """Returns the number of a month from its English name or abbreviation, else None."""
    return _MONTHS.get(name.casefold().rstrip("."))


def only_value_like(answer: str, text: str) -> str | None:
    """Returns the only value in a text that is written like an answer of numbers.

    For `16 October 2020` it is a date, for `19%` a percentage, for `1472` a number of four digits.
    The result is None if the answer has no digits, or if the text has no such value or several.
    """
    parts = [_pattern_of(part) for part in _PART.findall(answer.strip())]
    if not any(character.isdecimal() for character in answer):
        return None
    like_answer = re.compile(rf"(?<![\w.,]){''.join(parts)}(?![\w%]|[.,]\d)", re.IGNORECASE)
    values: set[str] = set(like_answer.findall(text))
    return values.pop() if len(values) == 1 else None


def _pattern_of(part: str) -> str:
    """Returns the pattern of a part of a value: other numbers, other months, or the same text."""
    if part.isdecimal():
        return rf"\d{{{len(part)}}}" if len(part) == _DIGITS_OF_YEAR else r"\d+"
    if part[0].isdecimal():
        return r"\d+(?:[.,]\d+)*"
    if part.casefold() in _MONTHS:
        return rf"(?:{'|'.join(_MONTHS)})"
    return re.escape(part)


def states_value(word: str) -> bool:
    """Tells whether a case folded word is a number or a month."""
    digits = alpha2digit(word, "en", threshold=_SMALLEST_NUMBER)
    return word in _MONTHS or any(character.isdecimal() for character in digits)


def _with_digits(text: str) -> str:
    """Returns a text with its numbers and number words in ASCII digits."""
    ascii_digits = "".join(
        str(unicodedata.decimal(character)) if character.isdecimal() else character
        for character in text
    )
    without_words = alpha2digit(ascii_digits, "en", threshold=_SMALLEST_NUMBER)
    return _SPELLED_YEAR.sub(r"\1\2", without_words)


def _readings(parts: dict[str, str | None]) -> frozenset[Date]:
    """Returns the dates that a match may mean: a day and a month in digits come in either order."""
    year = _integer(parts.get("year"))
    day = _integer(parts.get("day"))
    month = parts.get("month")
    if month is None:
        return frozenset({Date(year, None, day)})
    if not month.isdigit():
        return frozenset({Date(year, _MONTHS[month.casefold().rstrip(".")], day)})
    readings = {Date(year, int(month), day)}
    if parts.get("mark"):
        readings.add(Date(year, day, int(month)))
    possible = frozenset(date for date in readings if date.month is None or date.month <= 12)
    return possible or frozenset(readings)


def _integer(digits: str | None) -> int | None:
    return int(digits) if digits else None


def _among(date: frozenset[Date], dates: frozenset[frozenset[Date]]) -> bool:
    """Tells whether a reading of a date agrees with a reading of one of the dates."""
    return any(
        reading.agrees(other) for readings in dates for other in readings for reading in date
    )


def _names(text: str, first: int) -> set[str]:
    """Returns the words with a capital letter, from the word `first` of each sentence on."""
    names = set()
    for sentence in _SENTENCE_GAP.split(text):
        later_words = written_words(sentence)[first:]
        capitalised = [word for word in later_words if word[0].isupper()]
        names |= bare_words(" ".join(capitalised))
    return names - STOP_WORDS - {*_MONTHS}
