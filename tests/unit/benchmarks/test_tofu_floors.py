"""Tests of the distance from the floors that `benchmarks.tofu floors` prints."""

import math

import pytest

from benchmarks.tofu_floors import Distances, distance, print_distances


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


def test_the_table_tells_how_well_the_generator_predicts_what_is_needed(
    capsys: pytest.CaptureFixture[str],
):
    print_distances({"a": Distances(1.0, 0.0), "b": Distances(3.0, 2.0), "c": Distances(5.0, 4.0)})
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:5]]
    assert [cell[2] for cell in cells] == ["3.000", "2.000", "1.000"]
    assert [cell[4] for cell in cells] == ["2.000", "2.000", "0.000"]
    assert lines[-1].endswith("1.000")


def _odds(log_prob: float) -> float:
    return log_prob - math.log(1 - math.exp(log_prob))
