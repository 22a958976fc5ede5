"""Checkpoints of DeepSpeed that any number of workers can resume from."""

import hashlib
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from meow_ray.errors import MeowError

LAYOUT = "layout.json"
"""A file in each checkpoint: by how many workers, and at which ZeRO stage, it was written."""
_TAG = "state"


def save(engine: Any, folder: Path, state: dict[str, Any], cut: Mapping[str, int]) -> None:
    """Writes this worker's part of a checkpoint; every worker calls it.

    Args:
        engine: DeepSpeed's engine.
        folder: an empty folder.
        state: what the loop needs to resume.
        cut: ZeRO stage and number of workers, which decide how the states are partitioned.

    Raises:
        MeowError: the checkpoint cannot be written.
    """
    try:
        engine.save_checkpoint(str(folder), tag=_TAG, client_state=state)
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_write_error(error):
            raise
        free = shutil.disk_usage(folder).free / 2**30
        raise MeowError(
            f"{folder}: a checkpoint cannot be written ({free:.1f} GiB are free, "
            f"{type(error).__name__}). Free some space, or set TMPDIR to a larger disk, and start "
            "again: training resumes from the last complete checkpoint."
        ) from None
    (folder / LAYOUT).write_text(json.dumps(dict(cut)))


def _is_write_error(error: RuntimeError) -> bool:
    """Whether PyTorch failed to write a file, which it reports as a RuntimeError."""
    return "PytorchStreamWriter" in str(error) or "inline_container" in str(error)


def fits(folder: Path, cut: Mapping[str, int]) -> bool:
    """Whether a checkpoint was written with this ZeRO stage and number of workers."""
    return bool(json.loads((folder / LAYOUT).read_text()) == dict(cut))


def convert(folder: Path) -> Path:
    """Converts a checkpoint for any number of workers, to what DeepSpeed calls universal.

    Returns:
        A folder on this node. `restore` loads it; remove it afterwards.
    """
    from deepspeed.checkpoint import ds_to_universal

    target = converted(folder)
    shutil.rmtree(target, ignore_errors=True)
    ds_to_universal.main(
        Namespace(
            input_folder=str(folder / _TAG),
            output_folder=str(target / "universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    return target


def converted(folder: Path) -> Path:
    """Returns the folder of `convert`, the same for all workers of one parent on this node."""
    name = hashlib.sha256(f"{folder}/{os.getppid()}".encode()).hexdigest()[:16]
    return Path(gettempdir()) / f"meow-universal-{name}"


def restore(engine: Any, folder: Path) -> dict[str, Any]:
    """Loads a checkpoint that `save` or `convert` wrote; returns the state given to `save`."""
    tag = _TAG if (folder / _TAG).exists() else "universal"
    path, state = engine.load_checkpoint(str(folder), tag=tag)
    assert path is not None, f"the checkpoint {folder} cannot be loaded"
    optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    counts_in_python = hasattr(optimizer, "ds_opt_adam")
    for parameter, values in optimizer.state.items():
        step = values.get("step")
        if hasattr(step, "clone"):  # a universal checkpoint leaves one step on the CPU for all
            values["step"] = int(step) if counts_in_python else step.clone().to(parameter.device)
    return dict(state)
