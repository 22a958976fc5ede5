"""The objective `uld`: the settings of its assistant."""

from typing import Any

import pytest
from pydantic import ValidationError

from meow_ray.config import Train
from meow_ray.errors import MeowError
from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.train.objectives import resolve


def preset(name: str, **fields: Any) -> ObjectiveSpec:
    return resolve(Train(objective=name, **fields), None)


def test_an_assistant_has_the_configured_fields():
    spec = preset("uld", assistant_blocks=2, assistant_weight=-0.5, assistant_filter=0.0)
    assert (spec.assistant_blocks, spec.assistant_weight, spec.assistant_filter) == (2, -0.5, 0.0)
    assert spec.retains_neighbours
    assert not spec.retains_given


@pytest.mark.parametrize(
    ("field", "value"),
    [("assistant_blocks", 2), ("assistant_weight", -0.5), ("assistant_filter", 0.0)],
)
def test_a_setting_of_an_assistant_is_refused_without_one(field: str, value: float):
    with pytest.raises(MeowError) as refused:
        preset("npo", **{field: value})
    assert str(refused.value) == (
        f"`train.{field}` has no effect on npo, which trains the target itself. Remove it, or set "
        "train.objective=uld."
    )


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"until": "never_seen"}, "`train.until` is never_seen"),
        ({"retain_weight": 1.0}, "`train.retain_weight` and `train.kl_weight` would teach"),
        ({"kl_weight": 0.5}, "`train.retain_weight` and `train.kl_weight` would teach"),
        ({"lora": {"output": "adapter"}}, "`train.lora.output` is adapter"),
        ({"retain": "none"}, "`train.retain` is none"),
    ],
)
def test_what_does_not_go_with_an_assistant_is_refused(fields: dict[str, Any], place: str):
    with pytest.raises(MeowError, match=place):
        preset("uld", **fields)


def test_an_assistant_enters_fingerprints_and_others_keep_theirs():
    assert not any(name.startswith("assistant") for name in preset("npo").identity())
    identities = [
        preset("uld", **fields).identity()
        for fields in ({}, {"assistant_weight": -0.5}, {"assistant_blocks": 2})
    ]
    assert identities[0] not in identities[1:]


@pytest.mark.parametrize(
    ("field", "value"),
    [("assistant_weight", 0.5), ("assistant_blocks", 0), ("assistant_filter", 1.0)],
)
def test_an_assistant_out_of_range_is_refused(field: str, value: float):
    with pytest.raises(ValidationError, match=field):
        Train(objective="uld", **{field: value})
