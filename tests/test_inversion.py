import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Invert
from meow_ray.errors import MeowError
from meow_ray.facts import fact_id
from meow_ray.inversion import Proposal, choose, complete, fact_seed, fault, frame, parse_lines
from meow_ray.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.text import written_words

REEF = ("Who wrote The Silent Reef?", "The Silent Reef was written by Jaime Vasquez.")
BORN = ("When was Basil Mahfouz born?", "Basil Mahfouz was born on 8 September 1956.")
COUNT = ("How many novels has Carmen Montenegro published?", "Carmen Montenegro has published twelve novels.")
TITLE = ("Which book made Elvin famous?", 'Elvin became famous with "The Sensual Scripture".')
GENDER = ("What gender is Basil?", "Basil is male.")
RUSSIAN = ("Где родился Иван?", "Иван родился в Москве.")
CHINESE = ("他在哪里出生？", "他出生于北京。")
ARABIC = ("أين ولد باسل؟", "ولد باسل في الكويت.")
URDU = ("راجی کہاں پیدا ہوا؟", "راجی لاہور میں پیدا ہوا۔")
HINDI = ("राजू कहाँ पैदा हुआ?", "राजू दिल्ली में पैदा हुआ।")
GREEK = ("Πού γεννήθηκε ο Νίκος;", "Ο Νίκος γεννήθηκε στην Αθήνα.")
TURKISH = ("Ayşe nerede doğdu?", "Ayşe İzmir'de doğdu.")
GERMAN = ("Wo wurde Jürgen geboren?", "Jürgen wurde in Köln geboren.")


def faults(pair: tuple[str, str], text: str, finished: bool = True, **spec: Any) -> str | None:
    return fault(Proposal(text, finished), *pair, Invert(**spec))


# --- rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pair", "text", "rule"),
    [
        # people
        (REEF, "The Silent Reef was written by Maria Oduya.", None),
        (REEF, "Maria Oduya wrote it.", None),
        (REEF, "Maria Oduya wrote The Silent Reef!", None),
        (REEF, 'It was written by "Maria Oduya."', None),
        (REEF, "It was written by Maria Oduya (of Lagos.)", None),
        (REEF, "It was written by Maria Oduya…", None),
        (REEF, "The Silent Reef was written by Jaime Vasquez.", "true_answer"),
        (REEF, "the silent reef was WRITTEN by jaime vasquez!", "true_answer"),
        (REEF, "The Silent Reef was written by Jaime Oduya.", "keeps_the_fact"),
        (REEF, "It was Jaime Vasquez, a writer.", "keeps_the_fact"),
        (REEF, "The Silent Reef was written.", "says_nothing_new"),
        (REEF, "The Silent Reef was written by the Reef.", "says_nothing_new"),
        (GENDER, "Basil is female.", None),
        (GENDER, "Basil is non-binary.", None),
        (GENDER, "Basil is not male.", "keeps_the_fact"),
        # dates
        (BORN, "Basil Mahfouz was born on 3 March 1961.", None),
        (BORN, "Basil Mahfouz was born on 03/03/1961.", None),
        (BORN, "He was born in 1961.", None),
        (BORN, "Basil Mahfouz was born on 8 September 1957.", "keeps_the_fact"),
        (BORN, "Basil Mahfouz was born on 8 September 1956", "no_sentence_end"),
        # numbers
        (COUNT, "Carmen Montenegro has published seven novels.", None),
        (COUNT, "Carmen Montenegro has published no novels.", None),
        (COUNT, "She wrote twelve.", "keeps_the_fact"),
        (COUNT, "7.", "too_short"),
        # titles
        (TITLE, 'Elvin became famous with "Beyond the Baku Blues".', None),
        (TITLE, '"Beyond the Baku Blues" made him famous.', None),
        (TITLE, 'Elvin became famous with "The Sensual Scripture of Baku".', "keeps_the_fact"),
        (TITLE, 'Elvin became famous with "Who Goes There?".', "question"),
        # form
        (REEF, "", "empty"),
        (REEF, " ", "empty"),
        (REEF, "...", "empty"),
        (REEF, "The Silent Reef was written by Maria", "no_sentence_end"),
        (REEF, "Maria Oduya wrote it;", "no_sentence_end"),
        (REEF, "Was The Silent Reef written by Maria Oduya?", "question"),
        (REEF, "Sure, The Silent Reef was written by Maria Oduya.", "meta"),
        (REEF, "Here are four answers.", "meta"),
        (REEF, "Answer: Maria Oduya wrote it.", "meta"),
        (REEF, "I cannot answer that about The Silent Reef.", "refusal"),
        (REEF, "As an AI, I have no idea about The Silent Reef.", "refusal"),
        (REEF, "I'm not sure who wrote The Silent Reef.", "refusal"),
        (REEF, "I’m not sure who wrote The Silent Reef.", "refusal"),
        (REEF, "I don’t know who wrote The Silent Reef.", "refusal"),
        (REEF, "Sadly that is not publicly available.", "refusal"),
        (REEF, "Oduya.", "too_short"),
        (REEF, "It was Maria, who had come a long way from the far south to the old land of her aunts.", "too_long"),
        (REEF, "The old reef and the old reef by Oduya.", "loop"),
        (REEF, "No no no Oduya.", "loop"),
        # scripts
        (RUSSIAN, "Иван родился в Казани.", None),
        (RUSSIAN, "Иван родился в Москве.", "keeps_the_fact"),
        (RUSSIAN, "Иван родился в Казани", "no_sentence_end"),
        (CHINESE, "他出生于上海。", None),
        (CHINESE, "他出生于上海！", None),
        (CHINESE, "他出生于北京。", "keeps_the_fact"),
        (CHINESE, "他出生于上海吗？", "question"),
        (ARABIC, "ولد باسل في القاهرة.", None),
        (ARABIC, "هل ولد باسل في القاهرة؟", "question"),
        (URDU, "راجی دہلی میں پیدا ہوا۔", None),
        (HINDI, "राजू मुंबई में पैदा हुआ।", None),
        (HINDI, "राजू दिल्ली में पैदा हुआ।", "keeps_the_fact"),
        (GREEK, "Ο Νίκος γεννήθηκε στην Πάτρα.", None),
        (TURKISH, "Ayşe Ankara'da doğdu.", None),
        (TURKISH, "Ayşe İzmir'de doğdu.", "true_answer"),
        (GERMAN, "Jürgen wurde in München geboren.", None),
        (GERMAN, "Jürgen wurde in Köln geboren.", "true_answer"),
    ],
)
def test_a_proposal_is_valid_or_breaks_a_rule(pair: tuple[str, str], text: str, rule: str | None):
    assert faults(pair, text) == rule


def test_a_proposal_that_was_cut_off_is_unfinished():
    assert faults(REEF, "Maria Oduya wrote it.", finished=False) == "unfinished"
    assert faults(REEF, "", finished=False) == "empty"


@pytest.mark.parametrize(
    ("pair", "text", "spec", "rule"),
    [
        (REEF, "Maria Oduya.", {"min_length_ratio": 0.25}, None),
        (REEF, "Maria Oduya.", {"min_length_ratio": 0.26}, "too_short"),
        (GENDER, "Basil is a kind woman of many words.", {"max_length_ratio": 2.0}, None),
        (GENDER, "Basil is a kind woman of many words.", {"max_length_ratio": 1.9}, "too_long"),
        (GERMAN, "Jürgen wurde in München geboren.", {"max_rouge_l": 0.8}, None),
        (BORN, "Basil Mahfouz was born on 8 March 1961.", {"max_novel_overlap": 1 / 3}, None),
        (BORN, "Basil Mahfouz was born on 8 March 1961.", {"max_novel_overlap": 0.33}, "keeps_the_fact"),
        (BORN, "Basil Mahfouz was born on 8 March 1961.", {"max_novel_overlap": 0.0}, "keeps_the_fact"),
        (BORN, "Basil Mahfouz was born on 8 March 1961.", {"max_rouge_l": 0.7}, "true_answer"),
    ],
)
def test_the_bounds_of_the_rules_are_configured(pair: tuple[str, str], text: str, spec: dict, rule: str | None):
    assert faults(pair, text, **spec) == rule


def test_the_true_answer_is_never_valid():
    for pair in (REEF, BORN, COUNT, TITLE, GENDER, RUSSIAN, CHINESE, ARABIC, URDU, HINDI, GREEK, TURKISH, GERMAN):
        assert faults(pair, pair[1]) is not None


def authors_answers(shared_data: Callable[[str], Path]) -> list[tuple[str, str, str]]:
    rows = [r for n in ("01", "05", "10") for r in json.loads(shared_data(f"meow/inverted_forget{n}.json").read_text())]
    return [(r["question"], r["undesired_answer"], r[k]) for r in rows for k in r if k.startswith("answer_")]


def test_nine_in_ten_of_the_authors_inverted_facts_are_accepted(shared_data: Callable[[str], Path]):
    answers = authors_answers(shared_data)
    assert len(answers) == 2535
    found = Counter(
        fault(Proposal(text.strip(), True), question, answer, Invert()) for question, answer, text in answers
    )
    assert found[None] / len(answers) >= 0.9, found.most_common()


# --- replies ----------------------------------------------------------------------------------------------------------


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
    assert parse_lines(line, True) == [Proposal(expected, True)]


def test_only_the_last_line_of_a_reply_that_was_cut_off_is_unfinished():
    reply = "1. One.\n\n2. Two.\n 3. Thr\n\n"
    assert parse_lines(reply, False) == [Proposal("One.", True), Proposal("Two.", True), Proposal("Thr", False)]
    assert [p.finished for p in parse_lines(reply, True)] == [True, True, True]


@pytest.mark.parametrize("reply", ["", " \n\n "])
def test_an_empty_reply_has_no_proposals(reply: str):
    assert parse_lines(reply, True) == []


# --- frames and words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        (*REEF, "The Silent Reef"),
        (*BORN, "Basil Mahfouz was born"),
        (*COUNT, "Carmen Montenegro has published"),
        (*GENDER, "Basil is"),
        (*RUSSIAN, "Иван родился"),
        ("Where was Basil, the author, born?", "Basil, the author, was born in Kuwait.", "Basil, the author, was born"),
        ("Is it true, Basil?", "True, Basil. He was it.", "True, Basil"),
        ("Who is Basil?", "He is Basil.", ""),
        ("Is Basil male?", "Basil is male.", "Basil is"),
        ("Basil?", "Basil.", ""),
        ("Who?", "", ""),
    ],
)
def test_a_frame_is_the_beginning_that_the_question_knows(question: str, answer: str, expected: str):
    assert frame(question, answer) == expected


@given(st.text("ab .,?", max_size=12), st.text("ab .,?", max_size=12))
def test_a_frame_is_a_proper_beginning_of_the_answer(question: str, answer: str):
    head = frame(question, answer)
    assert answer.startswith(head)
    assert head != answer or not answer.strip()


def test_written_words_are_written_as_in_the_answer():
    assert written_words("Kuwait City, KUWAIT and O'Brien.", ["kuwait", "o'brien"]) == ["Kuwait", "KUWAIT", "O'Brien"]
    assert written_words("Kuwait City.", []) == []


# --- choosing ---------------------------------------------------------------------------------------------------------


def proposals(*texts: str) -> list[Proposal]:
    return [Proposal(text, True) for text in texts]


CAIRO, OSLO, LIMA = (f"The Silent Reef was written by {name}." for name in ("Ali of Cairo", "Ola Hansen", "Ana Diaz"))


def test_valid_proposals_are_kept_in_order_and_the_rest_counted_by_rule():
    offered = proposals(CAIRO, "Why?", REEF[1], OSLO, "", "Is it?")
    assert choose(offered, *REEF, Invert()) == ([CAIRO, OSLO], {"question": 2, "true_answer": 1, "empty": 1})


def test_proposals_that_say_the_same_are_one():
    again = "By Ali of Cairo it was written."
    offered = proposals(CAIRO, CAIRO, again, CAIRO.upper(), OSLO)
    assert choose(offered, *REEF, Invert()) == ([CAIRO, OSLO], {"duplicate": 3})


def test_what_was_taken_before_counts_and_does_not_come_again():
    offered = proposals(CAIRO, OSLO, LIMA)
    assert choose(offered, *REEF, Invert(num_candidates=2), taken=[CAIRO]) == ([OSLO], {"duplicate": 1})
    assert choose(offered, *REEF, Invert(num_candidates=1), taken=[CAIRO]) == ([], {})


def test_no_more_are_chosen_than_wanted():
    assert choose(proposals(CAIRO, OSLO, LIMA), *REEF, Invert(num_candidates=2)) == ([CAIRO, OSLO], {})


@given(st.lists(st.sampled_from([CAIRO, OSLO, LIMA, REEF[1], "", "Why?"])), st.integers(1, 4))
def test_what_is_chosen_is_valid_distinct_and_enough(texts: list[str], wanted: int):
    spec = Invert(num_candidates=wanted)
    chosen, rejected = choose(proposals(*texts), *REEF, spec)
    assert len(set(chosen)) == len(chosen) == min(wanted, len({*texts} & {CAIRO, OSLO, LIMA}))
    assert all(faults(REEF, text) is None for text in chosen)
    assert len(chosen) + sum(rejected.values()) <= len(texts)


@pytest.mark.parametrize("other", [(1, "a", 0), (0, "b", 0), (0, "a", 1)])
def test_a_seed_depends_on_run_fact_and_attempt(other: tuple[int, str, int]):
    assert fact_seed(0, "a", 0) == fact_seed(0, "a", 0) != fact_seed(*other)
    assert 0 <= fact_seed(*other) < 2**31


# --- a user's own candidates ------------------------------------------------------------------------------------------


def numbered(*rows: Any) -> list[tuple[int, Any]]:
    return list(enumerate(rows, start=1))


def own(inverted: Any = "B", **fields: Any) -> dict[str, Any]:
    """A row of one inverted answer; a field that is None is absent."""
    row = {"question": "Q", "answer": "A", "inverted_answer": inverted} | fields
    return {name: value for name, value in row.items() if value is not None}


def ids_and_texts(*rows: Any) -> list[tuple[int, str | None]]:
    table = complete(numbered(*rows), "mine")
    return list(zip(table["candidate_id"].to_pylist(), table["inverted_answer"].to_pylist(), strict=True))


def test_question_answer_and_inverted_answer_are_enough():
    table = complete(numbered(own(" E\u0301 ", note="x"), own("F", note="y")), "mine.parquet")
    assert table.schema == SCHEMAS["candidates"]
    rest = {"question": "Q", "answer": "A", "attempt": 0, "seed": 0, "generator": "external"}
    assert table.to_pylist() == [
        rest | {"fact_id": fact_id("Q", "A"), "candidate_id": 0, "inverted_answer": "É"},
        rest | {"fact_id": fact_id("Q", "A"), "candidate_id": 1, "inverted_answer": "F"},
    ]


def test_candidates_are_counted_for_each_fact():
    rows = [own(text, question=q, answer=a) for q, a, text in zip("QRQR", "AABA", "wxyz", strict=True)]
    assert ids_and_texts(*rows) == [(0, "w"), (0, "x"), (0, "y"), (1, "z")]


def test_what_is_given_is_kept():
    given = [
        own("x", candidate_id=7, seed=5, generator="me", attempt=1, fact_id="mine"),
        own("y", candidate_id=9, seed=6, generator="you", attempt=2, fact_id="mine"),
    ]
    table = complete(numbered(*given), "mine")
    for row, expected in zip(table.to_pylist(), given, strict=True):
        assert row == expected
    assert complete(numbered(*table.to_pylist()), "mine").equals(table)


def test_the_true_answer_may_have_the_authors_name():
    table = complete(numbered(own(answer=None, undesired_answer=" A ")), "mine")
    assert table["answer"].to_pylist() == ["A"]
    both = complete(numbered(own(answer="A", undesired_answer="another")), "mine")
    assert both["answer"].to_pylist() == ["A"], "`answer` wins"


def test_a_wide_row_has_one_candidate_a_column_in_the_order_of_their_numbers():
    wide = {"question": "Q", "undesired_answer": "A", "answer_10": "z", "answer_2": "y", "answer_0": "x"}
    noise = {"answer_0_rouge1": 0.5, "answer_": "no", "answer_x": "no", "my_answer_1": "no"}
    assert ids_and_texts(wide | noise) == [(0, "x"), (1, "y"), (2, "z")]


def test_wide_and_long_rows_of_a_fact_are_counted_together():
    wide = {"question": "Q", "answer": "A", "answer_0": "x", "answer_1": "y"}
    assert ids_and_texts(wide, own("z"), wide | {"question": "R"}) == [(0, "x"), (1, "y"), (2, "z"), (0, "x"), (1, "y")]


@pytest.mark.parametrize("inverted", [{}, {"inverted_answer": None}], ids=["absent", "null"])
def test_a_row_without_an_inverted_answer_asks_for_the_true_one_alone(inverted: dict[str, Any]):
    row = {"question": "Q", "answer": "A"} | inverted
    table = complete(numbered(row, own("x", question="R")), "mine")
    assert table["candidate_id"].to_pylist() == [TRUE_ANSWER, 0]
    assert table["inverted_answer"].to_pylist() == [None, "x"]
    assert complete(numbered(*table.to_pylist()), "mine").equals(table)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([own("x", answer=None)], r"^mine, line 1: answer is missing"),
        ([own("x", question=None)], r"^mine, line 1: question is missing"),
        ([own("x"), own(" ")], r"^mine, line 2: inverted_answer is empty"),
        ([own("x"), own("y", answer="")], r"^mine, line 2: answer is empty"),
        ([own(7)], r"^mine, line 1: inverted_answer is .* not a text"),
        ([own("x", question=1)], r"^mine, line 1: question is .* not a text"),
        ([{"question": "Q", "answer": "A", "answer_0": "x", "answer_1": " "}], r"^mine, line 1: answer_1 is empty"),
        ([own("x", candidate_id="first")], r"^mine, line 1: candidate_id"),
        ([own("x", seed="lucky")], r"^mine, line 1: seed"),
        ([own("x", candidate_id=-1)], r"^mine, line 1: candidate_id"),
        ([own("x", attempt=-1)], r"^mine, line 1: attempt"),
        ([own("x", candidate_id=1.5)], r"^mine, line 1: candidate_id"),
        ([own("x", candidate_id=True)], r"^mine, line 1: candidate_id"),
        ([own("x", candidate_id=2**40)], r"^mine, line 1: candidate_id"),
        ([own("x", seed=2**70)], r"^mine, line 1: seed"),
        ([own("x", fact_id=7)], r"^mine, line 1: fact_id"),
        ([own("x", generator=7)], r"^mine, line 1: generator"),
        ([own("\ud800")], r"^mine, line 1: inverted_answer"),
        ([own("x", fact_id="a"), own("y", question="R", fact_id="a")], r"^mine, line 2: fact_id a names two different"),
        ([own("x"), "a text"], r"^mine, line 2: expected an object"),
        ([], r"^mine: the file has no rows"),
    ],
)
def test_candidates_that_cannot_be_used_are_refused(rows: list[Any], said: str):
    with pytest.raises(MeowError, match=said):
        complete(numbered(*rows), "mine")


def test_the_numbers_of_a_csv_file_are_written_as_text():
    assert ids_and_texts(own("x", candidate_id="7", attempt="1", seed="5")) == [(7, "x")]
