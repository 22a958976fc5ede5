"""The figures of `benchmarks.scoring`."""

import math

import pytest

from benchmarks.scoring import Scored, figures, largest_difference


def test_rates_are_medians_and_ratios_are_taken_within_a_round():
    rounds = [
        {"vllm": Scored(2.0, 100, [[-1.0]]), "transformers": Scored(1.0, 100, [[-1.5]])},
        {"vllm": Scored(4.0, 100, [[-1.0]]), "transformers": Scored(1.0, 100, [[-1.5]])},
        {"vllm": Scored(5.0, 100, [[-1.0]]), "transformers": Scored(5.0, 100, [[-1.5]])},
    ]
    result = figures(rounds)
    assert result["vllm_tokens_per_second"] == 25
    assert result["transformers_tokens_per_second"] == 100
    assert result["vllm_over_transformers"] == 0.5
    assert result["largest_difference"] == 0.5
    assert result["rounds"]["vllm_over_transformers"] == [0.5, 0.25, 1.0]


def test_a_token_without_a_prediction_is_not_compared():
    assert largest_difference([[math.nan, -1.0]], [[math.nan, -1.25]]) == 0.25
    with pytest.raises(ValueError, match="shorter"):
        largest_difference([[-1.0, -2.0]], [[-1.0]])
