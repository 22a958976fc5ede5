"""The number of samples that bring an answer equals brute force on small cases."""

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.memo.extraction import (
    extraction_probability,
    log_samples_to_extract,
    samples_to_extract,
)


@given(st.integers(1, 8), st.integers(1, 9))
def test_extraction_probability_counts_sequences(samples, tenths):
    # each reply is the answer with probability tenths / 10
    p = tenths / 10
    brute = sum(
        math.prod(p if hit else 1 - p for hit in hits)
        for hits in product((True, False), repeat=samples)
        if any(hits)
    )
    assert extraction_probability(math.log(p), samples) == pytest.approx(brute)


@given(st.floats(0.005, 0.999), st.floats(0.01, 0.99))
def test_fewest_samples_by_counting(p, probability):
    n = 1
    while extraction_probability(math.log(p), n) < probability:
        n += 1
    assert samples_to_extract(math.log(p), probability) == n


@given(st.floats(-1e6, -40), st.floats(0.01, 0.99))
def test_tiny_probabilities(log_prob, probability):
    log_samples = log_samples_to_extract(log_prob, probability)
    assert log_samples == pytest.approx(math.log(-math.log1p(-probability)) - log_prob)
    if log_samples > 710:
        assert samples_to_extract(log_prob, probability) == math.inf
    elif log_samples < 690:
        samples = samples_to_extract(log_prob, probability)
        assert isinstance(samples, float)  # a column of floats takes it
        assert extraction_probability(log_prob, int(samples)) == pytest.approx(probability)


def test_certain_and_impossible_answers():
    assert extraction_probability(0.0, 1) == 1
    assert samples_to_extract(0.0) == 1
    assert extraction_probability(-math.inf, 10**6) == 0
    assert samples_to_extract(-math.inf) == math.inf
    assert extraction_probability(math.log(0.5), 0) == 0


@pytest.mark.parametrize("log_prob", [0.1, math.nan])
def test_log_probabilities_above_zero_are_refused(log_prob):
    with pytest.raises(ValueError, match="at most 0"):
        samples_to_extract(log_prob)
    with pytest.raises(ValueError, match="at most 0"):
        extraction_probability(log_prob, 3)
