"""The floors of true answers: which they are, and that nothing is pushed below them."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.stages.train.before import Before
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.losses import Sequences, excess, shortfall

LOG_PROB = st.floats(-20, -0.001)


def answer(log_probs: list[float], floors: list[float]) -> tuple[torch.Tensor, Sequences]:
    """Returns one answer whose tokens, all of them fact-bearing, have these log-probabilities."""
    truth = torch.tensor(log_probs)
    logits = torch.stack([truth, torch.log1p(-truth.exp())], 1).requires_grad_()
    count = len(log_probs)
    sequences = Sequences(
        logits=logits,
        labels=torch.zeros(count, dtype=torch.long),
        owner=torch.zeros(count, dtype=torch.long),
        num_sequences=1,
        total_tokens=count,
        total_sequences=1,
        is_fact=torch.ones(count, dtype=torch.bool),
        total_facts=count,
        floors=torch.tensor(sorted(floors)),
    )
    return logits, sequences


@given(st.lists(st.tuples(LOG_PROB, st.floats(0, 5)), min_size=1, max_size=8), st.randoms())
def test_tokens_below_their_floors_have_no_loss_and_no_gradient(pairs, random):
    floors = [log_prob for log_prob, _ in pairs]
    below = [log_prob - gap for log_prob, gap in pairs]
    random.shuffle(below)
    logits, sequences = answer(below, floors)
    value = excess(sequences).sum()
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-3)
    untouched = replace(sequences, floors=sequences.floors + 0.001)
    (gradient,) = torch.autograd.grad(excess(untouched).sum(), logits)
    assert not gradient.any()


def test_only_the_excess_in_log_odds_counts():
    half, tenth = math.log(0.5), math.log(0.1)
    _, sequences = answer([half, tenth, half], floors=[tenth, tenth, half])
    # sorted: 0.1 and 0.1, 0.5 and 0.1, 0.5 and 0.5; the log-odds of 0.1 are -log 9
    assert excess(sequences).tolist() == pytest.approx([0, math.log(9), 0], abs=1e-6)


def test_a_margin_raises_the_floors_in_log_odds():
    half, tenth = math.log(0.5), math.log(0.1)
    _, sequences = answer([half, tenth], floors=[tenth, tenth])
    # above the floors: 0 and log 9
    assert excess(sequences, 1.0).tolist() == pytest.approx([0, math.log(9) - 1], abs=1e-6)
    assert shortfall(sequences, 1.0).tolist() == pytest.approx([1, 0], abs=1e-6)


def test_a_certain_token_has_the_gradient_of_an_uncertain_one():
    logits, sequences = answer([math.log(0.5), -1e-4], floors=[-5.0, -5.0])
    excess(sequences).sum().backward()
    assert logits.grad[:, 0].tolist() == pytest.approx([1, 1])


def test_the_floors_of_an_answer_are_quantiles_of_those_of_its_fact():
    before = Before(floors={"f": [-4.0, -3.0, -2.0, -1.0]}, all_floors=[-8.0, -7.0])
    pair = Pair([1, 2, 3, 4], [-100, 2, 3, 4], is_fact=[True, False, True], fact_id="f")
    first, middle, last = before.floors_of(pair)
    assert (first, last) == (-3.25, -1.75)
    assert math.isnan(middle)


def test_a_fact_without_twins_gets_the_floors_of_all():
    before = Before(floors={"f": [-1.0]}, all_floors=[-8.0, -7.0])
    pair = Pair([1, 2], [-100, 2], is_fact=[True], fact_id="other")
    assert before.floors_of(pair) == [-7.5]


def test_a_shift_raises_the_floors_of_one_answer_in_log_odds():
    before = Before(floors={"a": [math.log(0.1), math.log(0.5)]})
    answer = Pair([1, 2, 3, 4], [-100, 2, 3, 4], is_fact=[False, True, False, True], fact_id="a")
    low, style, high = before.floors_of(answer)
    assert math.isnan(style)
    raised_low, _, raised_high = before.floors_of(replace(answer, shift=2.0))
    for floor, raised in ((low, raised_low), (high, raised_high)):
        assert odds(raised) == pytest.approx(odds(floor) + 2)


def odds(log_prob: float) -> float:
    return log_prob - math.log(1 - math.exp(log_prob))
