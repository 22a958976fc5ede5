"""What the device can do: the figures that all others are compared with."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.gpu_checks.values import Measurement, Setting

GIB = 1 << 30
DEVICE, MATRIX_RATE, BANDWIDTH = "device", "bf16 matrix rate", "memory bandwidth"
"""The names of the measurements that the command reads."""


def limits(setting: Setting) -> Iterator[Measurement]:
    """Measures the device with torch alone.

    - `bf16 matrix rate`, TFLOP/s: the product of two random 8192 × 8192 matrices (reduced: 128).
    - `memory bandwidth`, TB/s: a copy of 4 GiB within the device, bytes read and written (reduced:
      16 MiB).

    Both are the median of at least 2 s (reduced: 0.1 s) by `torch.utils.benchmark`.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    reduced = device == "cpu"
    name = "cpu" if reduced else torch.cuda.get_device_name(0)
    yield Measurement(DEVICE, name, note="cpu, reduced" if reduced else "")
    if not reduced:
        memory = torch.cuda.get_device_properties(0).total_memory
        yield Measurement("memory", memory / GIB, "GiB")
        yield Measurement("devices", float(torch.cuda.device_count()))
    seconds = 0.1 if reduced else 2.0
    width = 128 if reduced else 8192
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * width**3 / _median_seconds(lambda: a @ b, seconds)
    yield Measurement(MATRIX_RATE, rate / 1e12, "TFLOP/s", 1.0)
    num_bytes = (16 << 20) if reduced else 4 * GIB
    source = torch.ones(num_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    bandwidth = 2 * num_bytes / _median_seconds(lambda: target.copy_(source), seconds)
    yield Measurement(BANDWIDTH, bandwidth / 1e12, "TB/s", 1.0)


def _median_seconds(function: Callable[[], Any], least_seconds: float) -> float:
    """Returns the median time of a call; the timer waits for the device."""
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": function})
    return float(timer.blocked_autorange(min_run_time=least_seconds).median)
