"""Formulas of memory: model states by ZeRO stage, CPU memory, activations."""

import pytest

from meow_ray.planning import memory
from meow_ray.planning.methods import Method
from meow_ray.planning.shapes import Architecture
from tests.support.tiny import HIDDEN, INTERMEDIATE, LAYERS, VOCAB

FULL = Method(
    name="full", parameters=1000, trainable=1000, largest_layer=100, weights=2000, itemsize=2
)
LORA = Method(
    name="lora", parameters=1080, trainable=80, largest_layer=100, weights=2160, itemsize=2
)
FLOAT32 = Method(
    name="full", parameters=1000, trainable=1000, largest_layer=100, weights=4000, itemsize=4
)


def tiny_architecture(layers: int = LAYERS, vocab: int = VOCAB) -> Architecture:
    return Architecture(
        weights={},
        layers=layers,
        hidden=HIDDEN,
        intermediate=INTERMEDIATE,
        heads=2,
        vocab=vocab,
        cache_heads=2,
        head_size=HIDDEN // 2,
        context=512,
        dtype="float32",
    )


# --- model states -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "workers", "by_stage"),
    [
        (FULL, 1, [2000 + 6000 + 12000, 2000 + 18000, 400 + 18000]),
        (FULL, 2, [2000 + 6000 + 6000, 2000 + 9000, 400 + 9000]),
        (FULL, 8, [2000 + 6000 + 1500, 2000 + 2250, 400 + 2250]),
        (FLOAT32, 1, [4000 + 4000 + 12000, 4000 + 16000, 800 + 20000]),
        (FLOAT32, 2, [4000 + 4000 + 6000, 4000 + 8000, 800 + 10000]),
        (FLOAT32, 8, [4000 + 4000 + 1500, 4000 + 2000, 800 + 2500]),
        (LORA, 1, [2160 + 480 + 960, 2160 + 1440, 400 + 2160 + 1280]),
        (LORA, 2, [2160 + 480 + 480, 2160 + 720, 400 + 1080 + 640]),
        (LORA, 8, [2160 + 480 + 120, 2160 + 180, 400 + 270 + 160]),
    ],
)
def test_gpu_memory_equals_hand_calculation(method: Method, workers: int, by_stage: list[int]):
    states = [memory.model_states(method, stage, workers, offload=False) for stage in (1, 2, 3)]
    assert states == by_stage


def test_offload_leaves_on_the_gpu_only_what_is_computed_with():
    def by_stage(method: Method) -> list[int]:
        return [memory.model_states(method, stage, 8, offload=True) for stage in (1, 2, 3)]

    assert by_stage(FULL) == [8000, 2000, 400]
    assert by_stage(FLOAT32) == [8000, 4000, 800]
    assert by_stage(LORA) == [2160 + 480, 2160, 400]


def test_cpu_memory_equals_hand_calculation():
    def by_stage(
        method: Method, workers: int, offload: bool, gpus_per_node: int = 8
    ) -> list[float]:
        return [
            memory.cpu_memory(method, stage, workers, gpus_per_node, offload=offload)
            for stage in (1, 2, 3)
        ]

    assert by_stage(FULL, 2, offload=False) == [12000, 12000, 1200]
    assert by_stage(FULL, 2, offload=True) == [24000, 24000, 27000]
    assert by_stage(FULL, 8, offload=True) == [48000, 48000, 27000]
    assert by_stage(FLOAT32, 2, offload=True) == [24000, 24000, 30000]
    assert by_stage(LORA, 1, offload=True) == [6480, 6480, 5160]
    one_full_node = by_stage(FULL, 8, offload=False)
    assert by_stage(FULL, 256, offload=False) == one_full_node == [48000, 48000, 4800]
    two_nodes = by_stage(FULL, 4, offload=True, gpus_per_node=2)
    assert two_nodes == [12000, 12000, 13500], "each node holds half of the states"


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("offload", [False, True])
def test_our_formulas_equal_those_of_deepspeed(workers: int, offload: bool):
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    two = stage_1_and_2.estimate_zero2_model_states_mem_needs(1000, workers, cpu_offload=offload)
    three = stage3.estimate_zero3_model_states_mem_needs(
        1000, 100, workers, cpu_offload=offload, cpu_offload_params=offload
    )
    for stage, formula, expected in ((2, memory.zero2, two), (3, memory.zero3, three[:2])):
        gpu = formula(FULL, workers, offload=offload)
        assert memory.model_states(FULL, stage, workers, offload=offload) == gpu
        assert expected == (memory.cpu_memory(FULL, stage, workers, 8, offload=offload), gpu)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("workers", [2, 3, 8, 64])
@pytest.mark.parametrize("method", [FULL, FLOAT32, LORA])
def test_a_higher_stage_or_more_workers_never_need_more(
    method: Method, workers: int, offload: bool
):
    def from_stage_3_to_1(workers: int) -> list[int]:
        return [memory.model_states(method, stage, workers, offload=offload) for stage in (3, 2, 1)]

    states, with_fewer_workers = from_stage_3_to_1(workers), from_stage_3_to_1(workers - 1)
    assert states == sorted(states)
    assert all(a <= b for a, b in zip(states, with_fewer_workers, strict=True))


# --- activations --------------------------------------------------------------------------------


def test_activations_equal_hand_calculation():
    tiny = tiny_architecture()
    logits = 8 * VOCAB
    block_in_16_bits = 24 * HIDDEN + 8 * INTERMEDIATE
    block_in_32_bits = 40 * HIDDEN + 16 * INTERMEDIATE
    plain = memory.activations(tiny, 10, 2)
    assert plain == 10 * (LAYERS * block_in_16_bits + logits)
    assert memory.activations(tiny, 10, 4) == 10 * (LAYERS * block_in_32_bits + logits)
    checkpointed = LAYERS * 2 * HIDDEN + block_in_16_bits
    assert memory.activations(tiny, 10, 2, checkpointing=True) == 10 * (checkpointed + logits)
    attention_matrix = 10 * LAYERS * 2 * 10 * 6
    assert memory.activations(tiny, 10, 2, attended=10) == plain + attention_matrix
    assert memory.activations(tiny, 10, 2, frozen=True) == plain + 10 * logits


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_a_block_stores_about_what_is_estimated(
    dtype: str, itemsize: int, attention: str, checkpointing: bool
):
    def estimated(layers: int) -> int:
        return memory.activations(
            tiny_architecture(layers, vocab=0),
            64,
            itemsize,
            attended=64 if attention == "eager" else 0,
            checkpointing=checkpointing,
        )

    stored = _stored_bytes(6, dtype, attention, checkpointing) - _stored_bytes(
        2, dtype, attention, checkpointing
    )
    assert stored == pytest.approx(estimated(6) - estimated(2), rel=0.1)


def _stored_bytes(layers: int, dtype: str, attention: str, checkpointing: bool) -> int:
    """Returns the bytes that autograd stores for the backward pass over 64 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=2,
        attn_implementation=attention,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    stored: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        return stored.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model.model(torch.zeros(1, 64, dtype=torch.long), use_cache=False)
    sizes = {address: tensor.untyped_storage().nbytes() for address, tensor in stored.items()}
    for weight in model.parameters():
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    del out
    return sum(sizes.values())
