"""Halves, limits, intervals and margins."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.audit.controls import split_halves, upper_limit
from meow_ray.stages.audit.intervals import (
    equivalence_margin,
    excess,
    generator,
    resampling_weights,
)


@given(st.sets(st.text("abc#12", min_size=1), min_size=2), st.integers(0, 3))
def test_halves_are_even_and_free_of_order(fact_ids, seed):
    ordered = sorted(fact_ids)
    halves = split_halves(ordered, seed)
    assert halves == split_halves(ordered[::-1], seed)
    assert sum(halves.values()) == math.floor(len(halves) / 2)


def test_twins_of_a_fact_stay_in_one_half():
    halves = split_halves([f"f{fact}#{twin}" for fact in range(10) for twin in range(4)], 0)
    for fact in range(10):
        assert len({halves[f"f{fact}#{twin}"] for twin in range(4)}) == 1


def test_halves_depend_on_the_seed():
    fact_ids = [f"f{at}" for at in range(40)]
    assert split_halves(fact_ids, 0) != split_halves(fact_ids, 1)


def test_limit_is_the_order_statistic_that_holds_the_level():
    assert upper_limit(range(1, 20), 0.05) == 19
    assert upper_limit(range(1, 40), 0.05) == 38
    assert upper_limit([0.0] * 99 + [1.0], 0.05) == 0
    # of 100 values and one more, all alike, the last exceeds the limit in at most 5 of 101 cases
    assert upper_limit(range(1, 101), 0.05) == 96


def test_limit_of_few_values_is_the_prediction_limit():
    # t with 2 degrees of freedom at 95 % is 2.92; mean 2, deviation 1, sqrt(1 + 1/3)
    assert upper_limit([1, 2, 3], 0.05) == pytest.approx(2 + 2.91999 * math.sqrt(4 / 3), rel=1e-4)
    assert upper_limit([0.5, 0.5], 0.05) == 0.5
    assert upper_limit([0.5], 0.05) == 0.5
    with pytest.raises(ValueError, match="at least one value"):
        upper_limit([], 0.05)


@pytest.mark.parametrize("n", [5, 19, 40, 100])
def test_limit_is_exceeded_in_at_most_5_percent(n):
    rng = np.random.default_rng(n)
    draws = rng.normal(size=(4000, n + 1))
    share = np.mean([row[-1] > upper_limit(row[:-1], 0.05) for row in draws])
    assert share <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    assert share > 0.02


def test_weights_draw_clusters_and_then_their_values():
    clusters = ["a", "b", "a", "c", "b", "a"]
    weights = resampling_weights(clusters, 4000, np.random.default_rng(0))
    assert weights.shape == (4000, 6)
    assert np.allclose(weights.sum(axis=1), 1)
    # brute force: three clusters of three, then as many values as the cluster has
    rng = np.random.default_rng(1)
    members = {name: [at for at, c in enumerate(clusters) if c == name] for name in "abc"}
    brute = np.zeros((4000, 6))
    for row in brute:
        for name in rng.choice([*"abc"], 3):
            for at in rng.choice(members[name], len(members[name])):
                row[at] += 1
        row /= row.sum()
    assert np.allclose(weights.mean(axis=0), brute.mean(axis=0), atol=0.02)
    assert np.allclose(np.cov(weights.T), np.cov(brute.T), atol=0.01)


def test_interval_is_wider_if_the_values_of_a_cluster_agree():
    values = np.asarray([float(at % 10 < 3) for at in range(80)])
    rng = np.random.default_rng(0)
    none, sole = np.zeros(1), np.ones((1000, 1))
    widths = []
    for clusters in ([f"{at}" for at in range(80)], [f"{at % 10}" for at in range(80)]):
        found = excess(values, resampling_weights(clusters, 1000, rng), none, sole)
        assert found.value == pytest.approx(0.3)
        widths.append(found.high - found.low)
    # the deviations of means over 80 and over 10 independent values
    assert widths[0] == pytest.approx(3.92 * math.sqrt(0.21 / 80), rel=0.15)
    assert widths[1] == pytest.approx(3.92 * math.sqrt(0.21 / 10), rel=0.15)


def test_margin_holds_for_groups_never_taught():
    rng = np.random.default_rng(0)
    clean = []
    for _ in range(100):
        control, ours = (rng.random((2, 100)) < 0.1).astype(float)
        weights = resampling_weights([str(at) for at in range(100)], 300, rng)
        others = resampling_weights([str(at) for at in range(100)], 300, rng)
        margin = equivalence_margin(control, weights, others, rng, pairs=100)
        clean.append(excess(ours, weights, control, others).high <= margin)
        assert excess(np.ones(100), weights, control, others).low > margin
    assert 0.85 <= np.mean(clean) <= 1


def test_generator_depends_on_seed_and_names_only():
    draws = [generator(*key).random() for key in ((0, "a", "b"), (0, "a", "b"), (1, "a", "b"))]
    assert draws[0] == draws[1] != draws[2]
    assert generator(0, "ab", "").random() != generator(0, "a", "b").random()
