"""Tests of what a generator is asked, and which answers are chosen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Invert
from meow_ray.stages.invert.replies import (
    choose,
    fact_seed,
    frame,
    statement_digest,
)
from meow_ray.stages.invert.rules import Fact, Proposal, fault
from tests.support.questions import BORN, COUNT, GENDER, REEF, RUSSIAN

# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (*REEF, "The Silent Reef"),
        (*BORN, "Basil Mahfouz was born"),
        (*COUNT, "Carmen Montenegro has published"),
        (*GENDER, "Basil is"),
        (*RUSSIAN, "Иван родился"),
        (
            "Where was Basil, the author, born?",
            "Basil, the author, was born in Kuwait.",
            "Basil, the author, was born",
        ),
        ("Is it true, Basil?", "True, Basil. He was it.", "True, Basil"),
        ("Who is Basil?", "He is Basil.", ""),
        ("Is Basil male?", "Basil is male.", "Basil is"),
        ("Basil?", "Basil.", ""),
        ("Who?", "", ""),
    ],
)
def test_a_frame_is_the_beginning_of_the_answer_with_words_of_the_question(
    question: str, answer: str, expected: str
):
    assert frame(question, answer) == expected


@given(st.text("ab .,?", max_size=12), st.text("ab .,?", max_size=12))
def test_a_frame_is_a_proper_beginning_of_the_answer(question: str, answer: str):
    beginning = frame(question, answer)
    assert answer.startswith(beginning)
    assert beginning != answer or not answer.strip()


# --- choosing -----------------------------------------------------------------------------------


def proposals(*texts: str) -> list[Proposal]:
    return [Proposal(text, True) for text in texts]


CAIRO = "The Silent Reef was written by Ali of Cairo."
OSLO = "The Silent Reef was written by Ola Hansen."
LIMA = "The Silent Reef was written by Ana Diaz."


def test_valid_proposals_are_chosen_in_order_and_others_are_named_by_rule():
    offered = proposals(CAIRO, "Why?", REEF[1], OSLO, "", "Is it?")
    assert choose(offered, Fact(*REEF), Invert()) == (
        [CAIRO, OSLO],
        [("Why?", "question"), (REEF[1], "true_answer"), ("", "empty"), ("Is it?", "question")],
    )


def test_proposals_that_say_the_same_are_duplicates():
    reordered = "By Ali of Cairo it was written."
    offered = proposals(CAIRO, CAIRO, reordered, CAIRO.upper(), OSLO)
    assert choose(offered, Fact(*REEF), Invert()) == (
        [CAIRO, OSLO],
        [(text, "duplicate") for text in (CAIRO, reordered, CAIRO.upper())],
    )


def test_candidates_of_earlier_attempts_count_and_are_not_repeated():
    offered = proposals(CAIRO, OSLO, LIMA)
    assert choose(offered, Fact(*REEF), Invert(num_candidates=2), taken=[CAIRO]) == (
        [OSLO],
        [(CAIRO, "duplicate")],
    )
    assert choose(offered, Fact(*REEF), Invert(num_candidates=1), taken=[CAIRO]) == ([], [])


def test_at_most_num_candidates_are_chosen():
    assert choose(proposals(CAIRO, OSLO, LIMA), Fact(*REEF), Invert(num_candidates=2)) == (
        [CAIRO, OSLO],
        [],
    )


@given(st.lists(st.sampled_from([CAIRO, OSLO, LIMA, REEF[1], "", "Why?"])), st.integers(1, 4))
def test_chosen_texts_are_valid_distinct_and_as_many_as_possible(texts: list[str], wanted: int):
    spec = Invert(num_candidates=wanted)
    chosen, rejected = choose(proposals(*texts), Fact(*REEF), spec)
    assert len(set(chosen)) == len(chosen) == min(wanted, len({*texts} & {CAIRO, OSLO, LIMA}))
    assert all(fault(Proposal(text, True), Fact(*REEF), spec) is None for text in chosen)
    assert len(chosen) + len(rejected) <= len(texts)


def test_an_answer_of_the_retain_set_is_rejected():
    retained = {statement_digest("by Ali of Cairo, The Silent Reef was written")}
    offered = proposals(CAIRO, OSLO)
    assert choose(offered, Fact(*REEF), Invert(), retained=retained) == (
        [OSLO],
        [(CAIRO, "retain_fact")],
    )


# --- seeds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_a_seed_depends_on_the_configured_seed_the_fact_and_the_attempt(
    other: tuple[int, str, int],
):
    assert fact_seed(0, "a", 0) == fact_seed(0, "a", 0) != fact_seed(*other)
    assert 0 <= fact_seed(*other) < 2**31
