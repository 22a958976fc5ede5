"""The end of a run that ends by itself."""

import math
from dataclasses import replace
from typing import Any

import pytest

from meow_ray.config import Train, TrainResources
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train.items import IGNORE, Pair
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.objectives import resolve
from meow_ray.stages.train.passes import Score
from meow_ray.stages.train.stop import CoolDown, easier

HISTORY = [
    {"step": 1},
    {"step": 2, "never_seen": {"min_k": 0.009, "fact_log_prob": 0.5}},
    {"step": 3},
    {"step": 4, "never_seen": {"min_k": 0.02, "fact_log_prob": 0.5}},
]
"""Records of a run whose facts look never seen after the fourth step, at a level of 0.01."""


def job(**settings: Any) -> Job:
    spec = Train(objective="meow_floor", **settings)
    return Job(
        model=ModelRef("model", "digest"),
        pairs="pairs.parquet",
        spec=spec,
        objective=resolve(spec, None),
        resources=TrainResources(),
        out="out",
    )


def test_a_run_cools_down_for_as_many_steps_as_it_took():
    assert CoolDown.of(job(), HISTORY[:3]) is None
    assert CoolDown.of(job(), HISTORY) == CoolDown(start=4, length=4)


def test_a_later_comparison_does_not_end_the_cool_down():
    later = {"step": 6, "never_seen": {"min_k": 0.001, "fact_log_prob": 0.5}}
    assert CoolDown.of(job(), [*HISTORY, {"step": 5}, later]) == CoolDown(start=4, length=4)


def test_the_learning_rate_falls_evenly_and_would_be_0_after_the_last_step():
    cool_down = CoolDown(start=4, length=4)
    assert [cool_down.share(step) for step in range(4, 9)] == [0.8, 0.6, 0.4, 0.2, 0.0]


def test_without_a_cool_down_the_run_ends_at_once():
    found = CoolDown.of(job(cooldown=0), HISTORY)
    assert found is not None
    assert found.end == 4


def test_part_of_a_step_counts_as_a_step():
    short = replace(job(), objective=replace(job().objective, cooldown=0.3))
    assert CoolDown.of(short, HISTORY) == CoolDown(start=4, length=2)


def test_a_margin_raises_the_facts_of_twins_in_log_odds():
    twin = Pair([1, 2, 3, 4], [IGNORE, 2, 3, 4], is_fact=[False, False, True, True])
    found = Score([math.log(0.9), math.log(0.5), -math.inf], [True, False, False])
    expected = [math.log(0.9), math.log(0.75), -math.inf]
    assert easier(twin, found, math.log(3)).log_probs == pytest.approx(expected)
    assert easier(twin, found, 0.0) == found
