"""Tests of the distance from the floors that `benchmarks.tofu floors` prints."""

import math

import pytest

from benchmarks.tofu_floors import distance, print_distances


def test_the_distance_is_in_log_odds_and_by_rank():
    half, tenth = math.log(0.5), math.log(0.1)
    # 0.1 against 0.1, and 0.5 (log-odds 0) against 0.1 (log-odds -log 9)
    assert distance([half, tenth], [tenth, tenth]) == pytest.approx(math.log(9) / 2)
    assert distance([tenth, half], [tenth, half]) == pytest.approx(
        # the quantiles at 1/4 and 3/4 of the two floors
        (_odds(tenth) - _odds(0.75 * tenth + 0.25 * half)) / 2
        + (_odds(half) - _odds(0.25 * tenth + 0.75 * half)) / 2
    )


def test_a_certain_token_has_a_finite_distance():
    assert math.isfinite(distance([0.0], [-1.0]))


def test_the_table_has_the_mean_over_facts(capsys: pytest.CaptureFixture[str]):
    print_distances({"a": 1.0, "b": 3.0})
    assert "| 2       | 2.000" in capsys.readouterr().out


def _odds(log_prob: float) -> float:
    return log_prob - math.log(1 - math.exp(log_prob))
