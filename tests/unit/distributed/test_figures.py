"""Figures of a running stage: means and totals over several batches."""

import pytest

from meow_ray.distributed.figures import Figure


def test_means_add_up_by_their_counts():
    figure = Figure.mean(1.5, 3) + Figure.mean(0.5, 1)
    assert figure == Figure.mean(2.0, 4)
    assert figure.value == 0.5


def test_totals_add_up():
    figure = Figure.total(3) + Figure.total(4)
    assert figure == Figure.total(7)
    assert figure.value == 7.0


def test_a_mean_of_zeros_is_shown_but_not_a_mean_of_nothing():
    assert Figure.mean(0.0, 2).value == 0.0
    assert Figure.mean(0.0, 0).value is None


def test_a_total_is_shown_once_it_is_above_zero():
    assert Figure.total(0).value is None
    assert (Figure.total(0) + Figure.total(2)).value == 2.0


def test_a_mean_and_a_total_cannot_be_added():
    with pytest.raises(AssertionError):
        Figure.mean(1.0, 1) + Figure.total(1.0)
