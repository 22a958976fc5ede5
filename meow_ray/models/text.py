"""Words of a text, the words that an answer adds to its question, and ROUGE between two texts."""

import re
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

TOKENIZER = "rouge_score+words-1"
"""The name of ROUGE's tokenizer, for manifests: that of `rouge_score`, and words of all scripts."""

_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_MARK = r"[\p{M}--[\p{Variation_Selector}\p{Me}]]"
_LETTER = rf"[[\p{{L}}\p{{Nd}}\p{{Nl}}_{_MARK}]--{_UNSPACED}]"
_INNER = rf"[{_LETTER}\p{{Join_Control}}]"
_WORD = regex.compile(
    rf"{_UNSPACED}{_MARK}*|{_LETTER}{_INNER}*(?:['’]{_LETTER}{_INNER}*)*", regex.V1
)
"""Matches a word; in scripts without spaces between words, each letter counts as a word."""
_UNSPACED_LETTER = regex.compile(rf"{_UNSPACED}{_MARK}*", regex.V1)
_SYMBOL = regex.compile(r"(?=[[\p{S}\p{No}]--\p{ASCII}])\X", regex.V1)
"""Matches a symbol with all that modifies it, such as an emoji with its skin colour."""
_ROUGE_BREAK = re.compile(r"['’_]")
"""Matches where ROUGE breaks a word in two."""
_TOKEN_STARTS = re.compile(r"[A-Za-z0-9]+|[^\x00-\x7f]")
"""Matches what can hold a token of ROUGE: letters and digits in ASCII, or any other character."""
_UNSETTLED = 4
"""Number of characters at the end of a text that a tokenizer may decode otherwise later: one more
than those of ` n'`, which follow a word that becomes another one in front of `t`."""
_HIRAGANA = regex.compile(r"\p{Hiragana}\p{M}*")
"""Matches a letter of the script in which Japanese writes its grammatical words."""

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_Pair = tuple[str, str]
"""A reference and a prediction."""


class Rouge(NamedTuple):
    """The score of a prediction against a reference under one ROUGE variant."""

    precision: float
    recall: float
    f1: float


def words(text: str) -> list[str]:
    """Returns the words of a text, case folded, without punctuation."""
    return [_fold(word) for word in written_words(text)]


def written_words(text: str) -> list[str]:
    """Returns the words of a text in their original case, without punctuation.

    The words of a text that has symbols only, such as emoji, are its symbols.
    """
    text = unicodedata.normalize("NFC", text)
    matches: list[str] = _WORD.findall(text) or _SYMBOL.findall(text)
    return matches


def word_spans(text: str) -> list[tuple[str, int, int]]:
    """Returns the words of a text, case folded, each with its start and end in the text."""
    matches = list(_WORD.finditer(text)) or list(_SYMBOL.finditer(text))
    return [(_fold(match[0]), match.start(), match.end()) for match in matches]


def is_unspaced(word: str) -> bool:
    """Tells whether a word is a letter of a script without spaces between words."""
    return _UNSPACED_LETTER.fullmatch(word) is not None


def spaced(text: str) -> str:
    """Returns a text with spaces around each letter of a script without spaces between words."""
    return str(_UNSPACED_LETTER.sub(r" \g<0> ", text))


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

    Words in ASCII letters are those of the package `rouge_score`, compared by their Porter stems.
    All other words are compared as a whole; see `rouge_tokens`.
    """
    pairs = list(zip(references, predictions, strict=True))
    in_ascii = [pair for pair in pairs if _is_ascii(pair)]
    others = [pair for pair in pairs if not _is_ascii(pair)]
    scores = _scores_by_pair(_ascii_scorer(), in_ascii) | _scores_by_pair(_scorer(), others)
    return [scores[pair] for pair in pairs]


def _is_ascii(pair: _Pair) -> bool:
    return all(text.isascii() for text in pair)


def _scores_by_pair(scorer: Any, pairs: Sequence[_Pair]) -> dict[_Pair, dict[str, Rouge]]:
    references = [reference for reference, _ in pairs]
    predictions = [prediction for _, prediction in pairs]
    results = scorer.score_batch(references, predictions)
    return {
        pair: {name: Rouge(*result[name]) for name in ROUGE_TYPES}
        for pair, result in zip(pairs, results, strict=True)
    }


def rouge_tokens(text: str) -> list[str]:
    """Returns the tokens of a text that ROUGE compares.

    A word in ASCII letters and digits is what `rouge_score` makes of it. Of any other word,
    `rouge_score` keeps the fragments in ASCII (`d` of `Łódź`, nothing of `мост`). Here the word
    gives as many tokens as it has fragments, but at least one, and each token is the whole word.
    So scores of English text with foreign names stay those of `rouge_score`, and other words are
    equal only as a whole.
    """
    tokens: list[str] = []
    for word in written_words(text):
        for part in _ROUGE_BREAK.split(word):
            fragments = _ascii_tokenizer().tokenize(part)
            if part.isascii():
                tokens += fragments
            else:
                tokens += [_fold(part)] * max(1, len(fragments))
    return tokens


def settled(text: str) -> tuple[str, str]:
    """Splits a text after the last word that stays as it is, whatever is added to the text.

    The words at the end are not settled. The last one may go on, and a tokenizer may still rewrite
    the last characters when it decodes more tokens: it completes a character of several bytes, or
    joins `ca n't` to `can't`. The ROUGE tokens of any longer text begin with those of the first
    part.
    """
    text = unicodedata.normalize("NFC", text)
    ends = [match.end() for match in _WORD.finditer(text)]
    end = max((end for end in ends if end <= len(text) - _UNSETTLED), default=0)
    return text[:end], text[end:]


def most_rouge_tokens(text: str) -> int:
    """Returns a number of ROUGE tokens that a part of a text cannot exceed.

    The ROUGE tokens of texts that are joined are at most as many as the sum of these numbers.
    """
    return len(_TOKEN_STARTS.findall(text))


class _Tokenizer:
    """`rouge_tokens` in the form that a scorer takes."""

    def tokenize(self, text: str) -> list[str]:
        return rouge_tokens(text)


@cache
def _ascii_tokenizer() -> Any:
    from rouge_score_rs.tokenizers import DefaultTokenizer

    return DefaultTokenizer(use_stemmer=True)


@cache
def _ascii_scorer() -> Any:
    from rouge_score_rs.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), tokenizer=_ascii_tokenizer())


@cache
def _scorer() -> Any:
    from rouge_score_rs.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE_TYPES), tokenizer=_Tokenizer())
