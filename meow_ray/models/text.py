"""Words of a text: which are new in an answer, and ROUGE."""

import unicodedata
from collections.abc import Container, Sequence
from functools import cache
from typing import Any, NamedTuple

import regex

STOP_WORDS = frozenset(
    """
    a about after all also an and any are as at be became because been before being but by can could did do does
    during each for from had has have he her hers him his how i if in into is it its itself known many may more most
    much my no not of on one only or other our out over own she so some such than that the their them then there
    these they this those through to under until up very was we were what when where which while who whom whose why
    will with would yes you your
    """.split()
)
"""English function words; they carry no fact."""

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[\w--{_UNSPACED}]"
_WORD = regex.compile(
    rf"{_UNSPACED}\p{{M}}*|{_LETTER}[{_LETTER}\p{{M}}]*(?:['’]{_LETTER}[{_LETTER}\p{{M}}]*)*",
    regex.V1,
)
"""In scripts that put no spaces between words, each letter is one."""
_HIRAGANA = regex.compile(r"\p{Hiragana}\p{M}*")
"""What Japanese writes its grammar with."""

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(NamedTuple):
    """One ROUGE variant of one pair."""

    precision: float
    recall: float
    f1: float


def words(text: str) -> list[str]:
    """Returns the words of a text, case folded, without punctuation."""
    return [_fold(word) for word in written_words(text)]


def written_words(text: str, folded: Container[str] | None = None) -> list[str]:
    """Returns the words of a text as they are written there; with `folded`, those whose folded form is in it, once."""
    found: list[str] = _WORD.findall(unicodedata.normalize("NFC", text))
    return (
        found
        if folded is None
        else list(dict.fromkeys(word for word in found if _fold(word) in folded))
    )


def _fold(word: str) -> str:
    return unicodedata.normalize("NFC", word.casefold()).replace("’", "'")


def novel_words(answer: str, question: str) -> list[str]:
    """Returns the words of an answer that carry what the question does not say.

    They are its words that are neither in the question nor function words, each once, in order. They are what
    a model must not say any more.
    """
    known = {*words(question), *STOP_WORDS}
    novel = list(dict.fromkeys(word for word in words(answer) if word not in known))
    return [word for word in novel if not _HIRAGANA.fullmatch(word)] or novel


def share_of(wanted: Sequence[str], text: str) -> float | None:
    """Returns the share of the wanted words that stand in a text; None if none is wanted."""
    if not wanted:
        return None
    said = set(words(text))
    return sum(word in said for word in wanted) / len(wanted)


def rouge(references: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Rouge]]:
    """Scores pairs with ROUGE 1, 2 and L on Porter stems, as package `rouge_score` defines them (Lin, 2004)."""
    results = _scorer().score_batch(list(references), list(predictions))
    return [{name: Rouge(*result[name]) for name in ROUGE_TYPES} for result in results]


@cache
def _scorer() -> Any:
    from rouge_score_rs.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
