"""DeepSpeed's settings, the requirements of 4-bit weights, and failing checkpoints."""

import json
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from meow_ray.config import FineTuning, Lora, TrainResources
from meow_ray.errors import MeowError
from meow_ray.stages.train import checkpoints, zero

PLAIN = TrainResources(zero_stage=2, micro_batch_size=3)


def settings(
    own: Any = None, resources: TrainResources = PLAIN, on_gpu: bool = True, **spec: Any
) -> dict[str, Any]:
    return zero.settings(FineTuning(**spec), resources, 5, on_gpu=on_gpu, user_settings=own or {})


def test_deepspeed_settings_follow_from_the_configuration():
    found = settings(max_grad_norm=0.7, train_dtype="bfloat16")
    assert found["train_micro_batch_size_per_gpu"] == 3
    assert found["gradient_accumulation_steps"] == 5
    assert found["gradient_clipping"] == 0.7
    assert found["zero_optimization"] == {"stage": 2}
    assert found["bf16"] == {"enabled": True}
    assert found["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings()["bf16"] == {"enabled": False}


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_offload_moves_optimiser_states_and_with_zero_3_weights(stage: int, offload: str):
    found = settings(None, TrainResources(zero_stage=stage, offload=offload))["zero_optimization"]
    place = {"device": "cpu", "pin_memory": True}
    assert found.get("offload_optimizer") == (place if offload == "cpu" else None)
    assert found.get("offload_param") == (place if offload == "cpu" and stage == 3 else None)


def test_nvme_needs_zero_3_and_a_folder():
    whole = TrainResources(zero_stage=3, offload="nvme", nvme_path="/disk")
    assert settings(None, whole)["zero_optimization"]["offload_param"]["nvme_path"] == "/disk"
    for lacking in (
        TrainResources(offload="nvme", nvme_path="/disk"),
        TrainResources(zero_stage=3, offload="nvme"),
    ):
        with pytest.raises(MeowError, match="nvme"):
            settings(None, lacking)


def test_a_users_settings_are_added():
    own = {
        "zero_optimization": {"overlap_comm": True, "stage": "auto"},
        "wall_clock_breakdown": True,
    }
    found = settings(own)
    assert found["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert found["wall_clock_breakdown"] is True
    assert found["gradient_clipping"] == 1.0


def test_a_users_settings_replace_only_our_defaults():
    own = {"zero_optimization": {"reduce_bucket_size": 7}, "steps_per_print": 10}
    found = settings(own, on_gpu=False)
    assert found["zero_optimization"]["reduce_bucket_size"] == 7
    assert found["zero_optimization"]["allgather_bucket_size"] == 5e7
    assert found["steps_per_print"] == 10


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"gradient_clipping": 0.5}, ["gradient_clipping is 0.5", "1.0"]),
        ({"zero_optimization": {"stage": 3}}, ["zero_optimization.stage is 3", "2"]),
        ({"bf16": {"enabled": True}}, ["bf16.enabled is True", "False"]),
        ({"bf16": 1}, ["bf16 is 1"]),
        ({"train_micro_batch_size_per_gpu": 8}, ["train_micro_batch_size_per_gpu is 8", "3"]),
        ({"optimizer": {"type": "Adam"}}, ["optimizer", "learning_rate"]),
        ({"scheduler": {"type": "WarmupLR"}}, ["scheduler", "warmup_ratio"]),
        ({"fp16": {"enabled": True}}, ["fp16", "train_dtype"]),
        ({"train_batch_size": 8}, ["train_batch_size", "batch_size"]),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            ["offload_optimizer.device", "`offload`"],
        ),
        ({"checkpoint": {"load_universal": True}}, ["checkpoint.load_universal"]),
    ],
)
def test_a_setting_that_contradicts_the_configuration_is_refused(
    own: dict[str, Any], words: list[str]
):
    with pytest.raises(MeowError) as caught:
        settings(own)
    for word in ["`deepspeed`", *words]:
        assert word in str(caught.value)


def test_offload_accepts_other_settings_of_a_file():
    own = {"zero_optimization": {"offload_param": {"device": "cpu", "buffer_size": 7}}}
    found = settings(own, TrainResources(zero_stage=3, offload="cpu"))["zero_optimization"][
        "offload_param"
    ]
    assert found == {"device": "cpu", "pin_memory": True, "buffer_size": 7}


def test_a_file_may_disable_fp16():
    assert settings({"fp16": {"enabled": False}})["bf16"] == {"enabled": False}


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_file_without_a_json_object_is_refused_by_name(content: str):
    with pytest.raises(MeowError, match=r"ds\.json is not (valid JSON|a JSON object)"):
        zero.read_settings("ds.json", content.encode())
    assert zero.read_settings("ds.json", json.dumps({"a": 1}).encode()) == {"a": 1}


def test_four_bits_need_a_gpu_and_their_package(monkeypatch: pytest.MonkeyPatch):
    spec = FineTuning(lora=Lora(quantize="nf4"))
    with pytest.raises(MeowError, match="needs a GPU"):
        zero.check_quantization(spec, on_gpu=False)
    monkeypatch.setattr(zero, "find_spec", lambda name: None)
    with pytest.raises(MeowError, match="pip install bitsandbytes"):
        zero.check_quantization(spec, on_gpu=True)
    zero.check_quantization(FineTuning(lora=Lora()), on_gpu=False)


class Engine:
    """Writes a checkpoint as DeepSpeed does: with torch.save."""

    def save_checkpoint(self, folder: str, tag: str, client_state: dict[str, Any]) -> None:
        Path(folder, tag).mkdir()
        torch.save(torch.zeros(1 << 20), Path(folder, tag, "part.pt"))


def test_a_checkpoint_on_a_full_disk_is_refused_and_leaves_none(tmp_path: Path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        with pytest.raises(MeowError, match=r"checkpoint cannot be written.*GiB are free.*TMPDIR"):
            checkpoints.save(Engine(), tmp_path, {}, {"zero_stage": 2, "workers": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / checkpoints.LAYOUT).exists(), (
        "a folder without a layout is not a checkpoint"
    )
