"""Rewordings of questions: the rules that they keep, the frames, and the steps of an actor."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Paraphrases
from meow_ray.engines import Completion
from meow_ray.models.text import words
from meow_ray.stages.invert.generators import Ask
from meow_ray.stages.invert.parsing import parse_questions
from meow_ray.stages.invert.rules import Fact, Proposal
from meow_ray.stages.paraphrases.frames import ENGLISH_FRAMES, FORMAT_FRAMES, framed, is_english
from meow_ray.stages.paraphrases.rules import fault, generator_fault
from meow_ray.stages.paraphrases.steps import ParaphraseSteps

BORN = Fact("When was Basil Mahfouz born?", "Basil Mahfouz was born on 8 September 1956.")
REEF = Fact("Who wrote The Silent Reef in 1987?", "Jaime Vasquez wrote it in three months.")


def reason(text: str, fact: Fact = BORN, **spec: Any) -> str | None:
    taken = {tuple(words(fact.question))}
    return fault(Proposal(text, finished=True), fact, Paraphrases(**spec), taken)


# --- rules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "On which day was Basil Mahfouz born?",
        "What is Basil Mahfouz's date of birth?",
        "Could you tell me: When was Basil Mahfouz born?",
    ],
)
def test_a_rewording_that_keeps_the_values_is_valid(text: str):
    assert reason(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Tell me the birthday of Basil Mahfouz.", "statement"),
        ("Mahfouz?", "too_short"),
        ("When was " + "really " * 15 + "Basil Mahfouz born?", "too_long"),
        ("When was Basil born?", "loses_value"),
        ("When was the author born?", "loses_value"),
        ("Was Basil Mahfouz born in September?", "says_answer"),
        ("Was Basil Mahfouz born in 1956?", "says_answer"),
        ("Was Basil Mahfouz born on 8/9/1956?", "says_answer"),
        ("when was BASIL MAHFOUZ born", "statement"),
        ("when was BASIL MAHFOUZ born??", "duplicate"),
    ],
)
def test_a_rewording_is_rejected_with_the_rule_that_it_breaks(text: str, expected: str):
    assert reason(text) == expected


def test_numbers_and_titles_of_the_question_are_kept():
    assert reason("Which author wrote The Silent Reef in 1987?", REEF) is None
    assert reason("Which author wrote The Silent Reef?", REEF) == "loses_value"
    assert reason("Which author wrote The Silent in 1987?", REEF) == "loses_value"
    assert reason("Which Vasquez wrote The Silent Reef in 1987?", REEF) == "says_answer"


def test_a_name_in_a_script_without_capital_letters_is_kept():
    fact = Fact("王小明在哪里出生？", "王小明出生于上海。")
    assert reason("请问王小明的出生地是哪里？", fact) is None
    assert reason("请问他在哪里出生的呢？", fact) == "loses_value"
    assert reason("王小明是在上海出生的吗？", fact) == "says_answer"


def test_the_length_is_bounded_in_words_of_the_question():
    assert reason("Basil Mahfouz?", min_length_ratio=0.4) is None
    assert reason("Basil Mahfouz?", min_length_ratio=0.5) == "too_short"
    long = "When exactly was Basil Mahfouz born please?"
    assert reason(long, max_length_ratio=1.4) is None
    assert reason(long, max_length_ratio=1.3) == "too_long"


@pytest.mark.parametrize(
    ("text", "finished", "expected"),
    [
        ("When did Basil Mahfouz come into the", False, "unfinished"),
        ("", True, "empty"),
        ("As an AI, may I ask when Basil Mahfouz was born?", True, "refusal"),
        ("Here are two wordings for Basil Mahfouz?", True, "meta"),
        ("Basil Basil Basil Mahfouz born?", True, "loop"),
        ("When did Basil Mahfouz enter the world?", True, None),
    ],
)
def test_what_a_generator_writes_keeps_the_rules_of_inverted_facts(
    text: str, finished: bool, expected: str | None
):
    assert generator_fault(Proposal(text, finished), BORN) == expected


def test_a_rule_that_the_question_breaks_itself_does_not_count():
    fact = Fact("Which note is 'not available' on Basil's list?", "Basil's list lacks C.")
    assert generator_fault(Proposal("What is not available on Basil's list?", True), fact) is None
    assert generator_fault(Proposal("What is not available to Basil Mahfouz?", True), BORN) == (
        "refusal"
    )


# --- frames -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where was Basil born?", True),
        ("In which city did Basil live?", True),
        ("Name the mother of the author.", False),
        ("¿Quién escribió The Hobbit?", False),
        ("Was war das Amt, in dem er an der Wand hing?", False),
        ("In welke stad is de zoon of dochter geboren?", False),
        ("Где родился Иван?", False),
        ("王小明在哪里出生？", False),
        ("?", False),
    ],
)
def test_only_questions_with_english_words_are_english(question: str, expected: bool):
    assert is_english(question) == expected


def test_a_question_in_another_language_gets_marks_alone():
    assert list(framed("Где родился Иван?")) == [
        "Q: Где родился Иван?",
        "1. Где родился Иван?",
        "Q: Где родился Иван?\nA:",
        "Q1. Где родился Иван?",
    ]
    assert list(framed("Where was Ann born?"))[:2] == [
        "Could you tell me: Where was Ann born?",
        "I have a question. Where was Ann born?",
    ]


def test_braces_in_a_question_are_kept():
    assert next(framed("What is {x} in {0}?")) == "Could you tell me: What is {x} in {0}?"


def test_all_frames_of_a_question_have_different_words():
    for question in ("Where was Ann born?", "Где родился Иван?"):
        texts = list(framed(question))
        assert len({tuple(words(text)) for text in [question, *texts]}) == 1 + len(texts)
    assert len(list(framed("Where?"))) == len(ENGLISH_FRAMES) + len(FORMAT_FRAMES)


# --- replies ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        '{"questions": ["Where is Ann from?", "In 2020, who?"]}',
        '["Where is Ann from?", "In 2020, who?"]',
        '<think>easy</think>```json\n{"questions": ["Where is Ann from?", "In 2020, who?"]}\n```',
        '1. "Where is Ann from?"\n2. In 2020, who?',
    ],
)
def test_questions_are_read_from_json_and_from_lists(reply: str):
    texts = [proposal.text for proposal in parse_questions(reply, True, "Where was Ann born?")]
    assert texts == ["Where is Ann from?", "In 2020, who?"]


def test_a_final_stop_and_a_number_in_the_question_stay():
    question = "Capital of Peru in 2020"
    proposals = parse_questions('["In 2020, what was the capital? Peru."]', True, question)
    assert [proposal.text for proposal in proposals] == ["In 2020, what was the capital? Peru."]


# --- steps --------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A generator whose replies are given by the number of the message."""

    replies: Sequence[list[Completion] | None]
    asks: list[Ask] = field(default_factory=list)
    styles: tuple[str, ...] = ("chat",)
    generated: int = 0
    left_out: tuple[str, ...] = ("seed",)

    def ask(self, asks: Sequence[Ask]) -> list[list[Completion] | None]:
        first = len(self.asks)
        self.asks += asks
        return list(self.replies[first : len(self.asks)])


def in_json(*texts: str) -> list[Completion]:
    return [Completion(json.dumps({"questions": texts}), finished=True)]


def reword(generator: Scripted | None, number: int = 2, **spec: Any) -> dict[str, Any]:
    batch = pa.table({"fact_id": ["a"], "question": [BORN.question], "answer": [BORN.answer]})
    rows = ParaphraseSteps(Paraphrases(**spec), number)(generator, batch).to_pylist()
    result: dict[str, Any] = rows[0]
    return result


def wordings(row: dict[str, Any]) -> list[tuple[str, str]]:
    return [(rewording["source"], rewording["question"]) for rewording in row["rewordings"]]


def test_the_generator_comes_before_the_frames():
    generator = Scripted(
        [
            in_json("On which day was Basil Mahfouz born?", "When was he born?"),
            in_json("Was Basil Mahfouz born in 1956?"),
        ]
    )
    row = reword(generator)
    assert wordings(row) == [
        ("generator", "On which day was Basil Mahfouz born?"),
        ("rule", "Could you tell me: When was Basil Mahfouz born?"),
    ]
    assert [(r["source"], r["attempt"], r["reason"]) for r in row["rejects"]] == [
        ("generator", 0, "loses_value"),
        ("generator", 1, "says_answer"),
    ]
    assert row["left_out"] == ["seed"]
    assert [ask.sampling.max_new_tokens for ask in generator.asks] == [4 * 96, 3 * 96]
    assert "Write 4 other wordings" in generator.asks[0].text
    assert BORN.answer not in generator.asks[0].text
    assert generator.asks[0].sampling.seed != generator.asks[1].sampling.seed


def test_a_question_with_enough_rewordings_is_asked_about_once():
    texts = [f"On which {unit} was Basil Mahfouz born?" for unit in ("day", "date", "morning")]
    generator = Scripted([in_json(*texts)])
    row = reword(generator)
    assert wordings(row) == [("generator", text) for text in texts[:2]]
    assert row["rejects"] == []


def test_replies_without_a_question_are_named():
    generator = Scripted([None, [Completion("<think>hm", finished=False)]])
    row = reword(generator, sources=["generator"])
    assert row["rewordings"] == []
    assert [r["reason"] for r in row["rejects"]] == ["prompt_too_long", "only_reasoning"]


def test_without_a_generator_the_frames_reword():
    assert wordings(reword(None, number=3)) == [
        ("rule", frame.format(question=BORN.question)) for frame in ENGLISH_FRAMES[:3]
    ]
    assert wordings(reword(Scripted([]), sources=["rule"])) == wordings(reword(None))


@given(
    st.lists(st.text("ab Qq?.1 \n", max_size=30), max_size=6),
    st.sampled_from(["Where was Ann born?", "Где родился Иван?", "Ann?", "Why 3 of 12?"]),
    st.integers(1, 5),
)
def test_all_rewordings_keep_the_rules(replies: list[str], question: str, number: int):
    batch = pa.table({"fact_id": ["a"], "question": [question], "answer": ["In Lima, 1956."]})
    generator = Scripted([in_json(*replies)] * 2)
    rows = ParaphraseSteps(Paraphrases(), number)(generator, batch).to_pylist()
    texts = [rewording["question"] for rewording in rows[0]["rewordings"]]
    assert len(texts) <= number
    all_words = [tuple(words(text)) for text in [question, *texts]]
    assert len(set(all_words)) == len(all_words)
    assert not any({"lima", "1956"} & set(row) for row in all_words)
    assert all("Ann" in text for text in texts if "Ann" in question)
