"""The Unlearning Depth Score by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.audit.depth_score import depth_score

DROPS = st.lists(st.floats(-1, 10), min_size=1, max_size=8)


def test_by_hand():
    # layer 0 does not count, layer 1 is half erased, layer 2 is whole, layer 3 more than erased
    assert depth_score([0.05, 1.0, 3.0, 4.0], [9.0, 0.5, -1.0, 8.0]) == pytest.approx(4.5 / 8)


def test_nothing_is_erased_in_the_original_model():
    assert depth_score([1.0, 2.0], [0.0, 0.0]) == 0


def test_there_is_no_score_where_the_original_model_knows_no_more():
    assert depth_score([0.05, 0.01, -2.0], [1.0, 1.0, 1.0]) is None


@given(DROPS)
def test_the_retain_model_has_erased_all(drops: list[float]):
    expected = 1 if max(drops) > 0.05 else None
    assert depth_score(drops, drops) == expected


@given(DROPS, st.data())
def test_it_is_the_definition(drops: list[float], data: st.DataObject):
    others = data.draw(st.lists(st.floats(-1, 10), min_size=len(drops), max_size=len(drops)))
    layers = [(a, b) for a, b in zip(drops, others, strict=True) if a > 0.05]
    score = depth_score(drops, others)
    if not layers:
        assert score is None
        return
    ratios = [min(max(b / a, 0), 1) for a, b in layers]
    weighted = sum(a * ratio for (a, _), ratio in zip(layers, ratios, strict=True))
    assert score == pytest.approx(weighted / sum(a for a, _ in layers))
