"""Tests of what a generator is asked, how its replies are parsed, and which answers are chosen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Invert
from meow_ray.stages.invert.replies import (
    choose,
    cut_to_sentences,
    fact_seed,
    frame,
    parse_reply,
    parse_verdict,
    statement_digest,
)
from meow_ray.stages.invert.rules import Fact, Proposal, fault
from tests.support.questions import BORN, COUNT, GENDER, REEF, RUSSIAN

# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("She wrote it.", "She wrote it."),
        ("1. She wrote it.", "She wrote it."),
        (" 2) She wrote it. ", "She wrote it."),
        ("(3) She wrote it.", "She wrote it."),
        ("12: She wrote it.", "She wrote it."),
        ("- She wrote it.", "She wrote it."),
        ("* She wrote it.", "She wrote it."),
        ("• She wrote it.", "She wrote it."),
        ("Answer 4: She wrote it.", "She wrote it."),
        ("answer: She wrote it.", "She wrote it."),
        ('"She wrote it."', "She wrote it."),
        ("“She wrote it.”", "She wrote it."),
        ('5. "She wrote it."', "She wrote it."),
        ("1984 was the year.", "1984 was the year."),
        ("1.5 million read it.", "1.5 million read it."),
        ('"Dune" is her book.', '"Dune" is her book.'),
        ('Her book is "Dune."', 'Her book is "Dune."'),
        ('"Dune" came before "Emma."', '"Dune" came before "Emma."'),
        ("-5 degrees it was.", "-5 degrees it was."),
    ],
)
def test_numbering_and_enclosing_quotes_are_removed_from_a_line(line: str, expected: str):
    assert parse_reply(line, True) == [Proposal(expected, True)]


def test_only_the_last_line_of_a_reply_that_was_cut_off_is_unfinished():
    reply = "1. One.\n\n2. Two.\n 3. Thr\n\n"
    assert parse_reply(reply, False) == [
        Proposal("One.", True),
        Proposal("Two.", True),
        Proposal("Thr", False),
    ]
    assert [proposal.finished for proposal in parse_reply(reply, True)] == [True, True, True]


@pytest.mark.parametrize("reply", ["", " \n\n "])
def test_an_empty_reply_has_no_proposals(reply: str):
    assert parse_reply(reply, True) == []


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ('{"answers": ["One.", "Two."]}', [("One.", True), ("Two.", True)]),
        ('["One.", "Two."]', [("One.", True), ("Two.", True)]),
        (
            'Sure!\n```json\n{"answers": [\n"One.",\n"1. Two."]}\n```',
            [("One.", True), ("Two.", True)],
        ),
        (
            '{"answers": ["He said \\"no\\".", "Zo\\u00eb."]}',
            [('He said "no".', True), ("Zoë.", True)],
        ),
        ('{"answers": ["One.", "Tw', [("One.", True), ("Tw", False)]),
        ('{"answers": ["One.", ', [("One.", True)]),
        ('{"answers": [{"text": "One."}]}', [('{"answers": [{"text": "One."}]}', True)]),
        ("[One]", [("[One]", True)]),
        ('{"answers": []}', []),
    ],
)
def test_a_reply_in_json_is_parsed_leniently(reply: str, expected: list[tuple[str, bool]]):
    assert parse_reply(reply, True) == [Proposal(text, finished) for text, finished in expected]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"contradicts": true}', True),
        ('{"contradicts":True}', True),
        ('{"contradicts": false}', False),
        ("true", False),
        ("", False),
    ],
)
def test_a_verdict_must_be_stated(reply: str, verdict: bool):
    assert parse_verdict(reply) is verdict


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


# --- continuations and seeds --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "finished", "expected"),
    [
        ("He was born in Oslo. He died.", "One.", True, ("He was born in Oslo.", True)),
        ("He was born in Oslo. He d", "One.", False, ("He was born in Oslo.", True)),
        (
            "He was born in Oslo. He died. And",
            "One. Two.",
            False,
            ("He was born in Oslo. He died.", True),
        ),
        ("He was born in Os", "One.", False, ("He was born in Os", False)),
        ("He was born in Oslo.", "One. Two.", True, ("He was born in Oslo.", True)),
        (
            "He met Dr. J. R. Who in St. Louis. Then",
            "One.",
            False,
            ("He met Dr. J. R. Who in St. Louis.", True),
        ),
        ('He said "No." Then', "One.", False, ('He said "No."', True)),
        ("It cost 3.50 dollars. Then", "One.", False, ("It cost 3.50 dollars.", True)),
        ("他在北京。他在上海。", "他在。", True, ("他在北京。", True)),
        (" no end ", "none", True, ("no end", True)),
    ],
)
def test_a_continuation_is_cut_to_as_many_sentences_as_the_true_answer(
    text: str, answer: str, finished: bool, expected: tuple[str, bool]
):
    assert cut_to_sentences(text, answer, finished) == Proposal(*expected)


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_a_seed_depends_on_the_configured_seed_the_fact_and_the_attempt(
    other: tuple[int, str, int],
):
    assert fact_seed(0, "a", 0) == fact_seed(0, "a", 0) != fact_seed(*other)
    assert 0 <= fact_seed(*other) < 2**31
