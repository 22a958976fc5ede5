import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.config import Memo
from meow_ray.memo import Score, score, windows
from meow_ray.text import ROUGE_TYPES, rouge

TEXT = st.text(st.characters(codec="utf-8"), max_size=40)
STRIDE = st.integers(1, 9)
LABELS, SAID = ["a b c d", "c d"], ["a b", "x"]
"""ROUGE-1 of the two windows: precision 1 and 0, recall 1/2 and 0, F1 2/3 and 0."""


# --- windows ----------------------------------------------------------------------------------------------------------


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


def test_a_rendered_question_replaces_the_question_and_the_blank():
    cuts = windows("Who?", "She.", Memo(stride=2), rendered="<user>Who?<assistant>")
    assert [(w.prompt, w.label) for w in cuts] == [("<user>Who?<assistant>S", "he."), ("<user>Who?<assistant>She", ".")]


@pytest.mark.parametrize(
    ("length", "expected"), [(0, []), (1, []), (2, [1]), (6, [1]), (7, [1, 6]), (11, [1, 6]), (12, [1, 6, 11])]
)
@pytest.mark.parametrize("mode", ["suffix", "prefix"])
def test_cuts_stop_before_the_end(mode: str, length: int, expected: list[int]):
    text = "abcdefghijkl"[:length]
    cuts = windows("", text, Memo()) if mode == "suffix" else windows(text, "", Memo(mode="prefix"))
    assert [len(w.prompt.strip()) for w in cuts] == expected


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


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("statistic", "first"), [("precision", 1.0), ("recall", 1 / 2), ("f1", 2 / 3)])
def test_memo_is_the_mean_of_the_chosen_statistic(statistic: str, first: float):
    found = score(LABELS, SAID, Memo(statistic=statistic))
    assert found.memo == found.rouge1 == found.rougeL == pytest.approx(first / 2)
    assert found.num_windows == 2


def test_the_rouge_of_memo_is_configured():
    labels, said = ["a b c d"], ["d c b a"]
    assert score(labels, said, Memo()).memo == 1.0
    assert score(labels, said, Memo(rouge="rouge2")).memo == 0.0
    assert score(labels, said, Memo(rouge="rougeL")) == Score(0.25, 1.0, 0.0, 0.25, 0.0, 1)


def test_cv_is_the_standard_deviation_over_the_mean():
    assert score(LABELS, SAID, Memo()).cv == pytest.approx(1.0)  # values 1 and 0: mean 1/2, deviation 1/2
    assert score(["a", "a"], ["a", "a"], Memo()).cv == 0.0
    assert score(["a b", "a b", "a b"], ["a b", "a b", "a x"], Memo()).cv == pytest.approx(2**0.5 / 5)


def test_cv_of_nothing_remembered_is_null():
    assert score(["a", "b"], ["x", "y"], Memo()) == Score(0.0, 0.0, 0.0, 0.0, None, 2)


def test_an_answer_too_short_for_a_window_has_nulls():
    assert windows("Who?", "A", Memo()) == []
    assert score([], [], Memo()) == Score(None, None, None, None, None, 0)


def test_a_memorised_answer_scores_1_from_any_cut():
    labels = [w.label for w in windows("Who?", "Basil Mahfouz Al-Kuwaiti wrote it.", Memo())]
    found = score(labels, labels, Memo())
    assert (found.memo, found.rouge2, found.rougeL, found.cv, found.num_windows) == (1.0, 6 / 7, 1.0, 0.0, 7)


# --- against the reference implementation -----------------------------------------------------------------------------


def check_against_rouge_score(pairs: list[tuple[str, str]]) -> None:
    module = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = module.RougeScorer(list(ROUGE_TYPES), use_stemmer=True)
    found = rouge([reference for reference, _ in pairs], [prediction for _, prediction in pairs])
    for (reference, prediction), result in zip(pairs, found, strict=True):
        for name, expected in scorer.score(reference, prediction).items():
            assert result[name] == pytest.approx((expected.precision, expected.recall, expected.fmeasure)), (
                name,
                reference,
                prediction,
            )


def test_rouge_equals_the_reference_on_real_text(shared_data: Callable[[str], Path]):
    lines = shared_data("tofu/forget10_perturbed.jsonl").read_text().splitlines()[::12]
    pairs = []
    for row in map(json.loads, lines):
        pairs += [(row["answer"], row["paraphrased_answer"]), (row["paraphrased_answer"], row["perturbed_answer"][0])]
        cuts = windows(row["question"], row["answer"], Memo(stride=29))
        pairs += [(w.label, row["answer"][: len(w.label)]) for w in cuts]
    assert len(pairs) >= 200
    check_against_rouge_score(pairs)


def test_rouge_equals_the_reference_on_odd_text():
    odd = [
        "",
        " ",
        "...",
        "naïve café",
        "Родился в Москве",
        "北京",
        "a-b_c d's",
        "running runner ran",
        "1,000.5 m²",
        "A",
    ]
    check_against_rouge_score([(a, b) for a in odd for b in odd])
