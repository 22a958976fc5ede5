"""Invented names from the library Faker, in the script of the names that they replace."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import regex
from faker import Faker

_LOCALES = {
    "Cyrillic": "ru_RU",
    "Greek": "el_GR",
    "Hiragana": "ja_JP",
    "Katakana": "ja_JP",
    "Hangul": "ko_KR",
    "Han": "zh_CN",
    "Arabic": "ar_AA",
    "Hebrew": "he_IL",
    "Devanagari": "hi_IN",
    "Thai": "th_TH",
}
_DEFAULT_LOCALE = "en_US"
_SCRIPTS = {name: regex.compile(rf"\p{{{name}}}") for name in _LOCALES}
_KANA_ONLY = regex.compile(r"[\p{Hiragana}\p{Katakana}ー ・]+")
_PLAIN_WORDS = regex.compile(r"\p{L}[\p{L}\p{M}'’-]*(?: \p{L}[\p{L}\p{M}'’-]*)*")
_TRIES = 20


class Names:
    """A source of invented names; the same seed gives the same names.

    Args:
        text: a text in the script of the names.
        rng: the source of randomness.
    """

    def __init__(self, text: str, rng: random.Random) -> None:
        self._faker = _faker(locale_of(text))
        self._faker.seed_instance(rng.getrandbits(64))
        self._gender = rng.choice(("male", "female"))

    def person(self, length: int) -> list[str]:
        """Returns the words of a person's name: first names, and a last name at the end."""
        return [*(self.first_name() for _ in range(length - 1)), self.last_name()]

    def first_name(self) -> str:
        """Returns a first name of one word."""
        return self._one_word(f"first_name_{self._gender}")

    def last_name(self) -> str:
        """Returns a last name of one word."""
        return self._one_word(f"last_name_{self._gender}")

    def kana_name(self) -> str:
        """Returns a Japanese first name in Katakana."""
        return str(self._faker.first_kana_name())

    def place(self, length: int) -> list[str]:
        """Returns the words of a city's name, or last names if no city has so many words."""
        for _ in range(_TRIES):
            city = self._faker.city()
            if _PLAIN_WORDS.fullmatch(city) and len(city.split()) == length:
                return list(city.split())
        return [self.last_name() for _ in range(length)]

    def title(self, length: int) -> list[str]:
        """Returns capitalised common words."""
        return [str(self._faker.word()).capitalize() for _ in range(length)]

    def acronym(self, length: int) -> str:
        """Returns capital letters."""
        return str(self._faker.lexify("?" * length, letters="ABCDEFGHIKLMNOPRSTUVW"))

    def _one_word(self, method: str) -> str:
        for _ in range(_TRIES):
            name = str(getattr(self._faker, method)())
            if " " not in name:
                return name
        return name.split()[0]


def locale_of(text: str) -> str:
    """Returns the locale of Faker for a text: that of the first script that it has a letter of."""
    for script, pattern in _SCRIPTS.items():
        if pattern.search(text):
            return _LOCALES[script]
    return _DEFAULT_LOCALE


def is_kana(text: str) -> bool:
    """Tells whether a text is Japanese in Kana only."""
    return _KANA_ONLY.fullmatch(text) is not None


def is_known_name(word: str) -> bool:
    """Tells whether a word is a first or last name in the lists of its script's locale."""
    return word in _known_names(locale_of(word))


def is_first_name(word: str) -> bool:
    """Tells whether a word is a first name in the list of its script's locale."""
    return word in _names_of(locale_of(word), "first_names")


@cache
def _known_names(locale: str) -> frozenset[str]:
    return _names_of(locale, "first_names") | _names_of(locale, "last_names")


@cache
def _names_of(locale: str, kind: str) -> frozenset[str]:
    """Returns the names in a list of a locale; the lists of some are split by gender."""
    names: set[str] = set()
    for provider in _faker(locale).get_providers():
        for name in (kind, f"{kind}_male", f"{kind}_female"):
            listed: Sequence[Any] = list(getattr(provider, name, ()))
            names.update(str(entry) for entry in listed)
    return frozenset(names)


@cache
def _faker(locale: str) -> Faker:
    return Faker(locale)
