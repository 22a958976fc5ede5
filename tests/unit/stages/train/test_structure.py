"""What a model's structure says before its weights are loaded."""

from typing import Any

import pytest

from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import preflight, structure
from tests.support.models import llama_config, write_model

OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32}
GPT2 = {"n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 262}


def config(model_type: str, **changes: Any) -> dict[str, Any]:
    return llama_config(model_type=model_type, architectures=None, **changes)


CONFIGS = {
    "llama": config("llama"),
    "gpt2": {"model_type": "gpt2", **GPT2},
    "gpt_neox": config("gpt_neox"),
    "opt": config("opt", **OPT),
    "phi3": config("phi3"),
    "mixtral": config("mixtral", num_local_experts=2, num_experts_per_tok=1),
    "mamba": {"model_type": "mamba", "vocab_size": 262, "hidden_size": 32, "num_hidden_layers": 2},
    "bloom": {"model_type": "bloom", "vocab_size": 262, "hidden_size": 32, "n_layer": 2},
}


@pytest.fixture(scope="module")
def models(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelRef]:
    """Models without weights, by their type."""
    return {
        name: write_model(tmp_path_factory.mktemp(name), tiny_tokenizer, values)
        for name, values in CONFIGS.items()
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["model.layers.1.mlp.down_proj.weight"]),
        ("gpt2", ["transformer.h.1.mlp.c_proj.weight"]),
        ("gpt_neox", ["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]),
        ("opt", ["model.decoder.layers.1.fc2.weight"]),
        ("mixtral", ["model.layers.1.mlp.experts.down_proj"]),
        ("bloom", ["transformer.h.1.mlp.dense_4h_to_h.weight"]),
    ],
)
def test_rmu_finds_the_ends_of_feed_forward_networks(
    models: dict[str, ModelRef], name: str, expected: list[str]
):
    names = structure.mlp_outputs(structure.skeleton(models[name]), layer=1)
    assert names[len(names) // 2 :] == expected
    assert [part.replace(".1.", ".0.") for part in expected] == names[: len(names) // 2]


def test_rmu_updates_three_blocks(tiny_tokenizer: Any, tmp_path: Any):
    deep = write_model(tmp_path, tiny_tokenizer, config("llama", num_hidden_layers=9))
    assert structure.mlp_outputs(structure.skeleton(deep), layer=7) == [
        f"model.layers.{number}.mlp.down_proj.weight" for number in (5, 6, 7)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"]),
        ("gpt2", ["mlp.c_fc.weight", "mlp.c_proj.weight"]),
        ("gpt_neox", ["mlp.dense_h_to_4h.weight", "mlp.dense_4h_to_h.weight"]),
        ("phi3", ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"]),
        ("opt", ["fc1.weight", "fc2.weight"]),
        ("mixtral", ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    ],
)
def test_masks_find_all_matrices_of_feed_forward_networks(
    models: dict[str, ModelRef], name: str, expected: list[str]
):
    skeleton = structure.skeleton(models[name])
    blocks = structure.blocks_of(skeleton)
    names = structure.mlp_matrices(skeleton)
    assert sorted(names) == sorted(f"{blocks}.{n}.{part}" for n in (0, 1) for part in expected)


@pytest.mark.parametrize(
    ("name", "leaks"),
    [
        ("llama", False),
        ("gpt2", False),
        ("gpt_neox", False),
        ("mixtral", False),
        ("opt", True),
        ("mamba", True),
        ("bloom", True),
    ],
)
def test_a_small_copy_shows_whether_packed_pairs_mix(
    models: dict[str, ModelRef], name: str, leaks: bool
):
    assert preflight._leaks(models[name]) is leaks


def test_a_large_model_has_a_small_copy(tiny_tokenizer: Any, tmp_path: Any):
    large = llama_config(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=128256,
    )
    model = structure.small_copy(write_model(tmp_path, tiny_tokenizer, large))
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
