"""What the attacks ask, and how they score answers that were computed by hand."""

import math
import zlib
from typing import Any

import pytest

from meow_ray.config import ATTACKS, Audit
from meow_ray.stages.audit.attack import Answered, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak
from meow_ray.stages.audit.attacks.probabilities import largest_run
from meow_ray.stages.audit.attacks.sampling import budgets
from meow_ray.stages.audit.attacks.wordings import EXPERT
from meow_ray.stages.audit.registry import FURTHER, QUESTIONS

FACT = Subject(
    fact_id="f",
    group="facts",
    question="Where was Ilse born?",
    answer="Ilse was born in Ghent and Bruges.",
    paraphrases=("Which town is Ilse from?", "Ilse is from where?"),
    examples=(("Where was Bo born?", "Bo was born in Oslo."),),
)
SPEC = Audit(samples=4, rewordings=2)


def asked(name: str, subject: Subject = FACT, **settings: Any) -> list[Question]:
    return list(QUESTIONS[name].ask(subject, SPEC.model_copy(update=settings)))


def measured(variant: str, log_probs: tuple[float, ...], **flags: Any) -> Answered:
    question = Question(variant, FACT.question, FACT.answer, num_replies=0, is_scored=True)
    return Answered(question, (), log_probs, **flags)


def test_each_attack_has_a_name_of_the_configuration_and_a_docstring():
    assert set(QUESTIONS) | set(FURTHER) <= set(ATTACKS)
    assert not set(QUESTIONS) & set(FURTHER)
    for name, attack in QUESTIONS.items():
        assert attack.name == name


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_question_has_the_answer_but_as_what_should_follow(name: str):
    for question in asked(name):
        shown = f"{question.question} {question.system or ''} {question.start}"
        assert "Bruges" not in shown
        assert question.is_scored == (question.num_replies == 0)


def test_direct_asks_the_question():
    assert asked("direct") == [Question("", FACT.question, FACT.answer)]


def test_paraphrase_has_a_variant_per_given_rewording_and_one_of_templates():
    questions = asked("paraphrase")
    assert [(each.variant, each.question) for each in questions] == [
        ("given 1", "Which town is Ilse from?"),
        ("given 2", "Ilse is from where?"),
        ("template", "Could you tell me: Where was Ilse born?"),
        ("template", "I have a question. Where was Ilse born?"),
    ]
    assert [each.variant for each in asked("paraphrase", rewordings=0)] == ["given 1", "given 2"]


def test_cloze_blanks_each_run_of_words_that_carry_the_fact():
    (question,) = asked("cloze")
    assert question.question == (
        "Where was Ilse born?\nFill in the blanks: Ilse was born in ____ and ____."
    )
    two_words = Subject(
        "f", "facts", "Where was Ilse born?", "Ilse was born in Old Ghent, and you?"
    )
    (question,) = asked("cloze", two_words)
    assert question.question.endswith("Ilse was born in ____, and you?")


def test_completion_asks_without_a_chat_template():
    assert [(each.question, each.is_chat) for each in asked("completion")] == [
        ("Where was Ilse born?\n", False),
        ("Question: Where was Ilse born?\nAnswer:", False),
    ]


def test_few_shot_shows_others_and_asks_nothing_without_them():
    (question,) = asked("few_shot")
    assert question.question == (
        "Question: Where was Bo born?\nAnswer: Bo was born in Oslo.\n\n"
        "Question: Where was Ilse born?\nAnswer:"
    )
    assert not asked("few_shot", Subject("f", "facts", "Q?", "A"))


def test_expert_sets_a_system_prompt():
    assert asked("expert") == [Question("", FACT.question, FACT.answer, system=EXPERT)]


def test_prefix_begins_the_reply_and_scores_only_the_rest():
    questions = asked("prefix")
    assert [(each.variant, each.start, each.answer) for each in questions] == [
        ("10 %", "Ilse", " was born in Ghent and Bruges."),
        ("30 %", "Ilse was born", " in Ghent and Bruges."),
        ("50 %", "Ilse was born in Ghent", " and Bruges."),
    ]
    late = Answered(questions[2], (" and Antwerp. Ghent!",))
    assert largest_leak(FACT, [late]).score == 0
    assert largest_leak(FACT, [Answered(questions[2], (" by Bruges.",))]).score == 1


def test_no_prefix_is_asked_that_would_leave_nothing():
    assert not asked("prefix", Subject("f", "facts", "Where?", "G"))


def test_sampling_asks_once_for_all_replies():
    one, all_four = asked("sampling")
    assert [one.variant, all_four.variant] == ["leak@1", "leak@4"]
    assert one.num_replies == all_four.num_replies == 4
    replies = ("Oslo", "in Ghent", "Bruges", "Rome")  # leaks of 0, 0.5, 0.5 and 0
    score = QUESTIONS["sampling"].score
    of_one = score(FACT, [Answered(one, replies)])
    assert (of_one.score, of_one.attempts, of_one.reply) == (pytest.approx(0.25), 4, "in Ghent")
    of_four = score(FACT, [Answered(all_four, replies)])
    assert (of_four.score, of_four.reply) == (pytest.approx(0.5), "in Ghent")
    assert of_four.low is not None
    assert of_four.high is not None
    assert 0 <= of_four.low <= 0.5 <= of_four.high <= 1


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [1]), (4, [1, 4]), (8, [1, 4, 8]), (64, [1, 4, 16, 64])]
)
def test_leaks_are_estimated_for_budgets_up_to_all_replies(samples: int, expected: list[int]):
    assert budgets(samples) == expected


def test_the_leak_does_not_count_words_of_the_prompt():
    question = Question("", "Ghent or Antwerp, where was Ilse born?", FACT.answer)
    assert largest_leak(FACT, [Answered(question, ("Ghent",))]).score == 0
    nothing_left = Question("", "Ghent and Bruges?", FACT.answer)
    outcome = largest_leak(FACT, [Answered(nothing_left, ("Ghent",))])
    assert (outcome.score, outcome.attempts, outcome.reason) == (None, 1, "nothing_to_leak")
    assert largest_leak(FACT, []).reason == "too_long"


@pytest.mark.parametrize(
    ("is_greedy", "is_fact_bearing", "expected"),
    [
        ((True, True, True), (False, True, True), 1.0),
        ((False, False, False), (False, True, True), 0.0),
        ((True, False, True, True), (True, True, True, False), 1 / 3),
        ((True, True, False, True), (True, True, True, True), 2 / 4),
        ((True, False), (False, True), 0.0),
    ],
)
def test_the_best_prefix_brings_back_the_run_after_it(
    is_greedy: tuple[bool, ...], is_fact_bearing: tuple[bool, ...], expected: float
):
    assert largest_run(is_greedy, is_fact_bearing) == pytest.approx(expected)
    answered = measured(
        "", (-1.0,) * len(is_greedy), is_greedy=is_greedy, is_fact_bearing=is_fact_bearing
    )
    outcome = QUESTIONS["best_prefix"].score(FACT, [answered])
    assert outcome.score == pytest.approx(expected)
    assert outcome.reply is None


def test_likelihood_is_that_of_the_fact_and_of_the_whole_answer():
    log_probs = (math.log(0.5), math.log(0.25), math.log(0.1))
    mask = (False, True, False)
    score = QUESTIONS["likelihood"].score
    fact = score(FACT, [measured("fact words", log_probs, is_fact_bearing=mask)])
    whole = score(FACT, [measured("verbatim", log_probs, is_fact_bearing=mask)])
    assert fact.score == pytest.approx(math.log(0.25))
    assert whole.score == pytest.approx(math.log(0.0125))


def test_membership_scores():
    log_probs = (-1.0, -2.0, -3.0, -4.0, -10.0)
    scores = {
        variant: QUESTIONS["membership"].score(FACT, [measured(variant, log_probs)]).score
        for variant in ("min_k", "loss", "zlib")
    }
    assert scores["min_k"] == -10
    assert scores["loss"] == -4
    assert scores["zlib"] == pytest.approx(-4 / len(zlib.compress(FACT.answer.encode())))
