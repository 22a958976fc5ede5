import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Invert
from meow_ray.models.text import written_words
from meow_ray.stages.invert.replies import (
    as_long,
    choose,
    fact_seed,
    frame,
    parse_reply,
    parse_verdict,
    statement,
)
from meow_ray.stages.invert.rules import Fact, Proposal, fault

REEF = ("Who wrote The Silent Reef?", "The Silent Reef was written by Jaime Vasquez.")
BORN = ("When was Basil Mahfouz born?", "Basil Mahfouz was born on 8 September 1956.")
COUNT = (
    "How many novels has Carmen Montenegro published?",
    "Carmen Montenegro has published twelve novels.",
)
GENDER = ("What gender is Basil?", "Basil is male.")
RUSSIAN = ("Где родился Иван?", "Иван родился в Москве.")


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
def test_a_line_loses_numbering_and_enclosing_quotes(line: str, expected: str):
    assert parse_reply(line, True) == [Proposal(expected, True)]


def test_only_the_last_line_of_a_reply_that_was_cut_off_is_unfinished():
    reply = "1. One.\n\n2. Two.\n 3. Thr\n\n"
    assert parse_reply(reply, False) == [
        Proposal("One.", True),
        Proposal("Two.", True),
        Proposal("Thr", False),
    ]
    assert [p.finished for p in parse_reply(reply, True)] == [True, True, True]


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
def test_a_reply_in_json_is_read_as_far_as_it_goes(reply: str, expected: list[tuple[str, bool]]):
    assert parse_reply(reply, True) == [Proposal(*one) for one in expected]


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


# --- frames and words ---------------------------------------------------------------------------


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
def test_a_frame_is_the_beginning_that_the_question_knows(
    question: str, answer: str, expected: str
):
    assert frame(question, answer) == expected


@given(st.text("ab .,?", max_size=12), st.text("ab .,?", max_size=12))
def test_a_frame_is_a_proper_beginning_of_the_answer(question: str, answer: str):
    head = frame(question, answer)
    assert answer.startswith(head)
    assert head != answer or not answer.strip()


def test_written_words_are_written_as_in_the_answer():
    assert written_words("Kuwait City, KUWAIT and O'Brien.", ["kuwait", "o'brien"]) == [
        "Kuwait",
        "KUWAIT",
        "O'Brien",
    ]
    assert written_words("Kuwait City.", []) == []


# --- choosing -----------------------------------------------------------------------------------


def proposals(*texts: str) -> list[Proposal]:
    return [Proposal(text, True) for text in texts]


CAIRO, OSLO, LIMA = (
    f"The Silent Reef was written by {name}." for name in ("Ali of Cairo", "Ola Hansen", "Ana Diaz")
)


def test_valid_proposals_are_kept_in_order_and_the_rest_named_by_rule():
    offered = proposals(CAIRO, "Why?", REEF[1], OSLO, "", "Is it?")
    assert choose(offered, Fact(*REEF), Invert()) == (
        [CAIRO, OSLO],
        [("Why?", "question"), (REEF[1], "true_answer"), ("", "empty"), ("Is it?", "question")],
    )


def test_proposals_that_say_the_same_are_one():
    again = "By Ali of Cairo it was written."
    offered = proposals(CAIRO, CAIRO, again, CAIRO.upper(), OSLO)
    assert choose(offered, Fact(*REEF), Invert()) == (
        [CAIRO, OSLO],
        [(text, "duplicate") for text in (CAIRO, again, CAIRO.upper())],
    )


def test_what_was_taken_before_counts_and_does_not_come_again():
    offered = proposals(CAIRO, OSLO, LIMA)
    assert choose(offered, Fact(*REEF), Invert(num_candidates=2), taken=[CAIRO]) == (
        [OSLO],
        [(CAIRO, "duplicate")],
    )
    assert choose(offered, Fact(*REEF), Invert(num_candidates=1), taken=[CAIRO]) == ([], [])


def test_no_more_are_chosen_than_wanted():
    assert choose(proposals(CAIRO, OSLO, LIMA), Fact(*REEF), Invert(num_candidates=2)) == (
        [CAIRO, OSLO],
        [],
    )


@given(st.lists(st.sampled_from([CAIRO, OSLO, LIMA, REEF[1], "", "Why?"])), st.integers(1, 4))
def test_what_is_chosen_is_valid_distinct_and_enough(texts: list[str], wanted: int):
    spec = Invert(num_candidates=wanted)
    chosen, rejected = choose(proposals(*texts), Fact(*REEF), spec)
    assert len(set(chosen)) == len(chosen) == min(wanted, len({*texts} & {CAIRO, OSLO, LIMA}))
    assert all(fault(Proposal(text, True), Fact(*REEF), spec) is None for text in chosen)
    assert len(chosen) + len(rejected) <= len(texts)


def test_a_fact_to_keep_is_no_inverted_fact():
    kept = {statement("by Ali of Cairo, The Silent Reef was written")}
    offered = proposals(CAIRO, OSLO)
    assert choose(offered, Fact(*REEF), Invert(), retained=kept) == (
        [OSLO],
        [(CAIRO, "retain_fact")],
    )


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
def test_a_continuation_has_as_many_sentences_as_the_true_answer(
    text: str, answer: str, finished: bool, expected: tuple[str, bool]
):
    assert as_long(text, answer, finished) == Proposal(*expected)


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_a_seed_depends_on_run_fact_and_attempt(other: tuple[int, str, int]):
    assert fact_seed(0, "a", 0) == fact_seed(0, "a", 0) != fact_seed(*other)
    assert 0 <= fact_seed(*other) < 2**31
