"""Tests of the dates, numbers and names in a text."""

import pytest

from meow_ray.stages.invert.values import Date, Values


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("8 September 1956", [{Date(1956, 9, 8)}]),
        ("the 8th of September, 1956", [{Date(1956, 9, 8)}]),
        ("September 8th, 1956", [{Date(1956, 9, 8)}]),
        ("Sept. 8, 1956", [{Date(1956, 9, 8)}]),
        ("September 1956", [{Date(1956, 9)}]),
        ("in September", [{Date(None, 9)}]),
        ("8 September", [{Date(None, 9, 8)}]),
        ("1956-09-08", [{Date(1956, 9, 8)}]),
        ("08/09/1956", [{Date(1956, 9, 8), Date(1956, 8, 9)}]),
        ("23.09.1956", [{Date(1956, 9, 23)}]),
        ("09/23/1956", [{Date(1956, 9, 23)}]),
        ("in 1956", [{Date(1956)}]),
        ("nineteen fifty-six", [{Date(1956)}]),
        ("from 1956 to 1961", [{Date(1956)}, {Date(1961)}]),
        ("it may be", []),
    ],
)
def test_dates_may_lack_parts_and_may_have_two_readings(text: str, readings: list[set[Date]]):
    assert Values.of(text).dates == {frozenset(dates) for dates in readings}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("twelve novels", {12}),
        ("12 novels", {12}),
        ("two hundred and five", {205}),
        ("1,500,000 copies", {1500000}),
        ("3.5 km", {3.5}),
        ("١٢ كتابا", {12}),
        ("one of many", set()),
        ("on 8 September 1956", set()),
    ],
)
def test_numbers_are_read_in_digits_and_in_words(text: str, numbers: set[float]):
    assert Values.of(text).numbers == numbers


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("He met Ana Diaz in Lima.", {"ana", "diaz", "lima"}),
        ("Ana Diaz came. The sea rose.", {"diaz"}),
        ("It is Basil's.", {"basil"}),
        ("Он живёт в Москве.", {"москве"}),
        ("nothing here", set()),
    ],
)
def test_names_are_words_with_a_capital_inside_a_sentence(text: str, names: set[str]):
    assert Values.of(text).names == names


def test_dates_agree_if_all_parts_that_both_have_are_equal():
    assert Date(1956, 9, 8).agrees(Date(None, 9))
    assert not Date(1956, 9, 8).agrees(Date(1957, 9, 8))
    assert not Date(1956).agrees(Date(None, 9)), "they have nothing in common"
