"""Fixed frames around a question, which reword it without a model.

The frames with words are in English, for English questions. Those for all languages consist of
marks alone, so that nothing wrong is written in a language that this module does not know.
"""

from collections.abc import Iterator

from meow_ray.models.text import words, written_words

ENGLISH_FRAMES = (
    "Could you tell me: {question}",
    "I have a question. {question}",
    "Please answer this: {question}",
    "Here is something I would like to know. {question}",
    "{question} Please tell me.",
    "Do you know this? {question}",
)
FORMAT_FRAMES = ("Q: {question}", "1. {question}", "Q: {question}\nA:", "Q1. {question}")

_ENGLISH_WORDS = frozenset("did does how the what when where which who whom whose why".split())
"""Words that questions in other languages do not have."""


def framed(question: str) -> Iterator[str]:
    """Yields a question in each frame of its language, then in the frames of all languages."""
    frames = (*ENGLISH_FRAMES, *FORMAT_FRAMES) if is_english(question) else FORMAT_FRAMES
    for frame in frames:
        yield frame.format(question=question)


def is_english(question: str) -> bool:
    """Tells whether a question is in English.

    It begins with an English question word, or has two English words in lower case: one may belong
    to the title of a book.
    """
    if words(question)[:1] and words(question)[0] in _ENGLISH_WORDS:
        return True
    return len(_ENGLISH_WORDS & set(written_words(question))) > 1
