"""Models between the target and the tuned model, by interpolation of their weights.

A step of training that is taken by a share a gives the weights (1 - a) · target + a · tuned (UWC,
the calibration of utility in OpenUnlearning). It needs no training, so that the smallest step that
forgets can be found afterwards.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from meow_ray.errors import MeowError
from meow_ray.models import folders


def interpolate(target: Path, tuned: Path, share: float, out: Path) -> None:
    """Writes the model at a share of the way from the target to the tuned model.

    The weights are computed in float32 and have the dtype, the names and the files of the tuned
    model, whose other files are copied. In memory there are one file of the result and two tensors.

    Args:
        target: folder of the model before training.
        tuned: folder of the model after training.
        share: the share; 0 gives the weights of the target, 1 those of the tuned model.
        out: an existing folder.

    Raises:
        MeowError: the two are not one model before and after training.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    _check_same_model(target, tuned)
    folders.copy_files(tuned, out)
    if (tuned / folders.INDEX).exists():
        shutil.copyfile(tuned / folders.INDEX, out / folders.INDEX)
    with ExitStack() as stack:
        before: dict[str, Any] = {}  # the open file of each tensor of the target
        for file in folders.weight_files(target):
            weights = stack.enter_context(safe_open(file, "pt"))
            before |= dict.fromkeys(weights.keys(), weights)
        for file in folders.weight_files(tuned):
            with safe_open(file, "pt") as after:
                names = after.keys()
                blended = {
                    name: _between(before[name].get_tensor(name), after.get_tensor(name), share)
                    for name in names
                }
                save_file(blended, out / file.name, after.metadata())


def _between(target: Any, tuned: Any, share: float) -> Any:
    """Returns one tensor at a share of the way; one of whole numbers is a buffer, not trained."""
    if not tuned.is_floating_point():
        return tuned
    blended = (1 - share) * target.float() + share * tuned.float()
    return blended.to(tuned.dtype)


def _check_same_model(target: Path, tuned: Path) -> None:
    """Refuses two models whose tensors differ in name or shape.

    Raises:
        MeowError: they do; names both folders and the first difference.
    """
    difference = next(_differences(folders.shapes(target), folders.shapes(tuned)), None)
    if difference is not None:
        raise MeowError(
            f"{target} and {tuned}: these are not one model before and after training "
            f"({difference}). Give the target, and the model that was trained from it."
        )


def _differences(target: dict[str, list[int]], tuned: dict[str, list[int]]) -> Iterator[str]:
    """Yields what differs between the shapes of two models, by the name of the tensor.

    The target may have tensors that the tuned model lacks and needs not: the export leaves out
    second names of tied weights, and masks that old files have in each block. A whole block is
    never left out.
    """
    kinds = {_kind(name) for name in tuned}
    for name in sorted(target.keys() | tuned.keys()):
        if name not in target:
            yield f"{name} is only in the second"
        elif name not in tuned:
            if _kind(name) in kinds:
                yield f"{name} is only in the first"
        elif target[name] != tuned[name]:
            yield f"{name} has the shapes {target[name]} and {tuned[name]}"


def _kind(name: str) -> str:
    """Returns the name of a tensor without the numbers of its block and expert."""
    return re.sub(r"\d+", "#", name)
