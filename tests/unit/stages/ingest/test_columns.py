"""Question and answer of rows that other tools laid out."""

from typing import Any

import pytest

from meow_ray.stages.ingest.columns import Columns, Pair, advice, pair_in_layout, pair_of

USER = {"role": "user", "content": "Who?"}
ASSISTANT = {"role": "assistant", "content": "She."}
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": [{"role": "system", "content": ""}, USER, ASSISTANT]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "She."}]}]},
        {"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "She."}]},
        {"instruction": "Who?", "output": "She."},
        {"instruction": "Who?", "input": "", "output": "She.", "system": None, "history": []},
    ],
)
def test_a_chat_and_an_instruction_are_a_question_and_an_answer(record: dict[str, Any]):
    assert pair_in_layout(record) == Pair("Who?", "She.")


def test_the_input_of_an_instruction_is_the_end_of_the_question():
    record = {"instruction": "Name the author.", "input": "Émile", "output": "Rousseau"}
    assert pair_in_layout(record) == Pair("Name the author.\nÉmile", "Rousseau")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"messages": [SYSTEM, USER, ASSISTANT]}, "has a system message; set `target.system`"),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "has 4 messages; a fact is one message"),
        ({"messages": [ASSISTANT, USER]}, "has 2 messages; a fact is one message of the user"),
        ({"messages": [USER]}, "has 1 messages"),
        ({"messages": "Who?"}, "its messages are not a list of objects with a role and a text"),
        ({"messages": None}, "its messages are not a list"),
        ({"instruction": "q", "output": "a", "system": "s"}, "has a system prompt"),
        ({"instruction": "q", "output": "a", "history": [["q", "a"]]}, "has earlier turns"),
    ],
)
def test_what_is_more_than_a_question_and_an_answer_is_refused(record: dict[str, Any], fault: str):
    assert pair_in_layout(record).fault.startswith(fault)


def test_a_column_with_a_list_of_one_message_has_its_text():
    columns = Columns(["prompt"], ["chosen"])
    record = {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}
    assert pair_of(record, columns) == Pair("Who?", "She.")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ({"title", "paragraphs"}, "These are SQuAD's articles. Write one row for each question"),
        ({"prompt", "chosen", "rejected"}, "These are preference pairs."),
        ({"chosen", "rejected"}, "Write one row per fact, with its question and answer."),
        ({"id", "input", "output", "task"}, "`ingest.question_columns=[input]`"),
        ({"query", "answer", "level"}, "`ingest.question_columns=[query]`"),
        ({"prompt", "gt"}, "`ingest.answer_columns=[gt]`"),
        ({"Question", "Answer"}, "It has Answer, Question, but upper and lower case count."),
        ({"text"}, "These are passages."),
        (
            {"a secret", "b"},
            "Name yours in `ingest.question_columns` and `ingest.answer_columns`, or",
        ),
    ],
)
def test_the_advice_fits_the_columns_and_quotes_no_unknown_one(names: set[str], expected: str):
    text = advice(names, Columns())
    assert expected in text
    assert "secret" not in text
