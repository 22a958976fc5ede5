"""How fast this CPU computes in bfloat16."""

from typing import Any

NOTABLE = 3.0
"""A slowdown above which the user is told."""

_SIZE = 256
_REPEATS = 3


def bfloat16_slowdown() -> float:
    """Returns how many times longer a product of matrices takes in bfloat16 than in float32.

    CPUs without instructions for bfloat16, such as most laptops', take 50 times as long and more.
    The measurement takes less than a second.
    """
    import torch

    return _seconds(torch.bfloat16) / _seconds(torch.float32)


def _seconds(dtype: Any) -> float:
    """Returns the median time of a product of two square matrices."""
    import torch
    from torch.utils.benchmark import Timer

    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    timer = Timer(
        "matrix @ matrix", globals={"matrix": matrix}, num_threads=torch.get_num_threads()
    )
    timer.timeit(1)
    return float(timer.timeit(_REPEATS).median)
