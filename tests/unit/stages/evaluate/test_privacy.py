"""Membership inference on hand-computed cases, and against scikit-learn."""

import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from meow_ray.stages.evaluate import privacy
from meow_ray.stages.evaluate.metrics import Interval

LOGS = [-0.5, -4.0, -1.0, -2.0, -2.5]


def test_loss_and_zlib():
    assert privacy.loss_score(LOGS) == pytest.approx(-2.0)
    text = "an answer " * 20
    assert privacy.zlib_score(LOGS, text) == pytest.approx(-2.0 / len(zlib.compress(text.encode())))


def test_min_k_pp_standardises_each_position():
    # a uniform distribution over four tokens has mean -log 4 and no spread; over p = 1/2, 1/4, 1/4:
    mean = -1.5 * math.log(2)
    spread = math.sqrt(0.5 * math.log(2) ** 2 + 0.5 * (2 * math.log(2)) ** 2 - mean**2)
    score = privacy.min_k_pp_score(
        [math.log(0.5), math.log(0.25)], [mean, mean], [spread, spread], 0.5
    )
    assert score == pytest.approx((math.log(0.25) - mean) / spread)
    assert score == pytest.approx(-1.0)
    certain = privacy.min_k_pp_score([math.log(0.25)], [-math.log(4)], [0.0], 1.0)
    assert certain == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("members", "others", "expected"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([1, 3], [2, 4], 0.25),
        ([1, 1], [1, 1], 0.5),
        ([2], [1, 2], 0.75),
    ],
)
def test_auc_is_the_probability_that_a_member_scores_higher(
    members: list[float], others: list[float], expected: float
):
    assert privacy.auc(members, others) == pytest.approx(expected)


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_auc_and_tpr_are_those_of_scikit_learn(members: list[float], others: list[float]):
    labels, scores = [1] * len(members) + [0] * len(others), members + others
    assert privacy.auc(members, others) == pytest.approx(roc_auc_score(labels, scores))
    false_rates, true_rates, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert privacy.tpr_at(members, others, 0.1) == pytest.approx(
        true_rates[false_rates <= 0.1].max()
    )


def test_tpr_at_a_low_rate_allows_no_false_positive_among_few():
    assert privacy.tpr_at([5, 3, 1], [4, 2]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("auc", "retain_auc", "expected"),
    [(0.5, 0.5, 0.0), (1.0, 0.5, -100.0), (0.0, 0.5, 100.0), (0.6, 0.2, -50.0)],
)
def test_privleak_is_the_distance_of_the_auc_from_the_retain_models(
    auc: float, retain_auc: float, expected: float
):
    assert privacy.privleak(auc, retain_auc) == pytest.approx(expected)


def test_there_is_no_privleak_if_the_retain_models_auc_is_1():
    assert privacy.privleak(0.5, 1.0) is None


def test_an_interval_contains_the_value_and_depends_on_the_seed_alone():
    rng = np.random.default_rng(0)
    members, others = rng.normal(1, 1, 40), rng.normal(0, 1, 60)
    interval = privacy.attack_interval(privacy.auc, members, others, 200, 7)
    assert interval.value == privacy.auc(members, others)
    assert interval.low is not None
    assert interval.high is not None
    assert 0 < interval.high - interval.low < 0.3
    assert interval.low < interval.value < interval.high
    assert interval == privacy.attack_interval(privacy.auc, members, others, 200, 7)
    assert privacy.attack_interval(privacy.auc, [1.0], [0.0], 200, 7) == Interval(1.0, None, None)


@pytest.mark.parametrize(
    ("members", "others", "message"),
    [
        ([math.nan], [0.0], "a score is NaN or infinite"),
        ([0.0], [math.inf], "a score is NaN or infinite"),
        ([], [0.0], "membership inference needs members and non-members"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(
    members: list[float], others: list[float], message: str
):
    with pytest.raises(ValueError, match=message):
        privacy.attack_interval(privacy.auc, members, others, 10, 0)
