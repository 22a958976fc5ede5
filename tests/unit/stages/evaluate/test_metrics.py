"""Metrics of single examples on hand-computed cases, and bootstrap intervals."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.evaluate.metrics import (
    Interval,
    bleu,
    leak,
    loss,
    mean_interval,
    probability,
    rep3,
    rougeL_recall,
    score_replies,
    states,
)

BORN = ("Where was Basil born?", "Basil was born in Kuwait City.")


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([1.0], 1.0),
        ([0.25], 0.25),
        ([0.5, 0.125], 0.25),
        ([1.0, 1.0, 0.001], 0.1),
        ([0.2] * 7, 0.2),
    ],
)
def test_probability_is_the_geometric_mean_over_the_tokens(
    probabilities: list[float], expected: float
):
    log_probs = [math.log(p) for p in probabilities]
    assert probability(log_probs) == pytest.approx(expected)
    assert loss(log_probs) == pytest.approx(-math.log(expected))


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ("Basil was born in Kuwait City.", 1.0),
        ("He was born in Cairo City", 4 / 6),
        ("City Kuwait", 1 / 6),
        ("", 0.0),
    ],
)
def test_rouge_l_recall_is_the_share_of_the_answer_in_the_reply_in_order(
    generated: str, expected: float
):
    assert rougeL_recall([BORN[1]], [generated]) == [pytest.approx(expected)]


@pytest.mark.parametrize(
    ("question", "answer", "generated", "expected"),
    [
        (*BORN, "In Kuwait City!", 1.0),
        (*BORN, "He was born in New York City.", 1 / 2),
        (*BORN, "Basil was born in Cairo.", 0.0),
        (*BORN, "", 0.0),
        ("Is Basil male?", "Basil is male.", "Basil is male.", None),
    ],
)
def test_leak_is_the_share_of_novel_words_in_the_reply(
    question: str, answer: str, generated: str, expected: float | None
):
    assert leak(question, answer, generated) == expected


@pytest.mark.parametrize(
    ("inverted", "generated", "expected"),
    [
        (["Basil was born in Cairo."], "Basil was born in Cairo.", 1.0),
        (["Basil was born in Cairo, Egypt."], "It was Cairo.", 1.0),  # half of the inverted words
        (["Basil was born in Cairo, Upper Egypt."], "It was Cairo.", 0.0),  # a third of them
        (["Basil was born in Oslo.", "Basil was born in Cairo."], "It was Cairo.", 1.0),
        (
            ["Basil was born in Cairo, Egypt."],
            "Kuwait or Cairo.",
            0.0,
        ),  # half of either: not more than of the truth
        (
            ["Basil was born in Cairo."],
            "Kuwait or Cairo.",
            1.0,
        ),  # all of the inverted, half of the true
        (["Basil was born in Cairo."], "Kuwait City or Cairo.", 0.0),
        (["Basil was born in Cairo."], "Basil was born in Kuwait City.", 0.0),
        (["Basil was born in Cairo."], "I do not know.", 0.0),
        (
            ["Basil was born in Kuwait."],
            "Basil was born in Kuwait.",
            0.0,
        ),  # no word that is not in the truth
        ([], "Cairo", 0.0),
    ],
)
def test_an_answer_states_an_inverted_fact_or_not(
    inverted: list[str], generated: str, expected: float
):
    assert states(*BORN, inverted, generated) == expected


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ("", 0.0),
        ("one two", 0.0),
        ("one two three four", 0.0),
        ("no no no no", 1 / 2),  # two trigrams, one distinct
        ("a b c a b c", 1 / 4),  # abc bca cab abc
        ("A b c. a B C!", 1 / 4),
        ("la " * 12, 9 / 10),
    ],
)
def test_rep3_is_the_share_of_repeated_trigrams(generated: str, expected: float):
    assert rep3(generated) == pytest.approx(expected)


# --- intervals ----------------------------------------------------------------------------------


def test_the_interval_of_two_values_is_their_range():
    # a resample is (0, 0), (0, 1), (1, 0) or (1, 1): a quarter of the means is 0, a quarter is 1
    assert mean_interval([0.0, 1.0], 1000, 0) == Interval(0.5, 0.0, 1.0)


def test_a_single_value_has_no_interval():
    assert mean_interval([0.25], 100, 0) == Interval(0.25, None, None)


@pytest.mark.parametrize("values", [[0.25, 0.25], [0.25] * 50])
def test_equal_values_have_an_interval_of_width_zero(values: list[float]):
    assert mean_interval(values, 100, 0) == Interval(0.25, 0.25, 0.25)


def test_a_bootstrap_interval_is_near_the_normal_one():
    values = [i / 100 for i in range(101)]
    interval = mean_interval(values, 2000, 0)
    half = 1.96 * (sum((v - 0.5) ** 2 for v in values) / 101) ** 0.5 / 101**0.5
    assert interval.value == pytest.approx(0.5)
    assert interval.low == pytest.approx(0.5 - half, abs=0.01)
    assert interval.high == pytest.approx(0.5 + half, abs=0.01)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.integers(0, 9))
def test_an_interval_is_within_the_data_and_depends_on_the_seed_alone(
    values: list[float], seed: int
):
    interval = mean_interval(values, 50, seed)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
    assert interval.value == pytest.approx(math.fsum(values) / len(values), abs=1e-9)
    assert interval == mean_interval(values, 50, seed)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float):
    with pytest.raises(ValueError, match="a value is NaN or infinite"):
        mean_interval([0.5, bad], 100, 0)


# --- replies ------------------------------------------------------------------------------------


def reply(generated: str, suite: str = "forget", **values: Any) -> dict[str, Any]:
    row = {
        "suite": suite,
        "question": BORN[0],
        "start": "",
        "answer": BORN[1],
        "generated": generated,
        "scored": True,
    }
    return row | values


def test_a_reply_is_compared_with_the_true_answer():
    scores = score_replies(
        [reply("It was Cairo."), reply("Kuwait Kuwait Kuwait Kuwait", "retain")], "text"
    )
    assert scores == [
        {"rougeL_recall": pytest.approx(1 / 6), "leak": 0.0, "rep3": 0.0},
        {"rougeL_recall": pytest.approx(1 / 6), "leak": 0.5, "rep3": 0.5},
    ]


def test_the_beginning_that_an_attack_sets_is_no_leak():
    row = reply(
        "Kuwait City.",
        "forget_prefix50",
        start="Basil was born in Kuwait",
        answer=" City.",
        scored=False,
    )
    assert score_replies([row], "text") == [{"rougeL_recall": 1.0, "leak": 1.0}]
    row["generated"] = "Kuwait again"
    assert score_replies([row], "text") == [{"rougeL_recall": 0.0, "leak": 0.0}]


def test_a_passage_has_bleu_and_no_leak():
    row = reply(
        "the cat sat on the mat", "text", question="Yesterday", answer="the cat sat on the mat"
    )
    assert score_replies([row], "text") == [
        {"rougeL_recall": 1.0, "bleu": pytest.approx(1.0), "rep3": 0.0}
    ]
    assert bleu("the cat sat on the mat", "a dog ran") < 0.1
