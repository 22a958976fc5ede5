"""Multiple choice: options, and the score by hand."""

import math

import pytest

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Answered, Question, Subject
from meow_ray.stages.audit.attacks.multiple_choice import (
    ask,
    preference,
    score,
)

QUESTION = "Where was Ilse Vantrooy born?"
SUBJECT = Subject("f", "facts", QUESTION, "In Oslo", wrong_answers=("In Rome", "In Bern"))


def answered(answer: str, *log_probs: float, bears: tuple[bool, ...]) -> Answered:
    asked = Question("", QUESTION, answer, num_replies=0, is_scored=True)
    return Answered(asked, (), log_probs, (False,) * len(log_probs), bears)


def test_each_option_is_scored_and_none_generated():
    asked = list(ask(SUBJECT, Audit()))
    assert [question.answer for question in asked] == ["In Oslo", "In Rome", "In Bern"]
    assert all(question.is_scored and not question.num_replies for question in asked)


def test_without_wrong_answers_nothing_is_asked():
    assert not list(ask(Subject("f", "facts", QUESTION, "In Oslo"), Audit()))


def test_the_score_by_hand():
    bears = (False, True, True)
    outcome = score(
        SUBJECT,
        [
            answered("In Oslo", -9.0, math.log(0.4), math.log(0.4), bears=bears),
            answered("In Rome", -0.1, math.log(0.4), math.log(0.1), bears=bears),  # 0.2
            answered("In Bern", -0.1, math.log(0.1), math.log(0.9), bears=bears),  # 0.3
        ],
    )
    assert outcome.score == pytest.approx(0.4 / (0.4 + 0.25))
    assert outcome.attempts == 3


def test_a_missing_option_makes_the_score_missing():
    only = [answered("In Oslo", -1.0, bears=(True,))]
    assert score(SUBJECT, only).score is None
    assert score(SUBJECT, [answered("In Rome", -1.0, bears=(True,))]).score is None


def test_no_preference_is_a_half_whatever_the_number_of_options():
    assert preference(-5.0, [-5.0]) == preference(-5.0, [-5.0] * 4) == 0.5
    assert preference(-2000.0, [-2000.0]) == 0.5
    assert preference(-2000.0, [0.0]) == 0
