"""Where the pairs of the role retain come from: `train.retain`."""

from dataclasses import replace
from typing import Any

import pytest

from meow_ray.config import Train
from meow_ray.errors import MeowError
from meow_ray.stages.train.objectives import ObjectiveSpec, resolve


def preset(name: str, **changes: Any) -> ObjectiveSpec:
    return resolve(Train(objective=name, **changes), None)


def test_the_retain_set_of_an_objective_is_the_given_one_unless_set():
    assert preset("npo_kl").retain == "given"
    assert preset("npo_kl", retain="both").retain == "both"
    assert preset("rmu", retain="neighbours").retain == "neighbours"
    assert preset("meow", retain="neighbours", kl_weight=1.0).roles == ("inverted", "retain")


def test_without_a_retain_set_its_terms_are_dropped():
    spec = preset("grad_diff", retain="none")
    assert (spec.retain, spec.retain_weight, spec.roles) == ("none", 0.0, ("forget",))
    spec = preset("meow_kl", retain="none")
    assert (spec.kl_weight, spec.needs_frozen, spec.forget_weight) == (0.0, False, 0.9)
    spec = preset("pdu", retain="none")
    assert (spec.retain_weight, spec.retain_budget, spec.roles) == (0.0, None, ("forget",))


@pytest.mark.parametrize(
    ("changes", "term", "key"),
    [
        ({"retain_budget": 0.5}, "retain term", "retain_weight"),
        ({"utility_budget": 0.5}, "KL term", "kl_weight"),
    ],
)
def test_a_budget_needs_its_term(changes: dict[str, Any], term: str, key: str):
    (budget,) = changes
    with pytest.raises(MeowError) as caught:
        preset("meow", **changes)
    assert str(caught.value) == (
        f"`train.{budget}`: meow has no {term} whose weight it could adapt. Set train.{key}, or "
        "remove the budget."
    )
    assert getattr(preset("meow", **changes, **{key: 1.0}), budget) == 0.5


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "rmu",
            {"retain": "none"},
            "`train.retain` is none, but the function of rmu reads retain pairs. Set it to given, "
            "neighbours or both.",
        ),
        (
            "meow",
            {"retain": "none", "kl_weight": 1.0},
            "`train.retain` is none, which drops `train.retain_weight` and `train.kl_weight` with "
            "their budgets. Remove these keys, or set `train.retain` to given, neighbours or both.",
        ),
        (
            "meow_floor",
            {"retain": "none", "utility_budget": 0.1},
            "`train.retain` is none, which drops `train.retain_weight` and `train.kl_weight` with "
            "their budgets. Remove these keys, or set `train.retain` to given, neighbours or both.",
        ),
        (
            "meow",
            {"retain": "neighbours"},
            "`train.retain` is neighbours, but meow retains nothing. Set `train.retain_weight` or "
            "`train.kl_weight`.",
        ),
    ],
)
def test_a_retain_set_that_contradicts_the_objective_is_refused(
    name: str, changes: dict[str, Any], message: str
):
    with pytest.raises(MeowError) as caught:
        preset(name, **changes)
    assert str(caught.value) == message


def test_new_fields_identify_an_objective_only_where_they_have_an_effect():
    old = preset("npo_kl").identity()
    assert not {"retain", "twins"} & set(old)
    assert preset("npo_kl", retain="given").identity() == old
    assert preset("meow", retain="none").identity() == preset("meow").identity()
    assert preset("npo_kl", retain="both").identity() == old | {"retain": "both"}
    assert replace(preset("npo_kl"), twins=True).identity() == old | {"twins": True}
