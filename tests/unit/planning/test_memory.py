import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meow_ray.cli import main
from meow_ray.config import Config
from meow_ray.config.files import load_config
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.planning import memory, shapes
from meow_ray.planning.memory import Method
from meow_ray.planning.shapes import Architecture
from meow_ray.stages.train.objectives import MEMORIZE, PRESETS

PROJECT = Path(__file__).parents[3]
HIDDEN, WIDTH, VOCAB, LAYERS = 128, 256, 262, 2
BLOCK = 4 * HIDDEN**2 + 3 * HIDDEN * WIDTH + 2 * HIDDEN
PARAMETERS = 2 * VOCAB * HIDDEN + LAYERS * BLOCK + HIDDEN
ADAPTERS = LAYERS * 16 * (4 * 2 * HIDDEN + 3 * (HIDDEN + WIDTH))


def target_shapes(*overrides: str) -> Architecture:
    return shapes.of_target(load_config(None, overrides))[1]


@pytest.fixture
def tiny(tiny_model: Path) -> Architecture:
    return target_shapes(f"target.model={tiny_model}")


# --- the model ----------------------------------------------------------------------------------


def test_parameters_are_counted_from_the_headers_alone(
    tiny_model: Path, tmp_path: Path, tiny: Architecture
):
    assert tiny.parameters == PARAMETERS
    assert tiny.largest_layer == VOCAB * HIDDEN
    assert sorted(tiny.linear.values()) == sorted(
        LAYERS * [*4 * [(HIDDEN, HIDDEN)], *2 * [(WIDTH, HIDDEN)], (HIDDEN, WIDTH)]
    )
    assert (tiny.layers, tiny.hidden, tiny.intermediate, tiny.heads, tiny.vocab) == (
        LAYERS,
        HIDDEN,
        WIDTH,
        2,
        VOCAB,
    )
    assert (tiny.cache_heads, tiny.head_size, tiny.context, tiny.dtype) == (
        2,
        HIDDEN // 2,
        1024,
        "float32",
    )
    content = (tiny_model / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(
        content[: 8 + int.from_bytes(content[:8], "little")]
    )
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    assert target_shapes(f"target.model={tmp_path}") == tiny


def test_a_model_may_be_cut_into_files_or_lie_on_an_object_store(
    tiny_model: Path, tmp_path: Path, tiny: Architecture, s3: Callable[[str], str]
):
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(
        tmp_path, max_shard_size="200KB"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert target_shapes(f"target.model={tmp_path}") == tiny
    uri = s3("plan/tiny")
    storage.copy_folder(str(tmp_path), uri)
    assert target_shapes(f"target.model='{uri}'") == tiny


def test_an_adapter_takes_what_its_base_takes(tiny_model: Path, tmp_path: Path, tiny: Architecture):
    refs.write_base(refs.pin(str(tiny_model), None, "model"), tmp_path)
    assert target_shapes(f"target.model={tmp_path}") == tiny


def test_the_demo_is_planned_for_by_its_base_in_gguf():
    demo = shapes.of_target(load_config(PROJECT / "pipelines/configs/demo.yaml"))[1]
    assert (demo.parameters, demo.largest_layer) == (134_515_008, 49152 * 576)  # SmolLM2-135M
    assert (demo.layers, demo.hidden, demo.intermediate, demo.heads, demo.vocab) == (
        30,
        576,
        1536,
        9,
        49152,
    )
    assert (demo.cache_heads, demo.head_size, demo.context, demo.dtype) == (3, 64, 8192, "float32")
    assert len(demo.linear) == 30 * 7
    assert both(demo, "train.lora={rank: 4, layers: [q_proj]}")[1].trainable == 30 * 4 * (576 + 576)
    assert both(demo, objective=PRESETS["rmu"])[0].trainable == 3 * 1536 * 576


@pytest.mark.parametrize("spoil", ["absent", "broken", "empty"])
def test_a_model_that_cannot_be_read_is_named_by_its_key(spoil: str, tmp_path: Path):
    if spoil != "absent":
        (tmp_path / "model").mkdir()
    if spoil == "broken":
        (tmp_path / "model" / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(MeowError, match=r"`target\.model`: "):
        target_shapes(f"target.model={tmp_path}/model")


def test_there_must_be_a_model():
    with pytest.raises(MeowError, match=r"`target\.model` is not set"):
        target_shapes()


# --- LoRA, and parts of a model -----------------------------------------------------------------


def both(a: Architecture, *overrides: str, objective: Any = MEMORIZE) -> tuple[Method, Method]:
    return memory.methods(a, load_config(None, overrides), objective)


@pytest.mark.parametrize(
    ("layers", "names"), [("", "all-linear"), ("q_proj,down_proj", ["q_proj", "down_proj"])]
)
def test_adapters_are_those_that_peft_adds(
    tiny_model: Path, tiny: Architecture, layers: str, names: Any
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    found = get_peft_model(model, LoraConfig(r=4, target_modules=names, task_type="CAUSAL_LM"))
    trainable, total = found.get_nb_trainable_parameters()
    lora = both(tiny, f"train.lora={{rank: 4, layers: [{layers}]}}")[1]
    assert (lora.trainable, lora.parameters) == (trainable, total)


def test_lora_is_planned_for_with_rank_16_if_it_is_not_configured(tiny: Architecture):
    full, lora = both(tiny, "train.train_dtype=bfloat16")
    assert full == Method("full", PARAMETERS, PARAMETERS, VOCAB * HIDDEN, 2 * PARAMETERS, 2)
    assert lora == Method(
        "lora", PARAMETERS + ADAPTERS, ADAPTERS, VOCAB * HIDDEN, 2 * (PARAMETERS + ADAPTERS), 2
    )


def test_4_bits_are_those_of_the_linear_layers(tiny: Architecture):
    lora = both(tiny, "train.train_dtype=bfloat16", "train.lora={quantize: nf4}")[1]
    linear = LAYERS * (BLOCK - 2 * HIDDEN)
    assert lora.weights == 2 * (PARAMETERS - linear + ADAPTERS) + linear / 2 + linear / 64 * 4


def test_an_objective_may_update_a_part_and_keep_the_model_before_training(tiny: Architecture):
    rmu = replace(PRESETS["rmu"], trainable=r".*\.layers\.1\.mlp\.down_proj\.weight")
    full, lora = both(tiny, objective=rmu)
    assert (full.trainable, full.frozen, lora.frozen) == (HIDDEN * WIDTH, 4 * PARAMETERS, 0)
    without = replace(full, frozen=0)
    for stage, copy in ((1, 4 * PARAMETERS), (2, 4 * PARAMETERS), (3, 2 * PARAMETERS)):
        gpu, plain = (memory.model_states(m, stage, 2, offload=False) for m in (full, without))
        assert gpu - plain == copy


def test_names_that_the_model_has_not_are_refused(tiny: Architecture):
    with pytest.raises(MeowError, match=r"`train\.lora\.layers`"):
        both(tiny, "train.lora={layers: [c_attn]}")
    with pytest.raises(MeowError, match=r"`train\.trainable`"):
        both(tiny, objective=PRESETS["rmu"])  # updates blocks 5 to 7 of a larger model


# --- model states -------------------------------------------------------------------------------

FULL = Method("full", 1000, 1000, 100, 2000, 2)
LORA = Method("lora", 1080, 80, 100, 2160, 2)
FLOAT32 = Method("full", 1000, 1000, 100, 4000, 4)


@pytest.mark.parametrize(
    ("method", "workers", "expected"),
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
def test_gpu_memory_by_hand(method: Method, workers: int, expected: list[int]):
    assert [
        memory.model_states(method, stage, workers, offload=False) for stage in (1, 2, 3)
    ] == expected


def test_offload_leaves_what_is_computed_with_on_the_gpu():
    found = [
        [memory.model_states(m, stage, 8, offload=True) for stage in (1, 2, 3)]
        for m in (FULL, FLOAT32, LORA)
    ]
    assert found == [[8000, 2000, 400], [8000, 4000, 800], [2160 + 480, 2160, 400]]


def test_cpu_memory_by_hand():
    def cpu(method: Method, workers: int, offload: bool, gpus_per_node: int = 8) -> list[float]:
        return [
            memory.cpu_memory(method, stage, workers, gpus_per_node, offload=offload)
            for stage in (1, 2, 3)
        ]

    assert cpu(FULL, 2, offload=False) == [12000, 12000, 1200]
    assert cpu(FULL, 2, offload=True) == [24000, 24000, 27000]
    assert cpu(FULL, 8, offload=True) == [48000, 48000, 27000]
    assert cpu(FLOAT32, 2, offload=True) == [24000, 24000, 30000]
    assert cpu(LORA, 1, offload=True) == [6480, 6480, 5160]
    assert cpu(FULL, 256, offload=False) == cpu(FULL, 8, offload=False) == [48000, 48000, 4800]
    assert cpu(FULL, 4, offload=True, gpus_per_node=2) == [12000, 12000, 13500], (
        "half of what is kept"
    )


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("offload", [False, True])
def test_our_formulas_are_deepspeeds_where_it_has_any(workers: int, offload: bool):
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    two = stage_1_and_2.estimate_zero2_model_states_mem_needs(1000, workers, cpu_offload=offload)
    three = stage3.estimate_zero3_model_states_mem_needs(
        1000, 100, workers, cpu_offload=offload, cpu_offload_params=offload
    )
    for stage, formula, theirs in ((2, memory.zero2, two), (3, memory.zero3, three[:2])):
        gpu = formula(FULL, workers, offload=offload)
        assert memory.model_states(FULL, stage, workers, offload=offload) == gpu
        assert theirs == (memory.cpu_memory(FULL, stage, workers, 8, offload=offload), gpu)


@pytest.mark.parametrize("method", [FULL, FLOAT32, LORA])
def test_a_higher_stage_or_more_workers_never_take_more(method: Method):
    for workers in (2, 3, 8, 64):
        for offload in (False, True):
            by_stage = [
                memory.model_states(method, stage, workers, offload=offload) for stage in (3, 2, 1)
            ]
            fewer = [
                memory.model_states(method, stage, workers - 1, offload=offload)
                for stage in (3, 2, 1)
            ]
            assert by_stage == sorted(by_stage)
            assert all(a <= b for a, b in zip(by_stage, fewer, strict=True))


# --- activations --------------------------------------------------------------------------------


def test_activations_by_hand(tiny: Architecture):
    logits = 8 * VOCAB
    assert memory.activations(tiny, 10, 2) == 10 * (LAYERS * (24 * HIDDEN + 8 * WIDTH) + logits)
    assert memory.activations(tiny, 10, 4) == 10 * (LAYERS * (40 * HIDDEN + 16 * WIDTH) + logits)
    checkpointed = LAYERS * 2 * HIDDEN + 24 * HIDDEN + 8 * WIDTH
    assert memory.activations(tiny, 10, 2, checkpointing=True) == 10 * (checkpointed + logits)
    assert (
        memory.activations(tiny, 10, 2, attended=10)
        == memory.activations(tiny, 10, 2) + 10 * LAYERS * 2 * 10 * 6
    )
    assert (
        memory.activations(tiny, 10, 2, frozen=True)
        == memory.activations(tiny, 10, 2) + 10 * logits
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
def test_a_block_keeps_about_what_is_estimated(
    dtype: str, itemsize: int, attention: str, checkpointing: bool
):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def kept(layers: int) -> int:
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            intermediate_size=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=2,
            attn_implementation=attention,
        )
        model = LlamaForCausalLM(config).to(getattr(torch, dtype)).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found: dict[int, torch.Tensor] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            return found.setdefault(tensor.untyped_storage().data_ptr(), tensor)

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model.model(torch.zeros(1, 64, dtype=torch.long), use_cache=False)
        sizes = {address: tensor.untyped_storage().nbytes() for address, tensor in found.items()}
        for weight in model.parameters():
            sizes.pop(weight.untyped_storage().data_ptr(), None)
        del out
        return sum(sizes.values())

    def estimated(layers: int) -> int:
        a = Architecture({}, layers, HIDDEN, WIDTH, 2, 0, 2, HIDDEN // 2, 512, dtype)
        attended = 64 if attention == "eager" else 0
        return memory.activations(a, 64, itemsize, attended=attended, checkpointing=checkpointing)

    assert kept(6) - kept(2) == pytest.approx(estimated(6) - estimated(2), rel=0.1)


# --- the command --------------------------------------------------------------------------------


def meow_plan(
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    *arguments: str,
) -> str:
    monkeypatch.setattr(sys, "argv", ["meow", "plan", f"target.model={tiny_model}", *arguments])
    with pytest.raises(SystemExit) as stop:
        main.main()
    out, err = capfd.readouterr()
    if stop.value.code:
        raise MeowError(err)
    return out


@pytest.fixture
def command(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    return lambda *arguments: meow_plan(tiny_model, monkeypatch, capfd, *arguments)


def test_the_command_prints_json(command: Callable[..., str]):
    found = json.loads(
        command(
            "--json",
            "--gpu-memory=1.5",
            "--gpus=8",
            "train.train_dtype=bfloat16",
            "train.objective=dpo",
        )
    )
    rows = found["rows"]
    assert (found["parameters"], found["workers"], found["gpu_memory"]) == (PARAMETERS, 8, 3 << 29)
    assert (
        found["tokens"] == 4 * 3 * 512
    )  # refusal, true answer and retain answer of each of 4 items
    assert [(row["method"], row["zero_stage"], row["offload"]) for row in rows] == [
        (method, stage, offload)
        for method in ("full", "lora")
        for offload in (False, True)
        for stage in (1, 2, 3)
    ]
    assert [i for i, row in enumerate(rows) if row["configured"]] == [1]
    assert rows[1]["states"] == 2 * PARAMETERS + int(18 * PARAMETERS / 8)
    assert rows[1]["buckets"] == 2 * 500_000_000
    for row in rows:
        assert row["gpu"] == row["states"] + row["activations"] + row["buckets"]
        assert row["fits"] == (row["gpu"] <= 3 << 29)
    for full, lora in zip(rows[:6], rows[6:], strict=True):
        assert lora["states"] < full["states"] or full["offload"]
    assert (
        found["least"]
        == "GPUs of 1.5 GiB: full fine-tuning fits on 1 with ZeRO 2; LoRA fits on 1 with ZeRO 2."
    )


def test_the_command_prints_a_table(command: Callable[..., str]):
    options = [
        "resources.train.offload=cpu",
        "resources.train.zero_stage=3",
        "resources.train.num_workers=2",
    ]
    printed = command("train.lora={rank: 8}", *options, "--gpu-memory=0.5")
    lines = [line.split() for line in printed.splitlines()]
    configured = next(i for i, line in enumerate(lines) if line[:1] == ["→"])
    assert lines[configured][1:4] == ["LoRA", "3", "CPU"]
    assert lines[configured][-1] == "no"
    assert "2048 tokens" in printed
    assert (
        printed.splitlines()[configured + 1]
        == "GPUs of 0.5 GiB: full fine-tuning does not fit; LoRA does not fit."
    )
    assert [(line[0], line[2], line[-1]) for line in lines[-2:]] == [
        ("memo", "1", "yes"),
        ("evaluate", "1", "yes"),
    ]


def test_a_generator_that_cannot_be_planned_for_is_left_out_with_the_reason(
    command: Callable[..., str], tiny_model: Path, tmp_path: Path
):
    found = json.loads(command("--json", "invert.model=/nowhere"))
    assert [row["stage"] for row in found["engines"]] == ["memo", "evaluate"]
    assert found["left_out"].startswith("`invert.model`: ")
    quantized = shutil.copytree(tiny_model, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq"}
    }
    (quantized / "config.json").write_text(json.dumps(config))
    assert "are quantised, which is not planned for." in command(f"invert.model={quantized}")


def test_engines_take_weights_and_a_cache_on_each_gpu(
    command: Callable[..., str], tiny_model: Path
):
    more = [
        "target.max_model_len=512",
        "resources.memo.tensor_parallel_size=2",
        "target.dtype=bfloat16",
    ]
    found = json.loads(
        command("--json", "--gpu-memory=0.002", f"invert.model={tiny_model}", *more)
    )["engines"]
    whole, cache, gpu = 4 * PARAMETERS, 2 * 4 * LAYERS * HIDDEN, int(0.002 * (1 << 30))
    assert [
        (row["stage"], row["gpus"], row["weights"], row["cache"], row["context"]) for row in found
    ] == [
        ("invert", 1, whole, cache, 1024),
        ("memo", 2, whole // 4, cache // 4, 512),
        ("evaluate", 1, whole // 2, cache // 2, 512),
    ]
    rooms = [max(0, int(0.9 * gpu - row["weights"]) // row["cache"]) for row in found]
    assert [row["room"] for row in found] == rooms
    assert [row["fits"] for row in found] == [False, True, True]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_nothing_is_said_to_fit(command: Callable[..., str]):
    assert "fits" not in command()
    found = json.loads(command("--json"))
    assert found["gpu_memory"] is None
    assert {row["fits"] for row in found["rows"]} == {None}
    assert found["least"].startswith("The least is ")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--gpus=0", "--gpus 0"),
        ("--gpu-memory=-1", "--gpu-memory -1.0"),
        ("--gpu-memory=nan", "--gpu-memory nan"),
        ("train.lora={layers: [x]}", "`train.lora.layers`"),
        ("target.model=/nowhere", "`target.model`"),
    ],
)
def test_a_mistake_is_named(command: Callable[..., str], argument: str, said: str):
    with pytest.raises(MeowError, match=said):
        command(argument)


def test_the_fewest_gpus_that_fit_are_named(
    tiny_model: Path, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
):
    large = replace(
        tiny, weights={f"model.layers.{i}.mlp.up_proj.weight": (14336, 4096) for i in range(120)}
    )
    monkeypatch.setattr(shapes, "of_target", lambda config: ("large", large))
    assert large.parameters == 7_046_430_720
    found = memory.plan(
        load_config(None, ["train.train_dtype=bfloat16", "train.max_length=64"]), 1, 80 << 30, 8
    )
    # GiB of weights 13.1, of what is cut 78.7 to 118.1, of buckets 1.9 (ZeRO 2: 0.9), of the gathered layer 0.2
    assert found.least == (
        "GPUs of 80 GiB: full fine-tuning fits on 4 with ZeRO 1, 2 with ZeRO 2, 1 with ZeRO 1 and offload; "
        "LoRA fits on 1 with ZeRO 1."
    )


def test_hardware_is_what_is_given_else_configured():
    config = load_config(None, ["resources.train.num_workers=3"])
    assert memory.hardware(config, None, 80) == (3, 80 << 30)
    assert memory.hardware(config, 5, 80) == (5, 80 << 30)
    assert memory.hardware(Config(), None, 80)[0] >= 1
