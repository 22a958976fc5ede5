"""The checks in order of importance: correct results, then MEMO and training, then the rest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from benchmarks.gpu_checks import memo, parity, pipeline, quantised, rates, training, zero
from benchmarks.gpu_checks.limits import limits
from benchmarks.gpu_checks.models import EIGHT_B, ONE_B
from benchmarks.gpu_checks.values import Measurement, Setting


@dataclass(frozen=True)
class Check:
    """A check, and what it needs."""

    name: str
    run: Callable[[Setting], Iterator[Measurement]]
    """It can be sent to another process."""
    most: float
    """Seconds after which it is stopped on a GPU."""
    least: float = 5.0
    """Seconds that must be left when it starts."""
    needs: tuple[str, ...] = ()
    """Packages that it imports, besides torch and transformers."""
    needs_gpu: bool = False
    alone: bool = False
    """It runs in a process of its own, since it does not give all memory back."""


VLLM = ("vllm", "pyarrow", "tenacity")
"""What the engine that runs vLLM imports."""
ZERO = ("deepspeed", "pyarrow", "pydantic", "tenacity")
"""What the training loop under DeepSpeed imports."""

LIMITS = Check("limits", limits, most=300)
"""It runs first, and whatever time the command has: all others need it."""

CHECKS = (
    Check("parity transformers float32", partial(parity.parity, "transformers", "float32"), 240),
    Check("parity transformers bfloat16", partial(parity.parity, "transformers", "bfloat16"), 240),
    Check("parity training", training.parity, most=120),
    Check("memo transformers", partial(memo.memo, "transformers"), most=300),
    Check("training", training.speed, most=420),
    Check(
        "parity vllm float32",
        partial(parity.parity, "vllm", "float32"),
        most=300,
        least=30,
        needs=VLLM,
        alone=True,
    ),
    Check(
        "memo vllm",
        partial(memo.memo, "vllm"),
        most=420,
        least=30,
        needs=VLLM,
        alone=True,
    ),
    Check(
        "zero",
        zero.zero,
        most=420,
        least=30,
        needs=ZERO,
        alone=True,
    ),
    Check("rates transformers 1B", partial(rates.rates, "transformers", ONE_B), most=180),
    Check(
        "rates vllm 1B",
        partial(rates.rates, "vllm", ONE_B),
        most=300,
        least=30,
        needs=VLLM,
        alone=True,
    ),
    Check("pipeline", pipeline.pipeline, most=600, least=60, needs=pipeline.NEEDS, alone=True),
    Check("quantised", quantised.quantised, most=180, needs=("bitsandbytes",), needs_gpu=True),
    Check(
        "rates transformers 8B",
        partial(rates.rates, "transformers", EIGHT_B),
        most=300,
        least=60,
        needs_gpu=True,
    ),
    Check(
        "rates vllm 8B",
        partial(rates.rates, "vllm", EIGHT_B),
        most=420,
        least=90,
        needs=VLLM,
        needs_gpu=True,
        alone=True,
    ),
    Check(
        "parity vllm bfloat16",
        partial(parity.parity, "vllm", "bfloat16"),
        most=300,
        least=30,
        needs=VLLM,
        alone=True,
    ),
)
