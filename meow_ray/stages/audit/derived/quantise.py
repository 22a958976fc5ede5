"""Quantised models: weights rounded to fewer bits and written back in the model's own dtype.

A quantised model computes with the rounded weights in a wider dtype, so this gives the same answers
as serving the quantised file, apart from kernels that round activations, too. Zhang et al. (arXiv
2410.16454) found that 4 bits bring back most of what some methods unlearn with small updates.
"""

from importlib.util import find_spec
from typing import Any

from meow_ray.stages.audit.derived.matrices import matrices
from meow_ray.stages.audit.reasons import MissingError

GROUP = 128
"""Weights along the input that share a scale in 4 bits, as in GPTQ (arXiv 2210.17323)."""
NF4_BLOCK = 64
"""Weights that share a scale in nf4 (QLoRA, arXiv 2305.14314)."""


def quantise(model: Any, form: str) -> None:
    """Rounds the matrices of a model in place.

    `bf16` changes nothing in a model that is stored in bfloat16.

    Args:
        model: a causal language model of transformers.
        form: `bf16`, `int8`, `int4` or `nf4`.

    Raises:
        MissingError: the format or the model cannot be quantised here.
    """
    rounding = {
        "bf16": rounded_to_bf16,
        "int8": rounded_to_int8,
        "int4": rounded_to_int4,
        "nf4": _rounded_to_nf4,
    }[form]
    for matrix in matrices(model):
        weight = matrix.weight
        weight.copy_(rounding(weight.float()))


def rounded_to_bf16(weight: Any) -> Any:
    """Returns float32 weights rounded to bfloat16, in float32."""
    return weight.bfloat16().float()


def rounded_to_int8(weight: Any) -> Any:
    """Returns weights `[out, in]` rounded to 255 levels per output channel.

    The scale of a channel is its largest magnitude / 127; levels are symmetric around 0.
    """
    return _rounded(weight, 127)


def rounded_to_int4(weight: Any, group: int = GROUP) -> Any:
    """Returns weights `[out, in]` rounded to 15 levels per group of a channel.

    The scale of a group is its largest magnitude / 7; levels are symmetric around 0. The last group
    is shorter if `group` does not divide the number of inputs.
    """
    import torch

    rows, columns = weight.shape
    padding = -columns % group
    groups = torch.nn.functional.pad(weight, (0, padding)).reshape(-1, group)
    return _rounded(groups, 7).reshape(rows, columns + padding)[:, :columns]


def _rounded(weight: Any, levels: int) -> Any:
    """Returns rows rounded to the nearest multiple of their scale, from -levels to levels."""
    scale = weight.abs().amax(dim=1, keepdim=True) / levels
    scale[scale == 0] = 1  # a row of zeros
    return (weight / scale).round().clamp(-levels, levels) * scale


def _rounded_to_nf4(weight: Any) -> Any:
    """Returns weights rounded by bitsandbytes to the 16 levels of nf4."""
    if not weight.is_cuda:
        raise MissingError("no_gpu", "nf4 needs a GPU")
    if find_spec("bitsandbytes") is None:
        raise MissingError("no_package", "nf4 needs the package bitsandbytes")
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4"
    )
    return functional.dequantize_4bit(packed, state).reshape(weight.shape)
