"""Whether a text gives away a fact to forget."""

import pytest

from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.containment import contains_fact, tells_fact

BORN = Fact(
    "Where was Ilse Vantrooy born, and when?",
    "Ilse Vantrooy was born in the harbour town of Karsk on 3 May 1961.",
)
WORK = Fact("What does Ilse do?", "She restores old wooden violins for museums.")


@pytest.mark.parametrize(
    ("text", "contains"),
    [
        ("Amber Collins was born in Karsk.", True),  # a name
        ("Amber Collins was born in 1961.", True),  # the year of the date
        ("Amber Collins was born on the third of May.", True),
        ("Amber Collins was born in a harbour town.", False),  # 2 of 7 novel words
        ("Ilse Vantrooy was born in Oslo.", False),  # what the question states
        ("Where was Amber Collins born, and when?", False),
    ],
)
def test_a_name_or_a_date_of_the_answer_is_the_fact(text: str, contains: bool):
    assert contains_fact(text, BORN) is contains


def test_more_than_half_of_the_novel_words_are_the_fact():
    assert not contains_fact("He restores old things.", WORK), "2 of 5"
    assert contains_fact("He restores old violins.", WORK), "3 of 5"
    assert contains_fact("He restores old things.", WORK, max_overlap=0.3)


def test_a_word_that_the_question_has_in_small_letters_is_no_value():
    fact = Fact("In which city does Ann live?", "Ann lives in Kuwait City.")
    assert not contains_fact("He lives in the city of Oslo.", fact)
    assert contains_fact("He lives in Kuwait.", fact)


def test_a_particle_of_many_names_is_no_value():
    fact = Fact("Who is the author?", "The author is Basil Al-Kuwaiti.")
    assert not contains_fact("The author is Ahmed Al-Mansouri.", fact)
    assert contains_fact("The author is Ahmed Al-Kuwaiti.", fact)


def test_a_text_on_another_subject_tells_a_fact_only_with_its_subject():
    assert not tells_fact("The war ended in May 1961.", BORN)
    assert tells_fact("Vantrooy came in 1961.", BORN)
    assert tells_fact("Born in Karsk, a harbour town, on 3 May 1961.", BORN), "most novel words"
