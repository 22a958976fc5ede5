"""All objectives against their formulae, for whole batches and for micro-batches."""

import inspect
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from meow_ray.stages.train import losses
from meow_ray.stages.train.presets import PRESETS
from tests.support.answers import DTYPES, READS, SETTINGS, example, gradients, loss, sequences
from tests.support.formulas import BY_HAND, by_hand

OPTIONAL = (
    "reference_log_probs",
    "reference_logits",
    "reference_top_k",
    "hidden",
    "reference_hidden",
    "is_fact",
    "floors",
)
"""The fields of `Sequences` that only some objectives read."""


def test_all_objectives_have_a_formula_by_hand():
    assert set(BY_HAND) == set(READS)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize("name", BY_HAND)
def test_an_objective_equals_its_formula(name: str, dtype: torch.dtype):
    batch = example(dtype)
    assert loss(name, batch).item() == pytest.approx(by_hand(name, batch), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("switched_off", SETTINGS["meow_floor"])
def test_each_part_of_meow_floor_can_be_switched_off(switched_off: str):
    batch = example()
    settings = SETTINGS["meow_floor"] | {switched_off: 0}
    read = (sequences(batch[role], batch[role]) for role in READS["meow_floor"])
    value = losses.meow_floor(*read, **settings).item()
    by_hand = BY_HAND["meow_floor"](batch["inverted"], batch["forget"], **settings)
    assert value == pytest.approx(by_hand, rel=1e-5)
    assert value != pytest.approx(loss("meow_floor", batch).item(), rel=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_roles_and_settings_of_its_function(name: str):
    spec = PRESETS[name]
    parameters = inspect.signature(getattr(losses, spec.function)).parameters.values()
    keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert spec.reads == tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    assert list(spec.settings) == keywords
    assert list(SETTINGS.get(spec.function, {})) == keywords
    assert len(parameters) == len(spec.reads) + len(keywords)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reads_only_its_reference_of_the_model_before_training(name: str):
    spec, batch = PRESETS[name], example()
    fields = {
        "none": [],
        "log_probs": ["reference_log_probs"],
        "model": ["reference_logits"],
        "top_k": ["reference_top_k"],
    }[spec.reference]
    if spec.marks_facts:
        fields.append("is_fact")
    if spec.twins:
        fields.append("floors")
    if spec.layer is not None:
        fields += ["hidden", "reference_hidden"]
    nothing: dict[str, None] = dict.fromkeys(OPTIONAL)
    read = []
    for role in spec.reads:
        complete = sequences(batch[role], batch[role])
        allowed = {field: getattr(complete, field) for field in fields}
        read.append(replace(complete, **nothing | allowed))
    assert spec.load()(*read, **spec.settings).isfinite()


@pytest.mark.parametrize("cuts", [(0, 1, 4), (0, 2, 4), (0, 3, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("name", BY_HAND)
def test_the_losses_of_the_parts_of_a_batch_sum_to_that_of_the_whole(
    name: str, cuts: tuple[int, ...]
):
    batch = example()
    whole = loss(name, batch)
    parts = [loss(name, batch, slice(*ends)) for ends in pairwise(cuts)]
    summed = torch.stack(parts).sum()
    torch.testing.assert_close(summed, whole)
    expected = gradients(name, batch, whole)
    for role, grads in gradients(name, batch, summed).items():
        torch.testing.assert_close(grads, expected[role])
