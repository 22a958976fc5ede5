"""Loading a model in four bits, as `train.lora.quantize: nf4` does."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_checks import models
from benchmarks.gpu_checks.models import GIB, ONE_B
from benchmarks.gpu_checks.values import CheckError, Measurement, Setting


def quantised(setting: Setting) -> Iterator[Measurement]:
    """Loads the random 1B model in bfloat16 and in NF4 with bitsandbytes, on the GPU.

    - `memory in bfloat16`, `memory in NF4`, GiB: what the loaded weights take.
    - `change of the logits`: the mean difference that NF4 makes on 64 random tokens, in standard
      deviations of the logits. It is reported; only a value that is not finite fails.

    Raises:
        CheckError: the logits are not finite, or NF4 takes no less memory.
    """
    import torch
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.bfloat16,
    )
    expected, whole = _logits(setting, None)
    yield Measurement("memory in bfloat16", whole / GIB, "GiB")
    logits, packed = _logits(setting, nf4)
    yield Measurement("memory in NF4", packed / GIB, "GiB")
    change = float((logits - expected).abs().mean() / expected.std())
    yield Measurement("change of the logits", change, "standard deviations")
    if not bool(torch.isfinite(logits).all()):
        raise CheckError("the logits in NF4 are not finite.")
    if packed >= whole:
        raise CheckError(f"NF4 takes {packed / GIB:.2f} GiB, bfloat16 {whole / GIB:.2f} GiB.")


def _logits(setting: Setting, quantization: Any) -> tuple[Any, int]:
    """Returns a model's logits of random tokens on the CPU, and the bytes of the loaded model."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"quantization_config": quantization} if quantization else {}
    before = torch.cuda.memory_allocated()
    model = AutoModelForCausalLM.from_pretrained(
        models.saved(setting, ONE_B, "bfloat16").folder,
        dtype=torch.bfloat16,
        device_map={"": 0},
        **options,
    ).eval()
    num_bytes = torch.cuda.memory_allocated() - before
    tokens = torch.tensor(models.random_tokens(1, 64, ONE_B.vocab), device="cuda")
    with torch.inference_mode():
        logits = model(input_ids=tokens).logits
    return logits.float().cpu(), num_bytes
