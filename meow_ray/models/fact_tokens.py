"""The tokens of an answer that carry its fact: those of its novel words.

A model that has forgotten a fact may still know the form of the answer, such as `The author was
born in`. Only the tokens of words that the answer adds to its question tell whether the fact is
known.
"""

from typing import Any

from meow_ray.models.prompts import Prompter
from meow_ray.models.text import novel_words, word_spans

Span = tuple[int, int]
"""Start and end in a text, in characters."""

_INCOMPLETE = "\ufffd"
"""What tokenizers decode tokens to that end within a character."""


def novel_token_mask(prompter: Prompter, question: str, answer: str) -> list[bool]:
    """Returns which tokens of `prompter.encode_answer(answer)` carry the fact, `[answer]`.

    These are the tokens that have a letter of a novel word; see `novel_words`. They are all tokens
    of an answer without novel words. The end token carries no fact.

    Raises:
        MeowError: the answer holds a control token that the tokenizer cannot read as text.
    """
    tokens, spans = prompter.control.encode_with_spans(answer)
    if spans is None:
        spans = decoded_spans(prompter.tokenizer, tokens, answer)
    novel = set(novel_words(answer, question))
    wanted = [(start, end) for word, start, end in word_spans(answer) if word in novel]
    mask = [any(_overlap(span, word) for word in wanted) for span in spans]
    if not any(mask):
        mask = [True] * len(tokens)
    return [*mask, False]


def _overlap(span: Span, other: Span) -> bool:
    return max(span[0], other[0]) < min(span[1], other[1])


def decoded_spans(tokenizer: Any, tokens: list[int], text: str) -> list[Span]:
    """Returns start and end of each token in a text, for a tokenizer that does not tell them.

    It decodes the first token, the first two, and so on, and counts the letters that each token
    adds. Spaces do not count, because tokenizers add and remove some. A letter of several tokens
    belongs to each of them.
    """
    places = [place for place, letter in enumerate(text) if not letter.isspace()]
    counts = [0]  # of the complete letters in the first tokens
    ends_within = [False]  # whether a letter is incomplete there
    for number in range(1, len(tokens) + 1):
        decoded = tokenizer.decode(tokens[:number], clean_up_tokenization_spaces=False)
        complete = decoded.rstrip(_INCOMPLETE)
        letters = sum(not letter.isspace() for letter in complete)
        counts.append(max(counts[-1], letters))
        ends_within.append(complete != decoded)
    return [
        _span(places[counts[number - 1] : _end(number, counts, ends_within)])
        for number in range(1, len(tokens) + 1)
    ]


def _end(number: int, counts: list[int], ends_within: list[bool]) -> int:
    """Returns the number of letters up to the end of the last one that a token belongs to.

    If the token ends within a letter, the following tokens tell whether that is a space.
    """
    for later in range(number, len(counts)):
        if not ends_within[later] or counts[later] > counts[number]:
            return counts[later]
    return counts[-1]


def _span(places: list[int]) -> Span:
    """Returns the span from the first to the last of some places; an empty span without any."""
    return (places[0], places[-1] + 1) if places else (0, 0)
