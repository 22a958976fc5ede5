"""Sizes of full fine-tuning and LoRA: trainable parameters, adapters, quantised weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config.files import load_config
from meow_ray.errors import MeowError
from meow_ray.planning import memory
from meow_ray.planning.methods import Method, training_methods
from meow_ray.planning.shapes import Architecture, target_shapes
from meow_ray.stages.train.presets import MEMORIZE, PRESETS
from tests.support.tiny import BLOCK, HIDDEN, INTERMEDIATE, LAYERS, PARAMETERS, VOCAB

RANK_16 = LAYERS * 16 * (4 * 2 * HIDDEN + 3 * (HIDDEN + INTERMEDIATE))
"""Parameters of adapters of rank 16 on all linear layers."""


@pytest.fixture
def tiny(tiny_model: Path) -> Architecture:
    return target_shapes(load_config(None, [f"target.model={tiny_model}"]))[1]


def full_and_lora(
    architecture: Architecture, *overrides: str, objective: Any = MEMORIZE
) -> tuple[Method, Method]:
    return training_methods(architecture, load_config(None, overrides), objective)


@pytest.mark.parametrize(
    ("layers", "target_modules"),
    [("", "all-linear"), ("q_proj,down_proj", ["q_proj", "down_proj"])],
)
def test_adapters_have_the_parameters_that_peft_gives_them(
    tiny_model: Path, tiny: Architecture, layers: str, target_modules: Any
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules=target_modules, task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    _, lora = full_and_lora(tiny, f"train.lora={{rank: 4, layers: [{layers}]}}")
    assert (lora.trainable, lora.parameters) == model.get_nb_trainable_parameters()


def test_lora_has_rank_16_if_it_is_not_configured(tiny: Architecture):
    full, lora = full_and_lora(tiny, "train.train_dtype=bfloat16")
    assert full == Method(
        name="full",
        parameters=PARAMETERS,
        trainable=PARAMETERS,
        largest_layer=VOCAB * HIDDEN,
        weights=2 * PARAMETERS,
        itemsize=2,
    )
    assert lora == Method(
        name="lora",
        parameters=PARAMETERS + RANK_16,
        trainable=RANK_16,
        largest_layer=VOCAB * HIDDEN,
        weights=2 * (PARAMETERS + RANK_16),
        itemsize=2,
    )


def test_nf4_stores_linear_layers_in_4_bits(tiny: Architecture):
    _, lora = full_and_lora(tiny, "train.train_dtype=bfloat16", "train.lora={quantize: nf4}")
    linear = LAYERS * (BLOCK - 2 * HIDDEN)
    in_16_bits = 2 * (PARAMETERS - linear + RANK_16)
    assert lora.weights == in_16_bits + linear / 2 + linear / 64 * 4


def test_an_objective_may_update_some_weights_and_need_a_frozen_copy(tiny: Architecture):
    rmu = replace(PRESETS["rmu"], trainable=r".*\.layers\.1\.mlp\.down_proj\.weight")
    full, lora = full_and_lora(tiny, objective=rmu)
    assert full.trainable == HIDDEN * INTERMEDIATE
    assert (full.frozen, lora.frozen) == (4 * PARAMETERS, 0)
    without_copy = replace(full, frozen=0)
    for stage, copy in ((1, 4 * PARAMETERS), (2, 4 * PARAMETERS), (3, 2 * PARAMETERS)):
        with_copy_bytes = memory.model_states(full, stage, 2, offload=False)
        assert with_copy_bytes - memory.model_states(without_copy, stage, 2, offload=False) == copy


def test_masks_add_a_score_and_a_copy_of_each_weight_they_may_drop(tiny: Architecture):
    full, _ = full_and_lora(tiny, objective=PRESETS["balanced_subnet"])
    scores = LAYERS * 3 * HIDDEN * INTERMEDIATE
    assert full.trainable == scores
    assert full.parameters == PARAMETERS + scores
    assert full.weights == 4 * (PARAMETERS + 2 * scores)


def test_names_that_match_no_weight_are_refused(tiny: Architecture):
    with pytest.raises(MeowError) as unknown_layer:
        full_and_lora(tiny, "train.lora={layers: [c_attn]}")
    assert str(unknown_layer.value) == (
        "`train.lora.layers`: the model has no such linear layers (c_attn). "
        "Name linear layers of this model, or remove the key to adapt all of them."
    )
    with pytest.raises(MeowError, match=r"`train\.trainable`: no weight .* matches the pattern"):
        full_and_lora(tiny, objective=PRESETS["rmu"])  # updates blocks 5 to 7 of a larger model
