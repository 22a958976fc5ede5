"""Checkpoints of DeepSpeed, which any number of workers can resume from."""

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
"""Stands in a checkpoint: how its parts were cut."""


_TAG = "state"


def save(engine: Any, folder: Path, state: dict[str, Any], cut: Mapping[str, int]) -> None:
    """Writes this worker's part of a checkpoint; every worker calls it.

    Args:
        engine: DeepSpeed's engine.
        folder: an empty one.
        state: what the loop needs to go on.
        cut: how the parts are cut: ZeRO stage and number of workers.

    Raises:
        MeowError: it cannot be written.
    """
    try:
        engine.save_checkpoint(str(folder), tag=_TAG, client_state=state)
    except (OSError, RuntimeError) as error:
        if (
            isinstance(error, RuntimeError)
            and "PytorchStreamWriter" not in str(error)
            and "inline_container" not in str(error)
        ):
            raise
        free = shutil.disk_usage(folder).free / 2**30
        raise MeowError(
            f"A checkpoint cannot be written to {folder}, where {free:.1f} GiB are free ({type(error).__name__}). "
            "Make room, or set TMPDIR to a larger disk, and start again: training goes on from the last whole one."
        ) from None
    (folder / LAYOUT).write_text(json.dumps(dict(cut)))


def fits(folder: Path, cut: Mapping[str, int]) -> bool:
    """Tells whether a checkpoint was written by workers that are cut in this way."""
    return bool(json.loads((folder / LAYOUT).read_text()) == dict(cut))


def convert(folder: Path) -> Path:
    """Writes a checkpoint in the form that any number of workers reads; DeepSpeed calls it universal.

    Returns:
        A folder of this node's own, to be loaded by `restore` and then removed.
    """
    from deepspeed.checkpoint import ds_to_universal

    place = converted(folder)
    shutil.rmtree(place, ignore_errors=True)
    ds_to_universal.main(
        Namespace(
            input_folder=str(folder / _TAG),
            output_folder=str(place / "universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )
    return place


def converted(folder: Path) -> Path:
    """Returns where `convert` puts a checkpoint; the same for all workers that this node's parent process started."""
    name = hashlib.sha256(f"{folder}/{os.getppid()}".encode()).hexdigest()[:16]
    return Path(gettempdir()) / f"meow-universal-{name}"


def restore(engine: Any, folder: Path) -> dict[str, Any]:
    """Loads a checkpoint that `save` or `convert` wrote and returns what `save` was given."""
    path, state = engine.load_checkpoint(
        str(folder), tag=_TAG if (folder / _TAG).exists() else "universal"
    )
    assert path is not None, f"the checkpoint {folder} cannot be loaded"
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for (
        parameter,
        values,
    ) in inner.state.items():  # a universal checkpoint leaves one step on the CPU for all
        if hasattr(values.get("step"), "clone"):
            step = values["step"]
            values["step"] = (
                int(step) if hasattr(inner, "ds_opt_adam") else step.clone().to(parameter.device)
            )
    return dict(state)
