"""Writes a trained model as a Hugging Face folder."""

import json
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.core import storage
from meow_ray.core.manifest import HISTORY_FILE
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train.job import Job

_BESIDE = (".json", ".txt", ".model", ".jinja", ".py", ".md")
"""What goes along with an exported model: its tokenizer, templates, code and texts; never another's weights."""


def export_model(job: Job, engine: Any, rank: int, history: list[dict[str, Any]]) -> None:
    """Writes one Hugging Face folder; every worker takes part in gathering the weights."""
    import deepspeed
    import torch

    module, lora, dtype = engine.module, job.spec.lora, getattr(torch, refs.stored_dtype(job.model))
    state = _buffers(module)
    for name, parameter in module.named_parameters():  # tied weights once, as the source has them
        if lora is not None and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=job.resources.zero_stage == 3):
            if rank == 0:
                state[name] = parameter.detach().to(
                    "cpu", torch.float32 if lora else dtype, copy=True
                )
    if rank == 0:
        with TemporaryDirectory() as name:
            folder = Path(name)
            if lora is None:
                _save(module, state, job.model, folder)
            else:
                _save_lora(module, state, job, folder)
            (folder / HISTORY_FILE).write_text(json.dumps(history))
            storage.copy_folder(str(folder), job.out)


def _buffers(module: Any) -> dict[str, Any]:
    """Returns the buffers that are stored with a model."""
    kept = set(module.state_dict())
    return {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in kept}


def _save(module: Any, state: dict[str, Any], source: ModelRef, folder: Path) -> None:
    """Writes a model and all that stands beside the one it came from."""
    module.save_pretrained(folder, state_dict=state)
    module.config.dtype = refs.stored_dtype(source)  # transformers has put that of training there
    module.config.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    _copy_others(source.folder, folder)
    tied = set(
        getattr(module, "_tied_weights_keys", None) or ()
    )  # some sources store both names of one weight
    before, after = (
        {k: v for k, v in shapes(one).items() if k not in tied} for one in (source.folder, folder)
    )
    if before.keys() == after.keys():
        wrong = [name for name in after if before[name] != after[name]]
    else:  # old files have other names, and masks that no model loads any more
        left = Counter(map(tuple, before.values()))
        left.subtract(map(tuple, after.values()))
        wrong = [str(shape) for shape, count in left.items() if count < 0]
    if wrong:
        raise MeowError(
            f"The exported weights differ from the source's in shape: {', '.join(sorted(wrong)[:3])}."
        )


def _save_lora(module: Any, state: dict[str, Any], job: Job, folder: Path) -> None:
    """Writes the adapter, or the model that it was merged into."""
    import torch

    assert job.spec.lora is not None
    adapter = folder
    if job.spec.lora.output == "merged":
        adapter = folder / "adapter"
    module.save_pretrained(adapter, state_dict=state)
    refs.write_base(job.model, adapter)
    if adapter == folder:
        _copy_others(job.model.folder, folder)
        return
    merged = refs.merged(job.model, adapter)
    shutil.rmtree(adapter)
    dtype = getattr(torch, refs.stored_dtype(job.model))
    state = _buffers(merged) | {
        name: value.detach().to(dtype) for name, value in merged.named_parameters()
    }
    _save(merged, state, job.model, folder)


def _copy_others(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        beside = file.suffix in _BESIDE or file.stem.upper() in ("LICENSE", "NOTICE")
        ours = file.name.endswith(".index.json") or file.name in (
            "config.json",
            HISTORY_FILE,
            refs.BASE,
            refs.ADAPTER,
        )
        if file.is_file() and beside and not ours:
            shutil.copy(file, folder)


def shapes(folder: Path) -> dict[str, list[int]]:
    """Returns the names and shapes of a folder's weights."""
    from safetensors import safe_open

    out: dict[str, list[int]] = {}
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():  # other copies of the weights may lie beside those that are loaded
        files = sorted(
            {folder / name for name in json.loads(index.read_text())["weight_map"].values()}
        )
    else:
        files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as weights:
            out |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - not a dict
    return out
