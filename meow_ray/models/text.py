"""Words of a text, the words that an answer adds to its question, and ROUGE between two texts."""

import unicodedata
from collections.abc import Container, Sequence
from functools import cache
from typing import Any, NamedTuple

import regex

STOP_WORDS = frozenset(
    """
    a about after all also an and any are as at be became because been before being but by can could
    did do does during each for from had has have he her hers him his how i if in into is it its
    itself known many may more most much my no not of on one only or other our out over own she so
    some such than that the their them then there these they this those through to under until up
    very was we were what when where which while who whom whose why will with would yes you your
    """.split()
)
"""English function words. They carry no fact."""

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_LETTER = rf"[\w--{_UNSPACED}]"
_WORD = regex.compile(
    rf"{_UNSPACED}\p{{M}}*|{_LETTER}[{_LETTER}\p{{M}}]*(?:['’]{_LETTER}[{_LETTER}\p{{M}}]*)*",
    regex.V1,
)
"""Matches a word; in scripts without spaces between words, each letter counts as a word."""
_HIRAGANA = regex.compile(r"\p{Hiragana}\p{M}*")
"""Matches a letter of the script in which Japanese writes its grammatical words."""

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


class Rouge(NamedTuple):
    """The score of a prediction against a reference under one ROUGE variant."""

    precision: float
    recall: float
    f1: float


def words(text: str) -> list[str]:
    """Returns the words of a text, case folded, without punctuation."""
    return [_fold(word) for word in written_words(text)]


def written_words(text: str) -> list[str]:
    """Returns the words of a text in their original case, without punctuation."""
    matches: list[str] = _WORD.findall(unicodedata.normalize("NFC", text))
    return matches


def written_forms(text: str, folded: Container[str]) -> list[str]:
    """Returns the spellings in a text of words that are given case folded, each spelling once."""
    matching = [word for word in written_words(text) if _fold(word) in folded]
    return list(dict.fromkeys(matching))


def _fold(word: str) -> str:
    return unicodedata.normalize("NFC", word.casefold()).replace("’", "'")


def novel_words(answer: str, question: str) -> list[str]:
    """Returns the words that an answer adds to its question, each once, in order.

    These are the words of the answer that are neither in the question nor function words. They
    carry the fact, so a model that has forgotten it no longer generates them.
    """
    ignored = {*words(question), *STOP_WORDS}
    novel = list(dict.fromkeys(word for word in words(answer) if word not in ignored))
    without_grammar = [word for word in novel if not _HIRAGANA.fullmatch(word)]
    return without_grammar or novel


def share_of(wanted: Sequence[str], text: str) -> float | None:
    """Returns the share of the wanted words that occur in a text; None if no word is wanted."""
    if not wanted:
        return None
    present = set(words(text))
    return sum(word in present for word in wanted) / len(wanted)


def rouge(references: Sequence[str], predictions: Sequence[str]) -> list[dict[str, Rouge]]:
    """Scores pairs of reference and prediction with ROUGE-1, ROUGE-2 and ROUGE-L (Lin, 2004).

    Words are compared by their Porter stems, as in the package `rouge_score`.
    """
    results = _scorer().score_batch(list(references), list(predictions))
    return [{name: Rouge(*result[name]) for name in ROUGE_TYPES} for result in results]


@cache
def _scorer() -> Any:
    from rouge_score_rs.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
