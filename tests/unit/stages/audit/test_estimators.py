"""Estimators of extraction equal brute force on small cases."""

import math
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from meow_ray.stages.audit.estimators import (
    clopper_pearson,
    dkw_half_width,
    leak_at_k,
    leak_at_k_bounds,
)

shares = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 1.0]) | st.floats(0, 1)


@given(st.lists(shares, min_size=1, max_size=8), st.data())
def test_leak_at_k_is_the_mean_best_over_all_subsets(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    brute = np.mean([max(subset) for subset in combinations(scores, k)])
    assert leak_at_k(scores, k) == pytest.approx(brute)


def test_leak_at_k_is_unbiased():
    # all samples of 4 from a distribution on three values, weighted by their probability
    values, weights = (0.0, 0.5, 1.0), (0.6, 0.3, 0.1)
    for k in (1, 2, 3, 4):
        expected = sum(
            math.prod(weights[i] for i in drawn) * leak_at_k([values[i] for i in drawn], k)
            for drawn in product(range(3), repeat=4)
        )
        best = sum(
            math.prod(weights[i] for i in drawn) * max(values[i] for i in drawn)
            for drawn in product(range(3), repeat=k)
        )
        assert expected == pytest.approx(best)


def test_leak_at_k_stays_exact_for_many_samples():
    assert leak_at_k([0.0] * 9_999 + [1.0], 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(("scores", "k"), [([], 1), ([0.5], 0), ([0.5], 2), ([math.nan], 1)])
def test_leak_at_k_refuses(scores, k):
    with pytest.raises(ValueError, match="score"):
        leak_at_k(scores, k)


@given(st.lists(shares, min_size=1, max_size=30), st.integers(1, 40))
def test_bounds_hold_the_expected_best_of_the_empirical_distribution(scores, k):
    low, high = leak_at_k_bounds(scores, k)
    ordered = np.sort(scores)
    at = np.arange(len(scores) + 1) / len(scores)
    plug_in = float(ordered @ np.diff(at**k))
    assert 0 <= low <= plug_in + 1e-12
    assert plug_in - 1e-12 <= high <= 1


def test_bounds_by_hand():
    # one score of 0.25; half the width is above 1, so the bounds are the whole range
    assert leak_at_k_bounds([0.25], 1) == (0.0, 1.0)
    half = dkw_half_width(100)
    assert half == pytest.approx(math.sqrt(math.log(40) / 200))
    # F is 0 below 0.25 and 1 above; the band lifts it to `half` below and lowers it above
    low, high = leak_at_k_bounds([0.25] * 100, 2)
    assert low == pytest.approx(0.25 * (1 - half**2))
    assert high == pytest.approx(0.25 + 0.75 * (1 - (1 - half) ** 2))


def test_bounds_cover_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = leak_at_k_bounds(rng.random(50), 3)
        hits += low <= 0.75 <= high
    assert hits >= 190


def test_bounds_refuse_scores_outside_of_the_range():
    with pytest.raises(ValueError, match="outside of 0"):
        leak_at_k_bounds([1.5], 1)


@given(st.integers(1, 40), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None)
def test_clopper_pearson_inverts_the_binomial_tails(trials, data, level):
    successes = data.draw(st.integers(0, trials))
    low, high = clopper_pearson(successes, trials, level)
    tail = (1 - level) / 2
    if successes:
        assert binom.sf(successes - 1, trials, low) == pytest.approx(tail, rel=1e-6)
    else:
        assert low == 0
    if successes < trials:
        assert binom.cdf(successes, trials, high) == pytest.approx(tail, rel=1e-6)
    else:
        assert high == 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3)])
def test_clopper_pearson_refuses(successes, trials):
    with pytest.raises(ValueError, match="not possible"):
        clopper_pearson(successes, trials)
