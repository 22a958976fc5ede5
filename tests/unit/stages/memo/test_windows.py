"""The character windows of MEMO: where questions and answers are cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Memo
from meow_ray.stages.memo.score import windows

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
STRIDE = st.integers(1, 9)


def test_suffix_windows_cut_the_answer_at_1_6_11():
    cuts = windows("Who?", "She wrote it.", Memo())
    assert [(w.prompt, w.label) for w in cuts] == [
        ("Who? S", "he wrote it."),
        ("Who? She wr", "ote it."),
        ("Who? She wrote i", "t."),
    ]


def test_prefix_windows_cut_the_question_and_leave_the_answer_to_the_label():
    cuts = windows("Who wrote?", "She.", Memo(mode="prefix"))
    assert [(w.prompt, w.label) for w in cuts] == [("W", "ho wrote? She."), ("Who wr", "ote? She.")]


def test_a_rendered_question_replaces_the_question_and_the_space():
    cuts = windows("Who?", "She.", Memo(stride=2), rendered="<user>Who?<assistant>")
    assert [(w.prompt, w.label) for w in cuts] == [
        ("<user>Who?<assistant>S", "he."),
        ("<user>Who?<assistant>She", "."),
    ]


@pytest.mark.parametrize(
    ("length", "expected"),
    [(0, []), (1, []), (2, [1]), (6, [1]), (7, [1, 6]), (11, [1, 6]), (12, [1, 6, 11])],
)
@pytest.mark.parametrize("mode", ["suffix", "prefix"])
def test_cuts_stop_before_the_end(mode: str, length: int, expected: list[int]):
    text = "abcdefghijkl"[:length]
    cuts = windows("", text, Memo()) if mode == "suffix" else windows(text, "", Memo(mode="prefix"))
    assert [len(w.prompt.strip()) for w in cuts] == expected


def test_an_answer_of_one_character_has_no_window():
    assert windows("Who?", "A", Memo()) == []


@given(TEXT, TEXT, STRIDE)
def test_prompt_and_label_of_a_suffix_window_are_the_pair(question: str, answer: str, stride: int):
    cuts = windows(question, answer, Memo(stride=stride))
    assert {w.prompt + w.label for w in cuts} <= {f"{question} {answer}"}
    assert [len(w.label) for w in cuts] == [len(answer) - k for k in range(1, len(answer), stride)]
    assert all(w.label for w in cuts)


@given(TEXT, TEXT, STRIDE)
def test_prompt_and_label_of_a_prefix_window_are_the_pair(question: str, answer: str, stride: int):
    cuts = windows(question, answer, Memo(stride=stride, mode="prefix"))
    assert {w.prompt + w.label for w in cuts} <= {f"{question} {answer}"}
    assert [len(w.prompt) for w in cuts] == list(range(1, len(question), stride))
