"""Training without DeepSpeed and Ray: the layout, forward pass and loss of the stage `train`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.gpu_checks import flops, models
from benchmarks.gpu_checks.models import GIB, TINY
from benchmarks.gpu_checks.values import CheckError, Measurement, Setting
from meow_ray.models import refs
from meow_ray.models.prompts import IGNORE
from meow_ray.stages.train import layout
from meow_ray.stages.train.forward import LEAK, forward, packing_leak
from meow_ray.stages.train.items import Item, Pair, totals_of

PAD = 1
TOLERANCE = 1e-4
"""The largest relative difference of a float32 loss or gradient."""
STEPS = 8
"""Optimiser steps of a variant; the first two allocate memory and do not count."""


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    name: str
    packed: bool = True
    checkpointing: bool = False
    attention: str = "sdpa"
    adapter: bool = False


VARIANTS = (
    Variant("packed"),
    Variant("padded", packed=False),
    Variant("flash attention", attention="flash_attention_2"),
    Variant("checkpointing", checkpointing=True),
    Variant("LoRA", adapter=True),
)
"""All but the named property is as in the first: full, packed, SDPA, no checkpointing."""


def parity(setting: Setting) -> Iterator[Measurement]:
    """Compares a packed batch on the device with the padded batch on the CPU, both in float32.

    - `loss` and `norm of the gradient`: the relative difference of a tiny model, 1e-4 at most.

    Raises:
        CheckError: a difference is outside its tolerance.
    """
    items = random_items(8, 16, TINY.vocab)
    there = _loss_and_norm(items, setting.device, packed=True)
    here = _loss_and_norm(items, "cpu", packed=False)
    differences = [abs(a - b) / abs(b) for a, b in zip(there, here, strict=True)]
    for name, difference in zip(("loss", "norm of the gradient"), differences, strict=True):
        yield Measurement(name, difference, "relative difference")
    if not all(difference <= TOLERANCE for difference in differences):
        raise CheckError(f"float32 differs by more than {TOLERANCE}.")


def _loss_and_norm(items: Sequence[Item], device: str, *, packed: bool) -> tuple[float, float]:
    import torch

    model = models.build(TINY, "cpu", "float32").to(device)
    loss = _loss(model, items, device, packed=packed, keeps_logits=_keeps_logits(model))
    loss.backward()
    norm = torch.nn.utils.get_total_norm(parameter.grad for parameter in model.parameters())
    return loss.item(), norm.item()


def speed(setting: Setting) -> Iterator[Measurement]:
    """Trains a random model in bfloat16 with float32 weights, gradients and AdamW, in one process.

    A step is one batch of 16 pairs with 32 to 256 tokens (reduced: 4 with 8 to 16), arithmetic in
    bfloat16 by autocast. Each way of `VARIANTS` yields

    - tokens/s, without padding: the median over 6 steps. Its share is the model FLOPs utilisation;
      see `flops`.
    - peak memory, GiB (on a GPU only).
    - for packed rows, how much the logits of a pair depend on the pair before it, in standard
      deviations; 0.05 at most.

    Raises:
        CheckError: pairs of a packed row depend on one another.
    """
    from transformers.utils import is_flash_attn_2_available

    for variant in VARIANTS:
        if variant.attention == "flash_attention_2" and not is_flash_attn_2_available():
            yield Measurement(variant.name, None, note="missing: flash_attn")
        elif variant.adapter and not models.is_installed("peft"):
            yield Measurement(variant.name, None, note="missing: peft")
        else:
            yield from _measure(variant, setting)


def _measure(variant: Variant, setting: Setting) -> Iterator[Measurement]:
    import torch

    shape = models.shape_to_train(setting)
    count, longest = (4, 16) if setting.reduced else (16, 256)
    items = random_items(count, longest, shape.vocab)
    on_gpu = setting.device == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    model = models.build(
        shape, setting.device, "float32", attn_implementation=variant.attention
    ).train()
    sizes = flops.sizes_of(model)
    keeps_logits = _keeps_logits(model)
    adapter = None
    if variant.adapter:
        model = _with_adapter(model)
        adapter = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if variant.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if variant.packed:
        yield from _leak(variant, model, items, setting.device, keeps_logits)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=True)
    seconds = []
    for _ in range(STEPS):
        began = time.perf_counter()
        with torch.autocast(setting.device, dtype=torch.bfloat16):
            loss = _loss(
                model, items, setting.device, packed=variant.packed, keeps_logits=keeps_logits
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    if not torch.isfinite(loss):
        raise CheckError(f"{variant.name}: the loss is not finite.")
    lengths = [len(item["inverted"].input_ids) for item in items]
    predicted = totals_of(items)["inverted"].tokens
    work = flops.training_flops(sizes, lengths, predicted, adapter)
    typical = median(seconds[2:])
    share = work / typical / setting.limits.flops if setting.limits else None
    rate = sum(lengths) / typical
    yield Measurement(variant.name, rate, "tokens/s", share, "model FLOPs utilisation")
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() / GIB
        yield Measurement(f"{variant.name}, peak memory", peak, "GiB")


def _leak(
    variant: Variant, model: Any, items: Sequence[Item], device: str, keeps_logits: bool
) -> Iterator[Measurement]:
    import torch

    pairs = [item["inverted"] for item in items[:2]]
    model.eval()
    with torch.autocast(device, dtype=torch.bfloat16):
        leak = packing_leak(model, pairs, PAD, device, keeps_logits)
    model.train()
    yield Measurement(f"{variant.name}, leak between pairs", leak, "standard deviations")
    if not leak <= LEAK["bfloat16"]:
        raise CheckError(f"{variant.name}: attention leaks between packed pairs ({leak:.3g}).")


def _with_adapter(model: Any) -> Any:
    """Returns a model with a LoRA adapter of rank 16 on all linear layers."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def _keeps_logits(model: Any) -> bool:
    return "logits_to_keep" in refs.forward_parameters(model)


def _loss(
    model: Any, items: Sequence[Item], device: str, *, packed: bool, keeps_logits: bool
) -> Any:
    """Returns the loss of the objective `meow`, a scalar."""
    from meow_ray.stages.train import losses
    from meow_ray.stages.train.sequences import Sequences

    laid_out = layout.lay_out(items, PAD, device, packed=packed)
    logits, _ = forward(model, laid_out, keeps_logits, None)
    totals = totals_of(items)["inverted"]
    return losses.meow(
        Sequences(
            logits=logits,
            labels=laid_out.labels,
            owner=laid_out.owners,
            num_sequences=len(items),
            total_tokens=totals.tokens,
            total_sequences=totals.sequences,
        )
    )


def random_items(count: int, longest: int, vocab: int) -> list[Item]:
    """Returns pairs of random tokens, from an eighth of `longest` to `longest`; half is answer."""
    items: list[Item] = []
    for number, tokens in enumerate(models.random_tokens(count, longest, vocab)):
        length = max(4, longest * (number % 8 + 1) // 8)
        ids = tokens[:length]
        items.append({"inverted": Pair(ids, [IGNORE] * (length // 2) + ids[length // 2 :])})
    return items
