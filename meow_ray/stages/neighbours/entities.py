"""The entities that a question names: words with a capital letter, or what the answer repeats.

Dates and numbers are those of `invert.values`. In scripts without capital letters, the entity is
the longest text that question and answer share.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

import regex

from meow_ray.models.text import STOP_WORDS, is_unspaced
from meow_ray.stages.invert.values import month_number
from meow_ray.stages.neighbours.names import is_known_name

NameKind = Literal["person", "place", "title", "acronym"]

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}\p{Nd}]*(?:[-'’]\p{L}[\p{L}\p{M}\p{Nd}]*)*")
_GENITIVE = re.compile(r"['’]s$", re.IGNORECASE)
_SENTENCE_BREAK = re.compile(r"[.!?。！？…:]['\"”’)\]]*\s*['\"“‘(\[]*$")
_OPENING = "'\"“‘«„(["
_QUOTES = frozenset("'\"“‘«„")
_HONORIFICS = frozenset("dr mr mrs ms prof sir st jr sr".split())
"""Abbreviations next to names, whose dots end no sentence."""
_PLACE_WORDS = frozenset("in from at near to".split())
"""English words before the name of a place."""
_GAP = re.compile(r" |\. ?")
"""Matches what separates two words of a name; a dot follows an initial."""


@dataclass(frozen=True)
class Word:
    """A word of a text, without the English genitive, and its place."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The position after the word."""
        return self.start + len(self.text)

    @property
    def is_capitalised(self) -> bool:
        """Whether it begins with a capital letter."""
        return self.text[0].isupper()


@dataclass(frozen=True)
class Name:
    """A name in a text: its words, and what it seems to name."""

    words: tuple[str, ...]
    kind: NameKind


def words_of(text: str) -> list[Word]:
    """Returns the words of a text in order, with their places."""
    return [
        Word(_GENITIVE.sub("", match[0]) or match[0], match.start())
        for match in _WORD.finditer(text)
    ]


# --- scripts with capital letters ---------------------------------------------------------------


def names_in(question: str, answer: str) -> list[Name]:
    """Returns the names in a question: runs of capitalised words.

    The first word of a sentence belongs to a name only if the answer, or another place of the
    question, has it with a capital letter, too, or if it is a common name.
    """
    known = _capitalised_elsewhere(question, answer)
    names: list[list[Word]] = []
    last: Word | None = None
    for word in words_of(question):
        if not _is_name_word(word, question, known):
            continue
        is_next = last is not None and _GAP.fullmatch(question[last.end : word.start])
        if is_next:
            names[-1].append(word)
        else:
            names.append([word])
        last = word
    return [Name(tuple(w.text for w in run), _kind(run, question)) for run in names]


def _capitalised_elsewhere(question: str, answer: str) -> set[str]:
    """Returns the capitalised words of the answer, and those inside sentences of the question."""
    in_answer = {word.text for word in words_of(answer) if word.is_capitalised}
    inside = {
        word.text
        for word in words_of(question)
        if word.is_capitalised and not _begins_sentence(word, question)
    }
    return in_answer | inside


def _is_name_word(word: Word, text: str, known: set[str]) -> bool:
    folded = word.text.casefold()
    if not word.is_capitalised or folded in STOP_WORDS or folded in _HONORIFICS:
        return False
    if month_number(word.text) is not None:
        return False
    if not _begins_sentence(word, text):
        return True
    return word.text in known or is_known_name(word.text)


def _begins_sentence(word: Word, text: str) -> bool:
    """Tells whether a word is the first of a sentence; a dot after an initial ends none."""
    before = text[: word.start]
    if not before.strip(_OPENING + " "):
        return True
    if _SENTENCE_BREAK.search(before) is None:
        return False
    previous = words_of(before)[-1:]
    is_short = bool(previous) and len(previous[0].text) == 1 and previous[0].is_capitalised
    is_honorific = bool(previous) and previous[0].text.casefold() in _HONORIFICS
    return not (before.rstrip().endswith(".") and (is_short or is_honorific))


def _kind(run: Sequence[Word], text: str) -> NameKind:
    """Guesses from the words around a name what it names."""
    before = text[: run[0].start]
    previous = words_of(before)
    word_before = previous[-1].text if previous else ""
    if len(run) == 1 and len(run[0].text) > 1 and run[0].text.isupper():
        return "acronym"
    if before[-1:] in _QUOTES or (word_before == "The" and len(previous) > 1):
        return "title"
    after_place = before.rstrip().endswith(",") and word_before[:1].isupper()
    if word_before.casefold() in _PLACE_WORDS or after_place:
        return "place"
    return "person"


# --- scripts without capital letters ------------------------------------------------------------

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}]"
_SPACED = r"[\p{Arabic}\p{Hebrew}\p{Devanagari}\p{M}]"
_PARTICLE = r"(?:은|는|이|가|을|를|의|에|에서|와|과|도|로|으로)(?!\p{Hangul})"
"""Matches a particle at the end of a Korean word."""
_UNIT = regex.compile(
    rf"{_UNSPACED}\p{{M}}*|\p{{Hangul}}{{2,}}?(?={_PARTICLE})|\p{{Hangul}}+|{_SPACED}+|.",
    regex.DOTALL,
)
"""Matches a letter of a script without spaces, a word of others, or another character."""
_CASELESS = regex.compile(rf"(?:{_UNSPACED}|\p{{Hangul}}|{_SPACED})+")
_LETTER = regex.compile(r"[\p{L}ー]")
_INNER = frozenset(" ·・")
"""Characters inside a name of several parts."""
_FUNCTION_WORDS = frozenset(
    """
    은 는 이 가 을 를 의 에 에서 와 과 도 로 으로 في من ما ماذا هو هي على إلى عن هل أين متى كان كانت
    ولد ولدت و של את הוא היא מה מי איפה היכן מתי על עם נולד נולדה היה הייתה का की के को में है हैं ने से पर
    और क्या कौन कब कहाँ था थी थे हुआ हुई जन्म
    """.split()
)
"""Function words, particles, and words for being born, of which no name is made."""
_EDGES = "|".join(
    """
    的 了 是 在 和 与 于 有 什么 哪里 谁 何 吗 呢 出生 の は が を に で と も へ や か た て し
    ます 生まれ เกิด ที่ ใน เป็น คือ อยู่ ของ และ
    """.split()
)
_EDGE = regex.compile(rf"^(?:{_EDGES}|[ ·・])+|(?:{_EDGES}|[ ·・])+$")
"""Matches the same at the edges of a text in scripts without spaces."""
_FEWEST_LETTERS = 2


def shared_entity(question: str, answer: str) -> str | None:
    """Returns the longest text without capital letters that question and answer share.

    It has whole words in scripts with spaces, at least two letters, and no function words. The
    result is None if there is no such text.
    """
    asked = _name_units(question, separator="?")
    told = _name_units(answer, separator="!")
    matcher = SequenceMatcher(None, asked, told, autojunk=False)
    runs = [
        "".join(asked[block.a : block.a + block.size]) for block in matcher.get_matching_blocks()
    ]
    texts = [str(_EDGE.sub("", run)) for run in runs]
    texts = [text for text in texts if len(_LETTER.findall(text)) >= _FEWEST_LETTERS]
    return max(texts, key=len, default=None)


def _name_units(text: str, separator: str) -> list[str]:
    """Returns the units of a text; the separator replaces those of which no name is made."""
    return [
        unit
        if (_CASELESS.fullmatch(unit) or unit in _INNER) and unit not in _FUNCTION_WORDS
        else separator
        for unit in _UNIT.findall(text)
    ]


def is_one_word_script(text: str) -> bool:
    """Tells whether a text begins in a script without spaces between words, or in Hangul."""
    return is_unspaced(text[0]) or regex.match(r"\p{Hangul}", text) is not None
