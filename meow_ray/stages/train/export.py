"""Writes a trained model as a Hugging Face folder."""

import json
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.models import folders, refs
from meow_ray.models.ends import declare_end
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import fila
from meow_ray.stages.train.adapters import ADAPTER
from meow_ray.stages.train.gram import GRAM_FILE
from meow_ray.stages.train.job import Job


def export_model(
    job: Job,
    engine: Any,
    rank: int,
    history: list[dict[str, Any]],
    gram_roots: dict[str, Any],
) -> None:
    """Writes the trained model as one Hugging Face folder.

    Every worker calls this, since all take part in gathering the weights; rank 0 writes.

    Args:
        job: what was trained, and where the model is written.
        engine: DeepSpeed's engine.
        rank: the number of this worker.
        history: the records of all steps.
        gram_roots: the roots that merging reads, by the name of the layer; empty writes none.
    """
    from safetensors.torch import save_file

    state = _gathered_weights(job, engine.module, rank)
    if rank != 0:
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if job.spec.lora is None:
            _save(engine.module, state, job.model, folder)
        else:
            _save_lora(engine.module, state, job, folder)
        if job.end is not None:
            declare_end(folder, job.end)
        if gram_roots:
            save_file(gram_roots, folder / GRAM_FILE)
        (folder / HISTORY_FILE).write_text(json.dumps(history))
        storage.copy_folder(str(folder), job.out)


def _gathered_weights(job: Job, module: Any, rank: int) -> dict[str, Any]:
    """Returns buffers and weights on the CPU by name; with LoRA only the trained ones."""
    import deepspeed
    import torch

    with_lora = job.spec.lora is not None
    dtype = torch.float32 if with_lora else getattr(torch, refs.stored_dtype(job.model))
    is_partitioned = job.resources.zero_stage == 3
    state = folders.stored_buffers(module)
    for name, parameter in module.named_parameters():  # tied weights once, as the source has them
        if with_lora and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter], enabled=is_partitioned):
            if rank == 0:
                state[name] = parameter.detach().to("cpu", dtype, copy=True)
    return state


def _save(module: Any, state: dict[str, Any], source: ModelRef, folder: Path) -> None:
    """Writes a model with the files of its source.

    Raises:
        MeowError: the weights differ from the source's in shape.
    """
    folders.write_like(source.folder, module, state, folder)
    # some sources store both names of one weight
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    expected = {
        name: shape for name, shape in folders.shapes(source.folder).items() if name not in tied
    }
    written = {name: shape for name, shape in folders.shapes(folder).items() if name not in tied}
    wrong = _differences(expected, written)
    if wrong:
        raise MeowError(
            "The shapes of the exported weights differ from the source's: "
            f"{', '.join(wrong[:3])}. Report this with the name of the model."
        )


def _differences(expected: dict[str, list[int]], written: dict[str, list[int]]) -> list[str]:
    """Returns names or shapes of written weights that the source does not have."""
    if expected.keys() == written.keys():
        return sorted(name for name in written if expected[name] != written[name])
    # old files have other names, and masks that models no longer load: compare the shapes alone
    remaining = Counter(map(tuple, expected.values()))
    remaining.subtract(map(tuple, written.values()))
    return sorted(str(shape) for shape, count in remaining.items() if count < 0)


def _save_lora(module: Any, state: dict[str, Any], job: Job, folder: Path) -> None:
    """Writes the adapter, or the model with the adapter merged into it."""
    assert job.spec.lora is not None
    adapter = folder
    if job.spec.lora.output == "merged":
        adapter = folder / "adapter"
    first = job.load_first_adapters()
    if first is not None:
        fila.relative_to_base(state, first, module.peft_config[ADAPTER])
    module.save_pretrained(adapter, state_dict=state)
    refs.write_base(job.model, adapter)
    if adapter == folder:
        base = job.model.uri if job.model.commit else str(job.model.folder)
        folders.name_base(folder, base, job.model.commit)
        folders.copy_files(job.model.folder, folder, without=("config.json",))
        return
    merged = refs.merged(job.model, adapter)
    shutil.rmtree(adapter)
    weights = folders.weights_of(merged, refs.stored_dtype(job.model))
    _save(merged, weights, job.model, folder)
