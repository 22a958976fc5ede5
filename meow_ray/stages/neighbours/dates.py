"""Moves the dates of a question to others, each in its own notation."""

import random
from calendar import month_abbr, month_name
from collections.abc import Iterator
from dataclasses import dataclass

import regex

from meow_ray.stages.invert.values import Date, DateSpan, date_spans, month_number

MOST_YEARS = 30
"""The largest distance between a year and the one that replaces it."""
_LATEST_YEAR = 2025
"""Dates up to this year are not moved beyond it."""
_MONTHS = 12
_LAST_DAY = 28
_ORDINAL = regex.compile(r"\G(?:st|nd|rd|th)\b", regex.IGNORECASE)


@dataclass(frozen=True)
class DateShift:
    """A mapping of the dates of a question to others.

    All years move by the same number, so that the time between two dates stays. Numbers up to 12
    map to numbers up to 12, whether they are a day or a month.
    """

    dates: frozenset[Date]
    """The readings of the dates in the question."""
    years: int
    months: tuple[int, ...]
    """The number that replaces each number from 1 to 12."""
    days: int
    """The distance between a day after the 12th and the one that replaces it."""

    @classmethod
    def of(cls, question: str, rng: random.Random) -> "DateShift":
        """Returns a random mapping for the dates of a question."""
        spans = date_spans(question)
        dates = frozenset(reading for span in spans for reading in span.readings)
        latest = max((date.year for date in dates if date.year), default=_LATEST_YEAR)
        years = rng.randint(1, MOST_YEARS)
        forward = rng.random() < 0.5 and not latest <= _LATEST_YEAR < latest + years
        turn = rng.randint(1, _MONTHS - 1)
        months = tuple((month + turn) % _MONTHS + 1 for month in range(_MONTHS))
        days = rng.randint(1, _LAST_DAY - _MONTHS - 1)
        return cls(dates, years if forward else -years, months, days)

    def invented(self, question: str) -> list[str]:
        """Returns the texts that replace the dates of the question."""
        return [self._written(question, span) for span in date_spans(question)]

    def apply(self, text: str) -> str:
        """Returns a text with other dates where it has dates of the question."""
        for span in reversed(date_spans(text)):
            if any(date.agrees(other) for date in span.readings for other in self.dates):
                text = text[: span.start] + self._written(text, span) + text[span.end :]
        return text

    def _written(self, text: str, span: DateSpan) -> str:
        """Returns a date of a text with its parts moved, in the notation that it has."""
        written = text[: span.end]
        ordered = sorted(span.parts.items(), key=lambda part: part[1], reverse=True)
        for name, (start, end) in ordered:
            old = text[start:end]
            ending = _ORDINAL.match(written, end) if name == "day" else None
            rest = written[ending.end() if ending else end :]
            new = "".join(self._part(name, old, has_ending=ending is not None))
            written = written[:start] + new + rest
        return written[span.start :]

    def _part(self, name: str, old: str, *, has_ending: bool) -> Iterator[str]:
        """Yields what replaces a part of a date, and the ending of an ordinal if it had one."""
        if name == "year":
            yield str(self._year(int(old)))
            return
        number = month_number(old)
        if number is not None:
            is_whole = old.casefold() == month_name[number].casefold()
            names = month_name if is_whole else month_abbr
            yield names[self.months[number - 1]]
            return
        moved = self._small(int(old))
        yield f"{moved:0{len(old)}}" if old.startswith("0") else str(moved)
        if has_ending:
            yield _ENDINGS.get(moved, "th")

    def _year(self, year: int) -> int:
        return year + self.years if year + self.years >= 1000 else year - self.years

    def _small(self, number: int) -> int:
        """Returns what replaces a day or a month in digits."""
        if number <= _MONTHS:
            return self.months[number - 1]
        later_days = _LAST_DAY - _MONTHS
        return (number - _MONTHS - 1 + self.days) % later_days + _MONTHS + 1


_ENDINGS = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}
