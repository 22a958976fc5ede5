"""Texts about a fact as texts about its twin."""

import pytest

from meow_ray.stages.audit.transfer import carry_over

FACT = "Where was Ilse Vantrooy born in 1931?"
TWIN = "Where was Amber Collins born in 1954?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In which town was Ilse Vantrooy born?", "In which town was Amber Collins born?"),
        ("Vantrooy was born in Ghent.", "Collins was born in Ghent."),
        ("In 1931, Ilse saw Ghent.", "In 1954, Amber saw Ghent."),
        ("Ilse Vantrooy's town?", "Amber Collins's town?"),
        ("Ilsebill was born there.", None),
        ("Where was she born?", None),
    ],
)
def test_names_and_numbers_are_replaced(text: str, expected: str | None):
    assert carry_over(text, FACT, TWIN) == expected


def test_equal_questions_carry_nothing_over():
    assert carry_over("Who is Ilse Vantrooy?", FACT, FACT) is None


def test_a_name_of_another_length_is_replaced_as_a_whole():
    assert carry_over("Did Ilse go?", "Who is Ilse?", "Who is Mary Ann?") == "Did Mary Ann go?"
