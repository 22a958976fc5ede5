"""How much memory fine-tuning and engines take: arithmetic over a model's shapes, before any weight is loaded.

All amounts are bytes. N is the number of workers, n those of one node, W the bytes of all weights, P the parameters, T
those that are updated, L those of the largest layer, w the bytes of an element in the arithmetic of training.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from math import inf, prod
from typing import Literal

from meow_ray.config import Config, Lora
from meow_ray.errors import MeowError
from meow_ray.planning import shapes
from meow_ray.planning.engines import EngineRow, engines
from meow_ray.planning.shapes import Architecture
from meow_ray.stages.train.objectives import ObjectiveSpec, resolve, source_of

GIB = 1 << 30
NAMES = {"full": "full fine-tuning", "lora": "LoRA"}
_MOST = 1024
"""Workers that are tried to find out what fits."""
_WAYS = tuple((stage, offload) for offload in (False, True) for stage in (1, 2, 3))


@dataclass(frozen=True)
class Method:
    """What a way of fine-tuning holds and updates."""

    name: Literal["full", "lora"]
    parameters: int
    trainable: int
    largest_layer: int
    weights: int
    itemsize: int
    frozen: int = 0
    """Bytes of the model before training, where it stays beside the one that is trained."""


@dataclass(frozen=True)
class Row:
    """Bytes that one way to train takes: of a worker's GPU, and of a node's CPU memory."""

    method: Literal["full", "lora"]
    zero_stage: int
    offload: bool
    """Optimiser states live in CPU memory (offload nvme: on disk), with ZeRO 3 weights too."""
    states: int
    activations: int
    buckets: int
    gpu: int
    """The sum of the three."""
    cpu: int
    fits: bool | None
    """None without a GPU to compare with."""
    configured: bool


@dataclass(frozen=True)
class Plan:
    """What each way to train takes, and each engine."""

    model: str
    parameters: int
    tokens: int
    """The most tokens in one forward pass."""
    workers: int
    gpus_per_node: int
    gpu_memory: int | None
    rows: tuple[Row, ...]
    least: str
    """A sentence: what fits with the fewest GPUs."""
    engines: tuple[EngineRow, ...]
    left_out: str
    """Why an engine is not among them."""


# --- model states -------------------------------------------------------------------------------


def zero1(m: Method, workers: int, *, offload: bool) -> float:
    """W + gT + 12T/N: the optimiser states are cut (ZeRO, arXiv 1910.02054, sec. 5.1). With offload W + gT.

    12 are float32 weights, momentum and variance (sec. 3.1); DeepSpeed copies weights that are in float32 already, too.
    g is 4, but 6 with weights in 16 bits, whose gradients it sums in float32.
    """
    return m.weights + _gradient(m) * m.trainable + (0 if offload else 12 * m.trainable / workers)


def zero2(m: Method, workers: int, *, offload: bool) -> float:
    """W + (g + 12)T/N: gradients, too, are cut (arXiv 1910.02054, sec. 5.2). With offload W."""
    return m.weights + (0 if offload else (_gradient(m) + 12) * m.trainable / workers)


def zero3(m: Method, workers: int, *, offload: bool) -> float:
    """(W + 16T)/N + 2wL: weights, too, are cut, L is gathered with its gradient (sec. 5.3). With offload 2wL."""
    return 2 * m.itemsize * m.largest_layer + (
        0 if offload else (m.weights + 16 * m.trainable) / workers
    )


def _gradient(m: Method) -> int:
    return 6 if m.itemsize == 2 else 4


def cpu_memory(m: Method, stage: int, workers: int, gpus_per_node: int, *, offload: bool) -> float:
    """1.5 max(4Pn, 16Tn/N): each worker loads the model in float32, offload keeps gradients and optimiser states.

    With ZeRO 3 it is 1.5 max(4Ln, (W + 16T)n/N): a layer is cut when it is loaded. Without offload nothing is kept. 1.5
    is `additional_buffer_factor` of DeepSpeed's estimators, which say the same of one node.
    """
    here = min(workers, gpus_per_node)
    loaded = 4 * here * (m.largest_layer if stage == 3 else m.parameters)
    kept = (16 * m.trainable + (m.weights if stage == 3 else 0)) * here / workers
    return 1.5 * max(loaded, kept if offload else 0)


def model_states(m: Method, stage: int, workers: int, *, offload: bool) -> int:
    """Returns GPU memory of a worker for weights, gradients and optimiser states.

    DeepSpeed's own estimators give it where they apply: ZeRO 2 and 3, all weights updated, in 16 bits.
    """
    frozen = m.frozen // (workers if stage == 3 else 1)
    if stage == 1 or m.itemsize != 2 or m.trainable != m.parameters:
        return int((zero1, zero2, zero3)[stage - 1](m, workers, offload=offload)) + frozen
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    if stage == 2:
        _, gpu = stage_1_and_2.estimate_zero2_model_states_mem_needs(
            m.parameters, workers, cpu_offload=offload
        )
    else:
        _, gpu, _ = stage3.estimate_zero3_model_states_mem_needs(
            m.parameters, m.largest_layer, workers, cpu_offload=offload, cpu_offload_params=offload
        )
    return int(gpu) + frozen


# --- what else stands on the GPU ----------------------------------------------------------------


def bucket(stage: int, itemsize: int) -> int:
    """4 · 5e8, with ZeRO 2 w · 5e8: DeepSpeed's default `reduce_bucket_size`, allocated whole for any model."""
    return 500_000_000 * (itemsize if stage == 2 else 4)


def activations(
    a: Architecture,
    tokens: int,
    itemsize: int,
    *,
    attended: int = 0,
    checkpointing: bool = False,
    frozen: bool = False,
) -> int:
    """What a forward pass keeps for the backward pass, and the loss.

    As in Korthikanti et al. (arXiv 2205.05198, sec. 4.1), but for blocks of our time without dropout, with width h and
    feed-forward width f: a token keeps 8h + w(8h + 4f) in each. That is the input of two norms in float32, their
    results before and after scaling, query, key, value and the output of attention, and four results in a gated
    feed-forward network. An attention matrix that is kept adds 4 bytes for each head and token attended to, 6 in 16
    bits. With checkpointing (sec. 5) it is wh in each block and all of the above in one.

    Logits and their gradient, in float32, add 8 bytes for each entry of the vocabulary.

    Args:
        a: the model.
        tokens: in the forward pass; all may get a loss.
        itemsize: w.
        attended: length of a row of the attention matrix; 0 if the kernel does not keep it.
        checkpointing: compute activations twice.
        frozen: the model before training has logits, too.
    """
    matrix = a.heads * attended * (6 if itemsize == 2 else 4)
    block = 8 * a.hidden + itemsize * (8 * a.hidden + 4 * a.intermediate) + matrix
    blocks = itemsize * a.hidden * a.layers + block if checkpointing else block * a.layers
    return tokens * (blocks + 8 * a.vocab * (1 + frozen))


# --- the plan -----------------------------------------------------------------------------------


def methods(a: Architecture, config: Config, objective: ObjectiveSpec) -> tuple[Method, Method]:
    """Returns full fine-tuning and LoRA, as the configuration sets them.

    Raises:
        MeowError: `train.trainable` or `train.lora.layers` names nothing.
    """
    size, lora = 2 if config.train.train_dtype == "bfloat16" else 4, config.train.lora or Lora()
    updated = [
        shape
        for name, shape in a.weights.items()
        if re.fullmatch(objective.trainable or ".*", name)
    ]
    ends = tuple(f".{name}" for name in lora.layers)
    adapted = [shape for name, shape in a.linear.items() if not ends or f".{name}".endswith(ends)]
    for key, found in (("train.trainable", updated), ("train.lora.layers", adapted)):
        if not found:
            raise MeowError(f"`{key}`: the model's files have no weights of such a name.")
    total, adapters, weights = a.parameters, lora.rank * sum(map(sum, adapted)), size * a.parameters
    frozen = weights if objective.needs_frozen else 0
    full = Method("full", total, sum(map(prod, updated)), a.largest_layer, weights, size, frozen)
    if (
        lora.quantize == "nf4"
    ):  # 4 bits, and a float32 scale for each 64 elements (arXiv 2305.14314, sec. 2)
        weights += int((1 / 2 + 4 / 64 - size) * sum(map(prod, a.linear.values())))
    weights += size * adapters
    return full, Method("lora", total + adapters, adapters, a.largest_layer, weights, size)


def hardware(config: Config, gpus: int | None, gib: float | None) -> tuple[int, int | None]:
    """Returns the number of workers and a GPU's memory: what is given, else configured, else what torch sees.

    Raises:
        MeowError: no number of GPUs or of GiB.
    """
    import torch

    if gpus is not None and gpus < 1:
        raise MeowError(f"--gpus {gpus}: training needs at least one.")
    if gib is not None and not 0 < gib < inf:
        raise MeowError(f"--gpu-memory {gib}: give the GiB of one GPU, such as 80.")
    seen = torch.cuda.device_count()
    here = torch.cuda.get_device_properties(0).total_memory if seen else None
    return gpus or config.resources.train.workers(seen), here if gib is None else int(gib * GIB)


def plan(config: Config, workers: int, gpu_memory: int | None, gpus_per_node: int) -> Plan:
    """Says what each way to train the configured model takes, and each engine.

    Args:
        config: the configuration.
        workers: ZeRO workers, one a GPU.
        gpu_memory: of one GPU; None leaves out what fits.
        gpus_per_node: which share a node's CPU memory.

    Raises:
        MeowError: the model or the objective cannot be read, or the configuration names weights that it has not.
    """
    name, a = shapes.of_target(config)
    spec, resources = config.train, config.resources.train
    objective = resolve(spec, source_of(spec.objective))
    both = methods(a, config, objective)
    tokens = resources.micro_batch_size * len(objective.roles) * spec.max_length
    kept = activations(
        a,
        tokens,
        both[0].itemsize,
        attended=0
        if resources.attention != "eager"
        else tokens
        if resources.packing
        else spec.max_length,
        checkpointing=resources.gradient_checkpointing,
        frozen=objective.needs_frozen,
    )
    configured = "lora" if spec.lora else "full", resources.zero_stage, resources.offload != "none"

    def row(m: Method, stage: int, offload: bool, workers: int) -> Row:
        states = model_states(m, stage, workers, offload=offload)
        cpu = int(cpu_memory(m, stage, workers, gpus_per_node, offload=offload))
        gpu = states + kept + (buffer := bucket(stage, m.itemsize))
        fits = None if gpu_memory is None else gpu <= gpu_memory
        mark = (m.name, stage, offload) == configured
        return Row(m.name, stage, offload, states, kept, buffer, gpu, cpu, fits, mark)

    def fewest(m: Method) -> str:
        found, least = list[str](), _MOST + 1
        for stage, offload in _WAYS:
            counts = range(1, least)
            place = bisect_left(
                counts, True, key=lambda count: bool(row(m, stage, offload, count).fits)
            )
            if place < len(counts):
                least = counts[place]
                found.append(f"{least} with ZeRO {stage}{' and offload' if offload else ''}")
        return (
            f"{NAMES[m.name]} fits on {', '.join(found)}"
            if found
            else f"{NAMES[m.name]} does not fit"
        )

    rows = tuple(row(m, *way, workers) for m in both for way in _WAYS)
    if gpu_memory is None:
        best = min(rows, key=lambda one: one.gpu)
        way = f"{NAMES[best.method]} with ZeRO {best.zero_stage}{' and offload' if best.offload else ''}"
        least = f"The least is {best.gpu / GIB:.1f} GiB on each GPU, by {way}."
    else:
        least = f"GPUs of {gpu_memory / GIB:g} GiB: {'; '.join(map(fewest, both))}."
    every, left_out = engines(config, name, a, gpu_memory)
    return Plan(
        name, a.parameters, tokens, workers, gpus_per_node, gpu_memory, rows, least, every, left_out
    )
