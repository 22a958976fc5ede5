"""Training with adapters that start from a part of the weights (FILA)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meow_ray.config import Lora, Train, TrainResources
from meow_ray.models import refs
from meow_ray.models.refs import pin
from meow_ray.stages.train import fila_stage
from meow_ray.stages.train.job import Job
from tests.integration.test_training import TOLERANCE, facts, losses, selected
from tests.support.training import Run, Workers, job

LORA = Lora(rank=4, init="fila")
SPEC = Train(
    objective="kl_min", epochs=2, batch_size=4, learning_rate=2e-4, num_batch=None, lora=LORA
)


def trained(
    folder: Path, model: Path, first: Path, workers: Workers, zero_stage: int, lora: Lora = LORA
) -> tuple[Job, list[dict[str, Any]]]:
    spec = SPEC.model_copy(update={"lora": lora})
    resources = TrainResources(zero_stage=zero_stage, micro_batch_size=1)
    made = job(folder, model, facts(), selected(), spec, resources, first_adapters=str(first))
    (history,) = workers.train([Run(made, folder / "checkpoints")])
    return made, history


@pytest.fixture(scope="module")
def first(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    pairs = job(folder, tiny_model, facts(), selected(), SPEC, TrainResources()).pairs
    file = folder / "first.safetensors"
    ref = pin(str(tiny_model), None, "model")
    assert fila_stage.write_tensors(ref, pairs, LORA, str(file)) == {
        "layers": 14,
        "forget": 5,
        "retain": 5,
    }
    return file


@pytest.fixture(scope="module")
def runs(
    tiny_model: Path, first: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Job, list[dict[str, Any]]]]]:
    folder = tmp_path_factory.mktemp("runs")
    one, two = Workers(1), Workers(2)
    adapter = LORA.model_copy(update={"output": "adapter"})
    yield {
        "zero 1, 1 worker": trained(folder, tiny_model, first, one, 1),
        "zero 2, 2 workers": trained(folder, tiny_model, first, two, 2),
        "zero 3, 2 workers": trained(folder, tiny_model, first, two, 3),
        "adapter": trained(folder, tiny_model, first, one, 1, adapter),
    }
    one.close()
    two.close()


def test_training_starts_from_the_target(runs: Any):
    for name, (_, history) in runs.items():
        assert history[0]["terms"]["kl"] == pytest.approx(0, abs=1e-5), name
        assert history[-1]["terms"]["kl"] > 1e-6, name


@pytest.mark.parametrize("name", ["zero 2, 2 workers", "zero 3, 2 workers"])
def test_losses_are_the_same_with_any_workers_and_zero_stage(runs: Any, name: str):
    expected = losses(runs["zero 1, 1 worker"][1])
    assert losses(runs[name][1]) == pytest.approx(expected, rel=10 * TOLERANCE)


def test_the_merged_model_equals_the_adapter_on_the_target(runs: Any):
    merged = load_file(Path(runs["zero 1, 1 worker"][0].out, "model.safetensors"))
    adapter = pin(runs["adapter"][0].out, None, "model")
    assert refs.load_model_config(adapter) is not None
    loaded = load_file(adapter.folder / "model.safetensors")
    for name, weight in merged.items():
        torch.testing.assert_close(weight, loaded[name])


def test_only_what_was_trained_differs_from_the_target(runs: Any, tiny_model: Path):
    before = load_file(tiny_model / "model.safetensors")
    after = load_file(Path(runs["zero 1, 1 worker"][0].out, "model.safetensors"))
    changes = {name: (after[name] - before[name]).norm().item() for name in before}
    assert all((change > 0) == ("_proj" in name) for name, change in changes.items())
    # the part that the adapter took at the start is back: the steps alone are left
    largest = max(changes.values())
    assert largest < 0.1 * before["model.layers.0.mlp.up_proj.weight"].norm().item()
