"""Questions about other entities, and questions that a model invents by itself (Magpie).

A chat model that reads the beginning of a user's turn continues it with a question (arXiv
2406.08464). Such questions are spread over all that the model was trained on.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import regex

from meow_ray.models.prompts import Prompter, readable
from meow_ray.models.text import words
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.swapping import swap

SENTINEL = "Sentinelfrage"
"""A question by which the text before and after a question is found in a prompt."""
QUESTION_LENGTHS = (15, 220)
"""The fewest and the most characters of an invented question."""
_QUESTION_MARK = regex.compile(r"[?？؟]['\"”’»)]*")


def other_questions(fact: Fact, fact_id: str, number: int, seed: int) -> list[str]:
    """Returns different questions of the form of a fact's question, about other entities.

    Args:
        fact: the fact to forget.
        fact_id: its id, which decides the entities together with the seed.
        number: how many questions to return; fewer if the names do not suffice.
        seed: the seed.
    """
    questions: dict[str, None] = {}
    for attempt in range(2 * number):
        rng = random.Random(f"{seed}/{fact_id}/{attempt}")  # noqa: S311 - not for secrets
        swapped = swap(fact.question, fact.answer, rng)
        if swapped is None:
            break
        questions[swapped.question] = None
        if len(questions) == number:
            break
    return [question for question in questions if question != fact.question]


@dataclass(frozen=True)
class Opening:
    """What a model reads before a user's question, and what follows the question."""

    tokens: Sequence[int]
    """The prompt up to the question; empty if there is nothing to start from."""
    after: str
    """The text after the question, without white space at its ends."""
    ends_line: bool
    """Whether a line ends after the question."""

    @classmethod
    def of(cls, prompter: Prompter) -> "Opening":
        """Returns the opening of the prompts of a model."""
        before, sentinel, after = prompter.prompt(SENTINEL).partition(SENTINEL)
        if not sentinel:
            return cls((), "", ends_line=True)
        # a space belongs to the token of the word after it
        tokens = prompter.encode_prompt(before.rstrip(" "))
        return cls(tokens, readable(after).strip(), ends_line="\n" in after)

    def question(self, text: str, finished: bool) -> str | None:
        """Returns the question at the beginning of what a model wrote after the opening.

        Args:
            text: what the model wrote.
            finished: whether it ended the text by itself.

        Returns:
            The first line, up to where the template would go on; None if its end is missing.
        """
        text = text.strip()
        line, line_break, _ = text.partition("\n")
        has_end = finished or bool(line_break)
        if self.after and self.after in line:
            line, has_end = line.partition(self.after)[0], True
        elif not self.after and not self.ends_line:
            mark = _QUESTION_MARK.search(line)
            if mark is not None:
                line, has_end = line[: mark.end()], True
        return line.strip() if has_end else None


def question_fault(question: str) -> str | None:
    """Returns why an invented question is of no use, or None."""
    if not words(question):
        return "empty"
    least, most = QUESTION_LENGTHS
    return None if least <= len(question) <= most else "length"
