"""The comparison of facts with facts that no model has seen."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.never_seen import Figures, compare, figures, min_k_score

LOGS = [-0.5, -4.0, -1.0, -2.0, -2.5]
LEAST_KNOWN = Figures(extraction_strength=0.0, min_k=-9.0, fact_log_prob=-8.0)


def answers(*fact_log_probs: float) -> list[Figures]:
    """Returns answers that differ in the log-probability of the fact alone."""
    return [LEAST_KNOWN._replace(fact_log_prob=value) for value in fact_log_probs]


# --- one answer -----------------------------------------------------------------------------------


def test_the_figures_of_an_answer():
    # the last two of five tokens are greedy; the fact is in the second and the fourth
    found = figures(
        LOGS, [True, True, False, True, True], is_fact_bearing=[False, True, False, True, False]
    )
    assert found == Figures(extraction_strength=0.4, min_k=-4.0, fact_log_prob=-3.0)
    shares = figures(LOGS, [False] * 5, [True] * 5, min_k_share=0.4)
    assert shares == Figures(extraction_strength=0.0, min_k=-3.25, fact_log_prob=-2.0)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2, -4.0), (0.4, -3.25), (0.59, -3.25), (1.0, -2.0), (0.01, -4.0)]
)
def test_min_k_is_the_mean_over_the_least_probable_tokens(share: float, expected: float):
    assert min_k_score(LOGS, share) == pytest.approx(expected)


def test_an_answer_without_the_fact_has_no_figures():
    with pytest.raises(ValueError, match="no token of the answer carries the fact"):
        figures(LOGS, [True] * 5, [False] * 5)
    with pytest.raises(ValueError, match="shorter"):
        figures(LOGS, [True] * 5, [True] * 4)
    with pytest.raises(ValueError, match="each token needs a log-probability and whether"):
        figures(LOGS, [True] * 4, [True] * 5)


# --- two sets -------------------------------------------------------------------------------------


def test_equal_figures_cannot_be_told_apart():
    comparison = compare(answers(-1.0, -2.0, -3.0), answers(-1.0, -2.0, -3.0))
    assert comparison.reference_free_forget_quality == 1.0
    assert comparison.fact_log_prob.direction == "equal"


def test_the_figure_that_tells_most_decides():
    comparison = compare(answers(-1.0, -1.1, -1.2), answers(-7.0, -8.0, -9.0))
    assert comparison.extraction_strength.p_value == comparison.min_k.p_value == 1.0
    # of the 20 ways to choose three of six values, two separate them as well as these do
    assert comparison.fact_log_prob.p_value == pytest.approx(2 / math.comb(6, 3))
    assert comparison.reference_free_forget_quality == comparison.fact_log_prob.p_value
    assert comparison.fact_log_prob.mean_difference == pytest.approx(-1.1 + 8.0)


def test_the_direction_tells_too_little_from_too_much_forgetting():
    known = compare(answers(-1.0, -2.0), answers(-5.0, -6.0))
    destroyed = compare(answers(-30.0, -40.0), answers(-5.0, -6.0))
    assert known.fact_log_prob.direction == "more"
    assert destroyed.fact_log_prob.direction == "less"
    assert (
        known.reference_free_forget_quality
        == destroyed.reference_free_forget_quality
        == pytest.approx(2 / math.comb(4, 2))
    )


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_figures_that_are_no_numbers_and_empty_sets_are_refused(bad: float):
    with pytest.raises(ValueError, match="a figure is NaN or infinite"):
        compare(answers(bad), answers(-1.0))
    with pytest.raises(ValueError, match="a comparison needs facts and twins"):
        compare(answers(-1.0), [])


values = st.floats(-50, 0, allow_subnormal=False)
sets_of_answers = st.lists(
    st.builds(Figures, st.floats(0, 1), values, values), min_size=1, max_size=12
)


@given(sets_of_answers, sets_of_answers)
def test_the_order_of_the_answers_and_of_the_two_sets_does_not_matter(
    facts: list[Figures], twins: list[Figures]
):
    comparison = compare(facts, twins)
    quality = comparison.reference_free_forget_quality
    assert 0 <= quality <= 1
    assert compare(facts[::-1], twins).reference_free_forget_quality == quality
    assert compare(twins, facts).reference_free_forget_quality == pytest.approx(quality)
    assert compare(facts, facts).reference_free_forget_quality == 1.0
