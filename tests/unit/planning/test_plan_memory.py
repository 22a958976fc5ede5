"""`meow plan` without facts: what fits, which engines are planned, and how mistakes are named."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from meow_ray.cli import main
from meow_ray.config import Config
from meow_ray.config.files import load_config
from meow_ray.errors import MeowError
from meow_ray.planning import memory
from meow_ray.planning.shapes import target_shapes
from tests.support.tiny import HIDDEN, LAYERS, PARAMETERS

Command = Callable[..., str]


@pytest.fixture
def meow_plan(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """Runs `meow plan` and returns its output; a failure raises what it printed as an error."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["meow", "plan", f"target.model={tiny_model}", *arguments])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capfd.readouterr()
        if stop.value.code:
            raise MeowError(err)
        return out

    return run


def test_json_has_a_row_per_method_stage_and_offload(meow_plan: Command):
    printed = meow_plan(
        "--json",
        "--gpu-memory=1.5",
        "--gpus=8",
        "train.train_dtype=bfloat16",
        "train.objective=dpo",
    )
    plan = json.loads(printed)
    rows = plan["rows"]
    assert (plan["parameters"], plan["workers"], plan["gpu_memory"]) == (PARAMETERS, 8, 3 << 29)
    # refusal, true answer and retain answer of each of 4 items
    assert plan["tokens"] == 4 * 3 * 512
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
    assert plan["least"] == (
        "GPUs of 1.5 GiB: full fine-tuning fits on 1 with ZeRO 2; LoRA fits on 1 with ZeRO 2."
    )


def test_the_table_marks_the_configured_row(meow_plan: Command):
    printed = meow_plan(
        "train.objective=meow",
        "train.lora={rank: 8}",
        "resources.train.offload=cpu",
        "resources.train.zero_stage=3",
        "resources.train.num_workers=2",
        "--gpu-memory=0.5",
    )
    lines = printed.splitlines()
    cells = [line.split() for line in lines]
    configured = next(i for i, row in enumerate(cells) if row[:1] == ["→"])
    assert cells[configured][1:4] == ["LoRA", "3", "CPU"]
    assert cells[configured][-1] == "no"
    assert "2048 tokens" in printed
    assert lines[configured + 1] == (
        "GPUs of 0.5 GiB: full fine-tuning does not fit; LoRA does not fit."
    )
    assert [(row[0], row[2], row[-1]) for row in cells[-2:]] == [
        ("memo", "1", "yes"),
        ("evaluate", "1", "yes"),
    ]


def test_a_generator_without_readable_shapes_is_omitted_with_the_reason(
    meow_plan: Command, tiny_model: Path, tmp_path: Path
):
    plan = json.loads(meow_plan("--json", "invert.model=/nowhere"))
    assert [row["stage"] for row in plan["engines"]] == ["memo", "evaluate"]
    assert plan["left_out"].startswith("`invert.model`: ")
    quantized = shutil.copytree(tiny_model, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (quantized / "config.json").write_text(json.dumps(config))
    printed = meow_plan(f"invert.model={quantized}")
    assert f"invert: the weights of {quantized} are quantised" in printed
    assert "their memory is not estimated." in printed


def test_engines_need_weights_and_a_cache_on_each_gpu(meow_plan: Command, tiny_model: Path):
    printed = meow_plan(
        "--json",
        "--gpu-memory=0.002",
        f"invert.model={tiny_model}",
        "target.max_model_len=512",
        "target.dtype=bfloat16",
        "resources.memo.tensor_parallel_size=2",
    )
    rows = json.loads(printed)["engines"]
    weights = 4 * PARAMETERS
    cache = 2 * 4 * LAYERS * HIDDEN
    gpu_memory = int(0.002 * (1 << 30))
    columns = ("stage", "gpus", "weights", "cache", "context")
    assert [tuple(row[name] for name in columns) for row in rows] == [
        ("invert", 1, weights, cache, 1024),
        ("memo", 2, weights // 4, cache // 4, 512),
        ("evaluate", 1, weights // 2, cache // 2, 512),
    ]
    rooms = [max(0, int(0.9 * gpu_memory - row["weights"]) // row["cache"]) for row in rows]
    assert [row["room"] for row in rows] == rooms
    assert [row["fits"] for row in rows] == [False, True, True]


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_a_context_longer_than_the_cache_on_cpu_is_announced(
    meow_plan: Command, tiny_model: Path, tmp_path: Path
):
    assert "Warning" not in meow_plan()
    long = shutil.copytree(tiny_model, tmp_path / "long")
    config = json.loads((long / "config.json").read_text())
    (long / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1 << 20}))
    printed = " ".join(meow_plan(f"target.model={long}").split())
    room = (1 << 30) // (2 * 4 * LAYERS * HIDDEN)
    assert (
        f"Warning: on CPU, vLLM's cache for memo holds {room:,} of the model's 1,048,576 tokens. "
        "If rows are longer, raise resources.memo.kv_cache_gib."
    ) in printed


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a GPU")
def test_without_a_gpu_the_plan_leaves_open_what_fits(meow_plan: Command):
    assert "fits" not in meow_plan()
    plan = json.loads(meow_plan("--json"))
    assert plan["gpu_memory"] is None
    assert {row["fits"] for row in plan["rows"]} == {None}
    assert plan["least"].startswith("The smallest requirement is ")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gpus=0", r"--gpus: training needs at least one GPU \(got 0\)\. Give 1 or more\."),
        ("--gpu-memory=-1", r"--gpu-memory: .* must be a positive number \(got -1\.0\)\."),
        ("--gpu-memory=nan", r"--gpu-memory: .* must be a positive number \(got nan\)\."),
        ("train.lora={layers: [x]}", r"`train\.lora\.layers`: .* \(x\)\."),
        ("target.model=/nowhere", r"`target\.model`: "),
    ],
)
def test_a_mistake_is_named(meow_plan: Command, argument: str, message: str):
    with pytest.raises(MeowError, match=message):
        meow_plan(argument)


def test_the_fewest_gpus_that_fit_are_named(tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = target_shapes(load_config(None, [f"target.model={tiny_model}"]))[1]
    weights = {f"model.layers.{i}.mlp.up_proj.weight": (14336, 4096) for i in range(120)}
    large = replace(tiny, weights=weights)
    assert large.parameters == 7_046_430_720
    monkeypatch.setattr(memory, "target_shapes", lambda config: ("large", large))
    config = load_config(None, ["train.train_dtype=bfloat16", "train.max_length=64"])
    plan = memory.plan_memory(config, 1, 80 << 30, 8)
    # GiB: weights 13.1, partitioned states 78.7 to 118.1, buckets 1.9 (ZeRO 2: 0.9), gathered
    # layer 0.2
    assert plan.least == (
        "GPUs of 80 GiB: full fine-tuning fits on 4 with ZeRO 1, 2 with ZeRO 2, "
        "1 with ZeRO 1 and offload; LoRA fits on 1 with ZeRO 1."
    )


def test_options_take_precedence_over_configured_hardware():
    config = load_config(None, ["resources.train.num_workers=3"])
    assert memory.hardware(config, None, 80) == (3, 80 << 30)
    assert memory.hardware(config, 5, 80) == (5, 80 << 30)
    assert memory.hardware(Config(), None, 80)[0] >= 1
