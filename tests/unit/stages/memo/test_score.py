"""The score of one answer: MEMO, its ROUGE columns and its variation over windows."""

import pytest

from meow_ray.config import Memo
from meow_ray.stages.memo.score import Score, score_answer, windows

LABELS = ["a b c d", "c d"]
CONTINUATIONS = ["a b", "x"]
"""ROUGE-1 of the two windows: precision 1 and 0, recall 1/2 and 0, F1 2/3 and 0."""


@pytest.mark.parametrize(
    ("statistic", "first"), [("precision", 1.0), ("recall", 1 / 2), ("f1", 2 / 3)]
)
def test_memo_is_the_mean_of_the_configured_statistic(statistic: str, first: float):
    score = score_answer(LABELS, CONTINUATIONS, Memo(statistic=statistic))
    assert score.memo == score.rouge1 == score.rougeL == pytest.approx(first / 2)
    assert score.num_windows == 2


def test_the_rouge_of_memo_is_configured():
    labels, continuations = ["a b c d"], ["d c b a"]
    assert score_answer(labels, continuations, Memo()).memo == 1.0
    assert score_answer(labels, continuations, Memo(rouge="rouge2")).memo == 0.0
    assert score_answer(labels, continuations, Memo(rouge="rougeL")) == Score(
        memo=0.25, rouge1=1.0, rouge2=0.0, rougeL=0.25, cv=0.0, num_windows=1
    )


@pytest.mark.parametrize(
    ("labels", "continuations", "expected"),
    [
        pytest.param(LABELS, CONTINUATIONS, 1.0, id="values 1 and 0, mean 1/2, deviation 1/2"),
        pytest.param(["a", "a"], ["a", "a"], 0.0, id="equal values"),
        pytest.param(["a b"] * 3, ["a b", "a b", "a x"], 2**0.5 / 5, id="values 1, 1 and 1/2"),
    ],
)
def test_cv_is_the_standard_deviation_over_the_mean(
    labels: list[str], continuations: list[str], expected: float
):
    assert score_answer(labels, continuations, Memo()).cv == pytest.approx(expected)


def test_cv_is_null_if_nothing_is_remembered():
    assert score_answer(["a", "b"], ["x", "y"], Memo()) == Score(
        memo=0.0, rouge1=0.0, rouge2=0.0, rougeL=0.0, cv=None, num_windows=2
    )


def test_an_answer_without_windows_has_nulls():
    assert score_answer([], [], Memo()) == Score(
        memo=None, rouge1=None, rouge2=None, rougeL=None, cv=None, num_windows=0
    )


def test_a_memorised_answer_scores_1_from_any_cut():
    labels = [w.label for w in windows("Who?", "Basil Mahfouz Al-Kuwaiti wrote it.", Memo())]
    # the last label is one word, which has no bigram
    assert score_answer(labels, labels, Memo()) == Score(
        memo=1.0, rouge1=1.0, rouge2=6 / 7, rougeL=1.0, cv=0.0, num_windows=7
    )
