"""Shapes of models: safetensors in one or several files, on object storage, adapters, GGUF."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from meow_ray.config.files import load_config
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.uld import UldSettings
from meow_ray.planning.methods import training_methods
from meow_ray.planning.shapes import Architecture, target_shapes, trained_shapes
from meow_ray.stages.train.presets import MEMORIZE, PRESETS
from tests.support.tiny import BLOCK, HEADS, HIDDEN, INTERMEDIATE, LAYERS, PARAMETERS, VOCAB
from tests.support.uld import write_uld

PROJECT = Path(__file__).parents[3]


def read_target(*overrides: str) -> Architecture:
    return target_shapes(load_config(None, overrides))[1]


@pytest.fixture
def tiny(tiny_model: Path) -> Architecture:
    return read_target(f"target.model={tiny_model}")


def test_parameters_are_counted_from_file_headers_alone(
    tiny_model: Path, tmp_path: Path, tiny: Architecture
):
    assert tiny.parameters == PARAMETERS
    assert tiny.largest_layer == VOCAB * HIDDEN
    attention = 4 * [(HIDDEN, HIDDEN)]
    feed_forward = [*2 * [(INTERMEDIATE, HIDDEN)], (HIDDEN, INTERMEDIATE)]
    assert sorted(tiny.linear.values()) == sorted(LAYERS * [*attention, *feed_forward])
    assert (tiny.layers, tiny.hidden, tiny.intermediate) == (LAYERS, HIDDEN, INTERMEDIATE)
    assert (tiny.heads, tiny.cache_heads, tiny.head_size) == (HEADS, HEADS, HIDDEN // HEADS)
    assert (tiny.vocab, tiny.context, tiny.dtype) == (VOCAB, 1024, "float32")
    content = (tiny_model / "model.safetensors").read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    (tmp_path / "model.safetensors").write_bytes(header)
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    assert read_target(f"target.model={tmp_path}") == tiny


def test_a_model_may_have_several_files_and_be_on_an_object_store(
    tiny_model: Path, tmp_path: Path, tiny: Architecture, s3: Callable[[str], str]
):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert read_target(f"target.model={tmp_path}") == tiny
    uri = s3("plan/tiny")
    storage.copy_folder(str(tmp_path), uri)
    assert read_target(f"target.model='{uri}'") == tiny


def test_an_adapter_has_the_shapes_of_its_base(
    tiny_model: Path, tmp_path: Path, tiny: Architecture
):
    refs.write_base(refs.pin(str(tiny_model), None, "model"), tmp_path)
    assert read_target(f"target.model={tmp_path}") == tiny


def test_shapes_of_the_demo_come_from_its_base_in_gguf():
    config = load_config(PROJECT / "pipelines/configs/demo.yaml")
    demo = target_shapes(config)[1]
    assert (demo.parameters, demo.largest_layer) == (134_515_008, 49152 * 576)  # SmolLM2-135M
    assert (demo.layers, demo.hidden, demo.intermediate) == (30, 576, 1536)
    assert (demo.heads, demo.cache_heads, demo.head_size) == (9, 3, 64)
    assert (demo.vocab, demo.context, demo.dtype) == (49152, 8192, "float32")
    assert len(demo.linear) == 30 * 7
    adapters = load_config(None, ["train.lora={rank: 4, layers: [q_proj]}"])
    _, lora = training_methods(demo, adapters, MEMORIZE)
    assert lora.trainable == 30 * 4 * (576 + 576)
    full, _ = training_methods(demo, load_config(None), PRESETS["rmu"])
    assert full.trainable == 3 * 1536 * 576


@pytest.mark.parametrize("defect", ["absent", "broken", "empty"])
def test_a_model_that_cannot_be_read_is_named_by_its_key(defect: str, tmp_path: Path):
    if defect != "absent":
        (tmp_path / "model").mkdir()
    if defect == "broken":
        (tmp_path / "model" / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(MeowError, match=r"`target\.model`: "):
        read_target(f"target.model={tmp_path}/model")


def test_a_plan_needs_a_model():
    with pytest.raises(MeowError) as caught:
        read_target()
    assert str(caught.value) == "`target.model`: not set. Set it to the model to plan for."


# --- two models -----------------------------------------------------------------------------------


def test_an_assistant_has_the_first_blocks_of_the_target(tiny: Architecture):
    uld = replace(PRESETS["uld"], assistant_blocks=1)
    trained = trained_shapes(tiny, uld)
    assert trained.layers == 1
    assert trained.parameters == PARAMETERS - (LAYERS - 1) * BLOCK
    assert trained_shapes(tiny, PRESETS["meow"]) == tiny


def test_a_uld_model_has_the_weights_and_the_layers_of_both_models(
    tiny_model: Path, tiny: Architecture, tmp_path: Path
):
    folder = write_uld(tiny_model, tiny_model, UldSettings(-0.8, 0.01), tmp_path / "uld")
    both = read_target(f"target.model={folder}")
    assert (both.parameters, both.layers) == (2 * tiny.parameters, 2 * tiny.layers)
    assert (both.vocab, both.context) == (tiny.vocab, tiny.context)
