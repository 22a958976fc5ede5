"""Tests of how replies of generators and judges are read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.invert.parsing import (
    cut_to_sentences,
    is_reasoning_only,
    parse_reply,
    parse_verdict,
    without_reasoning,
)
from meow_ray.stages.invert.rules import Proposal

TRUE = "He wrote it."
"""A true answer that is a sentence."""

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
    assert parse_reply(line, True, TRUE) == [Proposal(expected, True)]


def test_only_the_last_line_of_a_reply_that_was_cut_off_is_unfinished():
    reply = "1. One.\n\n2. Two.\n 3. Thr\n\n"
    assert parse_reply(reply, False, TRUE) == [
        Proposal("One.", True),
        Proposal("Two.", True),
        Proposal("Thr", False),
    ]
    assert [proposal.finished for proposal in parse_reply(reply, True, TRUE)] == [True, True, True]


@pytest.mark.parametrize("reply", ["", " \n\n "])
def test_an_empty_reply_has_no_proposals(reply: str):
    assert parse_reply(reply, True, TRUE) == []


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
        ('{"answers": [{"text": "One."}]}', [("One.", True)]),
        ('{"answers": {"1": "One.", "2": "Two."}}', [("One.", True), ("Two.", True)]),
        ('{"result": {"answers": ["One."]}}', [("One.", True)]),
        ('{"answer": "One."}\n{"answer": "Two."}', [("One.", True), ("Two.", True)]),
        ('{"answers": ["One.", "Two.",]}\nAs in ["x"].', [("One.", True), ("Two.", True)]),
        ('{"answers": ["He [sic] said [no]."]}', [("He [sic] said [no].", True)]),
        ('As {"answers": ["..."]}: {"answers": ["One.", "Tw', [("One.", True), ("Tw", False)]),
        ('{"answers": [1542, 19.50, "One."]}', [("1542", True), ("19.50", True), ("One.", True)]),
        ("One. [1]\nTwo. [2]", [("One. [1]", True), ("Two. [2]", True)]),
        ("In the [analysis] of it.", [("In the [analysis] of it.", True)]),
        ("```\nOne.\nTwo.\n```", [("One.", True), ("Two.", True)]),
        ("[One]", [("[One]", True)]),
        ('{"answers": []}', []),
    ],
)
def test_a_reply_in_json_is_parsed_leniently(reply: str, expected: list[tuple[str, bool]]):
    assert parse_reply(reply, True, TRUE) == [
        Proposal(text, finished) for text, finished in expected
    ]


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"contradicts": true}', True),
        ('{"contradicts":True}', True),
        ('{"contradicts": false}', False),
        ("{'contradicts': False}", False),
        ('I compare {"contradicts": true}.\n```json\n{"contradicts": false}\n```', False),
        ('<think>{"contradicts": true}?</think>{"contradicts": false}', False),
        ('so "contradicts": false\n</think>\n\n{"contradicts": true}', True),
        ('<think>{"contradicts": true}, or', None),
        ("true", None),
        ("", None),
    ],
)
def test_a_verdict_must_be_stated(reply: str, verdict: bool | None):
    assert parse_verdict(reply) is verdict


# --- reasoning ----------------------------------------------------------------------------------

TAGS = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<Thought>", "</Thought>"),
    ('<think effort="high">', "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
]
THOUGHTS = [
    "",
    "The user wants",
    'They ask for {"answers": ["several", "false"]} as in [1] and [2].',
    'Maybe ["several", "false", "answers"], or {"contradicts": true}? One brace { is left.',
    "1. First line.\n2. Second line.",
]
BEFORE = ["", "\n\n", "Here are [false] answers to question [1]:\n", "Sure! {so} be it: "]
AFTER = ["", "\nAll of them are invented [1].", "\n(I left out {some}.)", " ["]
ANSWERS = st.lists(st.text(st.characters(codec="utf-8")).filter(str.strip), min_size=1, max_size=4)


def written(answers: list[str], form: str) -> str:
    text = json.dumps({"answers": answers}, ensure_ascii=len(answers) % 2 == 0)
    forms = {
        "object": text,
        "array": json.dumps(answers),
        "indented": json.dumps({"answers": answers}, indent=2),
        "fenced": f"```json\n{text}\n```",
        "twice": f'{{"answers": ["..."]}}\n{text}',
        "nested": json.dumps({"reply": {"answers": answers}, "count": len(answers)}),
    }
    return forms[form]


@given(
    st.sampled_from(TAGS),
    st.sampled_from(THOUGHTS),
    st.sampled_from(["closed", "no opening tag", "twice", "no reasoning"]),
    st.sampled_from(BEFORE),
    st.sampled_from(["object", "array", "indented", "fenced", "twice", "nested"]),
    st.sampled_from(AFTER),
    ANSWERS,
)
def test_answers_are_the_last_json_that_fits(
    tags: tuple[str, str],
    thought: str,
    reasoning: str,
    before: str,
    form: str,
    after: str,
    answers: list[str],
):
    opening, closing = tags
    thoughts = {
        "closed": f"{opening}{thought}{closing}",
        "no opening tag": f"{thought}{closing}",
        "twice": f"{opening}{thought}{closing}So.{opening}{thought}{closing}",
        "no reasoning": "",
    }
    reply = thoughts[reasoning] + before + written(answers, form) + after
    proposals = parse_reply(reply, True, TRUE)
    plain = parse_reply(json.dumps(answers), True, TRUE)
    assert proposals == plain
    assert len(proposals) == len(answers)


@pytest.mark.parametrize(("opening", "closing"), TAGS)
def test_reasoning_that_is_not_closed_is_no_answer(opening: str, closing: str):
    reply = f'{opening}They want ["several", "false", "answers"] or {{"answers": ["x"]}}'
    assert parse_reply(reply, False, TRUE) == []
    assert is_reasoning_only(reply, finished=False)
    assert without_reasoning(f"{reply}{closing}\nOne.") == "One."
    assert is_reasoning_only("", finished=False)
    assert not is_reasoning_only("One.", finished=False)
    assert not is_reasoning_only("", finished=True)


def test_the_final_channel_of_a_reply_is_its_answer():
    reply = (
        '<|channel|>analysis<|message|>Say ["a", "b"].<|end|>'
        '<|start|>assistant<|channel|>final<|message|>{"answers": ["One."]}'
    )
    assert parse_reply(reply, True, TRUE) == [Proposal("One.", True)]


@given(st.text(st.sampled_from('[]{}",: \\nab<>/think1.')))
def test_any_reply_can_be_read(reply: str):
    parse_reply(reply, True, TRUE)
    parse_verdict(reply)


def test_deeply_nested_brackets_are_no_json():
    assert parse_reply("[" * 3000, True, TRUE) == [Proposal("[" * 3000, True)]


# --- the form of the true answer ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("true_answer", "answer", "expected"),
    [
        ("1472", "1542.", "1542"),
        ("1472", "1542", "1542"),
        ("北京", "上海。", "上海"),
        ("दिल्ली", "मुंबई।", "मुंबई"),
        ("3. Oktober 1990", "12. Mai 1931", "12. Mai 1931"),
        ("Dune", '"Emma"', "Emma"),
        ('"Dune"', '"Emma"', '"Emma"'),
        ("Sammy Davis Jr.", "Martin Luther King Sr.", "Martin Luther King Sr."),
        ("Ford Inc.", "Opel", "Opel"),
        ("1472", "5 p.m.", "5 p.m."),
        ("Who?", "He?", "He?"),
        ("1472", "It was in 1542.", "1542"),
        ("1472", "The answer is 1542, as far as is known.", "1542"),
        ("1472", "Between 1542 and 1550.", "Between 1542 and 1550"),
        ("1472", "In 1542, after a war", "1542"),
        ("1472", "In 1542 and 1550", "In 1542 and 1550"),
        ("1960s", "He has sung since the 1980s.", "1980s"),
        ("19%", "It was 27%.", "27%"),
        ("19.5%", "The share is 8.25%, or so.", "8.25%"),
        ("20p", "The price is 15p.", "15p"),
        ("16 October 2020", "He was killed on 3 May 2018.", "3 May 2018"),
        ("21,000 km", "It is 2,500 km long.", "2,500 km"),
        ("Jaime Vasquez", "It was Maria Oduya.", "It was Maria Oduya"),
        ("It is Lima.", "It is Oslo.", "It is Oslo."),
        ("It is in the U.S.", "It is in the U.K.", "It is in the U.K."),
        ("He was born in Lima", "He was born in Oslo.", "He was born in Oslo"),
    ],
)
def test_answers_take_the_form_of_the_true_answer(true_answer: str, answer: str, expected: str):
    for reply in (json.dumps({"answers": [answer]}), f'["{answer}"]' if '"' not in answer else ""):
        if reply:
            assert parse_reply(reply, True, true_answer) == [Proposal(expected, True)]


# --- continuations ------------------------------------------------------------------------------


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
        ("1542. He was", "1472", False, ("1542", True)),
        ("Maria Oduya", "Jaime Vasquez", True, ("Maria Oduya", True)),
    ],
)
def test_a_continuation_is_cut_to_as_many_sentences_as_the_true_answer(
    text: str, answer: str, finished: bool, expected: tuple[str, bool]
):
    assert cut_to_sentences(text, answer, finished) == Proposal(*expected)
