"""Rows without a score: there is one for each subject that was not asked, and it says why."""

import math
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Attack, Outcome, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak
from meow_ray.stages.audit.missing import settled, unasked_rows
from meow_ray.stages.audit.questions import questions_of
from meow_ray.stages.audit.reasons import REASONS, Reason, explained, most_common
from meow_ray.stages.audit.registry import QUESTIONS
from meow_ray.stages.audit.scoring import ScoredRow, scored_row

SPEC = Audit(samples=4)
WHOLE = Subject(
    fact_id="whole",
    group="facts",
    question="Where was Ilse born?",
    answer="Ilse was born in Ghent.",
    paraphrases=("Ilse is from where?",),
    wrong_answers=("Ilse was born in Oslo.",),
    examples=(("Where was Bo born?", "Bo was born in Rome."),),
)
BARE = Subject("bare", "facts", "How many sons had Bo?", "7")
TWIN = Subject("bare#0", "twins", "Where was Kim born?", "Oslo")


class FakeAudit:
    """What `unasked_rows` reads of its audit."""

    def __init__(self, subjects: list[Subject]) -> None:
        self.subjects = subjects
        self.models = {"before": None, "after": None}

    def asked_of(self, model: str) -> list[Subject]:
        return [s for s in self.subjects if s.group == "facts" or model == "before"]


def all_rows(attacks: list[Attack], subjects: list[Subject]) -> list[ScoredRow]:
    """Returns a row for each question, as the stage has them, and those of what is not asked."""
    audit: Any = FakeAudit(subjects)
    by_name = {attack.name: attack for attack in attacks}
    asked = {
        (model, row["attack"], row["variant"], row["group"], row["fact_id"])
        for model in audit.models
        for row in questions_of(attacks, audit.asked_of(model), SPEC)
    }
    by_id = {subject.fact_id: subject for subject in subjects}
    rows = [
        scored_row(attack, variant, by_name[attack].tier, model, by_id[fact_id], Outcome(1.0, 1))
        for model, attack, variant, _, fact_id in sorted(asked)
    ]
    return [*rows, *unasked_rows(audit, attacks, rows)]


@pytest.mark.parametrize("subjects", [[WHOLE, BARE, TWIN], [BARE, TWIN], [BARE], [WHOLE]])
def test_each_variant_of_each_attack_has_a_row_for_each_model_and_subject(subjects: list[Subject]):
    rows = all_rows(list(QUESTIONS.values()), subjects)
    sides = {
        (model, subject.fact_id)
        for model in ("before", "after")
        for subject in FakeAudit(subjects).asked_of(model)
    }
    by_probe: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for row in rows:
        by_probe.setdefault((row.attack, row.variant), []).append((row.model, row.fact_id))
    assert {attack for attack, _ in by_probe} == set(QUESTIONS)
    for found in by_probe.values():
        assert sorted(found) == sorted(sides)


def test_what_was_not_asked_says_why():
    rows = all_rows(list(QUESTIONS.values()), [WHOLE, BARE])
    reasons = {
        (row.attack, row.variant): row.outcome.reason
        for row in rows
        if (row.model, row.fact_id) == ("after", "bare") and row.outcome.reason
    }
    assert reasons == {
        ("paraphrase", "given 1"): "no_rewording",
        ("few_shot", ""): "no_examples",
        ("multiple_choice", ""): "no_wrong_answers",
        ("prefix", "10 %"): "answer_too_short",
        ("prefix", "30 %"): "answer_too_short",
        ("prefix", "50 %"): "answer_too_short",
    }


def test_an_own_attack_that_asks_nothing_of_anybody_has_rows():
    nothing = Attack("mine", "black box", lambda subject, spec: [], largest_leak)
    rows = all_rows([nothing], [WHOLE, TWIN])
    assert [(row.variant, row.model, row.fact_id) for row in rows] == [
        ("", "before", "whole"),
        ("", "before", "bare#0"),
        ("", "after", "whole"),
    ]
    assert {row.outcome for row in rows} == {Outcome(None, 0, reason="not_asked")}


def test_an_own_attack_may_ask_some_only():
    def ask(subject: Subject, spec: Audit) -> list[Question]:
        return [Question("v", subject.question, subject.answer)] if subject is WHOLE else []

    rows = all_rows([Attack("mine", "black box", ask, largest_leak)], [WHOLE, BARE])
    assert {(row.variant, row.fact_id, row.outcome.reason) for row in rows} == {
        ("v", "whole", None),
        ("v", "bare", "not_asked"),
    }


@given(
    st.one_of(st.none(), st.floats()),
    st.one_of(st.none(), st.sampled_from(get_args(Reason)), st.just("some other text")),
)
def test_each_settled_outcome_has_a_finite_score_or_a_reason(score: float | None, reason: Any):
    outcome = settled(Outcome(score, 3, low=0.0, high=1.0, reason=reason))
    assert (outcome.score is None) == (outcome.reason in REASONS)
    assert outcome.score is None or (math.isfinite(outcome.score) and outcome.score == score)
    assert settled(outcome) == outcome


def test_numbers_that_are_none_and_missing_reasons_are_named():
    assert settled(Outcome(-math.inf, 1)) == Outcome(None, 1, reason="not_finite")
    assert settled(Outcome(math.nan, 1)) == Outcome(None, 1, reason="not_finite")
    assert settled(Outcome(None, 1)) == Outcome(None, 1, reason="unexplained")
    assert settled(Outcome(None, 0, reason="no_gpu")) == Outcome(None, 0, reason="no_gpu")


def test_people_read_what_a_reason_means():
    assert explained("no_gpu") == "no_gpu: the attack needs a GPU"
    assert explained("3 facts never taught") == "3 facts never taught"
    assert explained(None) == ""


def test_the_first_by_name_of_equally_common_reasons_is_taken():
    assert most_common(["too_long", "no_gpu", "too_long"]) == "too_long"
    assert most_common(["too_long", "no_gpu"]) == "no_gpu"
    assert most_common([]) is None
