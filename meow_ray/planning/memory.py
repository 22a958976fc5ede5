"""Memory of fine-tuning and of engines, estimated from a model's shapes before weights are loaded.

All amounts are bytes. The formulas use these symbols: N workers in all and n on one node, W bytes
of all weights, P parameters, T trainable parameters, L parameters of the largest layer, w bytes per
element in training.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Literal

from meow_ray.config import Config, TrainResources
from meow_ray.errors import MeowError
from meow_ray.planning.engines import GIB, EngineRow, engine_rows
from meow_ray.planning.methods import Method, training_methods
from meow_ray.planning.shapes import Architecture, target_shapes, trained_shapes
from meow_ray.stages.train import objectives

NAMES = {"full": "full fine-tuning", "lora": "LoRA"}
_MAX_WORKERS = 1024
"""The largest number of workers that is tried when looking for the fewest that fit."""
_STAGES_AND_OFFLOADS = tuple((stage, offload) for offload in (False, True) for stage in (1, 2, 3))


@dataclass(frozen=True)
class MemoryRow:
    """The bytes that training takes on one worker's GPU and in one node's CPU memory."""

    method: Literal["full", "lora"]
    zero_stage: int
    offload: bool
    """Optimiser states live in CPU memory (offload nvme: on disk), with ZeRO 3 weights too."""
    states: int
    activations: int
    buckets: int
    gpu: int
    """The sum of states, activations and buckets."""
    cpu: int
    fits: bool | None
    """Whether `gpu` fits into the memory of one GPU; None if that is unknown."""
    configured: bool


@dataclass(frozen=True)
class MemoryPlan:
    """The memory of training by each method and of each stage's engine."""

    model: str
    parameters: int
    tokens: int
    """The largest number of tokens in one forward pass."""
    workers: int
    gpus_per_node: int
    gpu_memory: int | None
    rows: tuple[MemoryRow, ...]
    least: str
    """A sentence that names the configurations that fit on the fewest GPUs."""
    engines: tuple[EngineRow, ...]
    left_out: str
    """The reasons why engines are missing from `engines`."""


# --- model states -------------------------------------------------------------------------------


def zero1(method: Method, workers: int, *, offload: bool) -> float:
    """Returns W + gT + 12T/N: ZeRO 1 partitions the optimiser states. With offload: W + gT.

    Source: arXiv 1910.02054, sec. 5.1.

    The 12 bytes are weights, momentum and variance in float32 (sec. 3.1). DeepSpeed copies the
    weights even if they are in float32 already. g is 4, or 6 with weights in 16 bits, because
    gradients are then summed in float32.
    """
    optimizer_states = 0 if offload else 12 * method.trainable / workers
    return method.weights + _gradient_bytes(method) * method.trainable + optimizer_states


def zero2(method: Method, workers: int, *, offload: bool) -> float:
    """Returns W + (g + 12)T/N: ZeRO 2 also partitions gradients. With offload: W.

    Source: arXiv 1910.02054, sec. 5.2.
    """
    cut = (_gradient_bytes(method) + 12) * method.trainable / workers
    return method.weights + (0 if offload else cut)


def zero3(method: Method, workers: int, *, offload: bool) -> float:
    """Returns (W + 16T)/N + 2wL: ZeRO 3 also partitions weights. With offload: 2wL.

    2wL are the weights and the gradient of the largest layer, which are gathered whole. Source:
    arXiv 1910.02054, sec. 5.3.
    """
    cut = (method.weights + 16 * method.trainable) / workers
    return 2 * method.itemsize * method.largest_layer + (0 if offload else cut)


def _gradient_bytes(method: Method) -> int:
    return 6 if method.itemsize == 2 else 4


def cpu_memory(
    method: Method, stage: int, workers: int, gpus_per_node: int, *, offload: bool
) -> float:
    """Returns the CPU memory of one node: 1.5 max(4Pn, 16Tn/N).

    With ZeRO 3 it is 1.5 max(4Ln, (W + 16T)n/N).

    Each worker loads the model in float32; with ZeRO 3 each layer is partitioned as soon as it is
    loaded. Offload adds gradients and optimiser states; without it the second term is 0. 1.5 is
    `additional_buffer_factor` of DeepSpeed's estimators, which give the same amounts for one node.
    """
    local_workers = min(workers, gpus_per_node)
    loaded = 4 * local_workers * (method.largest_layer if stage == 3 else method.parameters)
    states = 16 * method.trainable + (method.weights if stage == 3 else 0)
    offloaded = states * local_workers / workers if offload else 0
    return 1.5 * max(loaded, offloaded)


def model_states(method: Method, stage: int, workers: int, *, offload: bool) -> int:
    """Returns one worker's GPU memory for weights, gradients and optimiser states.

    Where DeepSpeed's own estimators apply (ZeRO 2 and 3, all weights updated, 16 bits), they give
    the amount.
    """
    frozen = method.frozen // (workers if stage == 3 else 1)
    if stage == 1 or method.itemsize != 2 or method.trainable != method.parameters:
        formula = (zero1, zero2, zero3)[stage - 1]
        return int(formula(method, workers, offload=offload)) + frozen
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    if stage == 2:
        _, gpu = stage_1_and_2.estimate_zero2_model_states_mem_needs(
            method.parameters, workers, cpu_offload=offload
        )
    else:
        _, gpu, _ = stage3.estimate_zero3_model_states_mem_needs(
            method.parameters,
            method.largest_layer,
            workers,
            cpu_offload=offload,
            cpu_offload_params=offload,
        )
    return int(gpu) + frozen


# --- buffers and activations --------------------------------------------------------------------


def bucket(stage: int, itemsize: int) -> int:
    """Returns the bytes of DeepSpeed's default `reduce_bucket_size`: 4 · 5e8, with ZeRO 2 w · 5e8.

    DeepSpeed allocates it whole for any model.
    """
    return 500_000_000 * (itemsize if stage == 2 else 4)


def activations(
    architecture: Architecture,
    tokens: int,
    itemsize: int,
    *,
    attended: int = 0,
    checkpointing: bool = False,
    frozen: bool = False,
) -> int:
    """Returns the bytes that a forward pass keeps for the backward pass, with those of the loss.

    This follows Korthikanti et al. (arXiv 2205.05198, sec. 4.1), for current blocks without
    dropout. With width h and feed-forward width f, each block keeps 8h + w(8h + 4f) per token: the
    inputs of two norms in float32, their results before and after scaling, query, key, value and
    the output of attention, and four results in a gated feed-forward network. A stored attention
    matrix adds 4 bytes per head and attended token, 6 in 16 bits. With checkpointing (sec. 5) each
    block keeps wh, and one block at a time keeps all of the above.

    Logits and their gradient, in float32, add 8 bytes per entry of the vocabulary.

    Args:
        architecture: the model.
        tokens: tokens in the forward pass; all of them may contribute to the loss.
        itemsize: w.
        attended: length of a row of the attention matrix; 0 if the kernel does not store it.
        checkpointing: whether activations are computed again in the backward pass.
        frozen: whether the frozen copy of the model computes logits too.
    """
    layers, hidden = architecture.layers, architecture.hidden
    matrix = architecture.heads * attended * (6 if itemsize == 2 else 4)
    block = 8 * hidden + itemsize * (8 * hidden + 4 * architecture.intermediate) + matrix
    blocks = itemsize * hidden * layers + block if checkpointing else block * layers
    return tokens * (blocks + 8 * architecture.vocab * (1 + frozen))


# --- the plan -----------------------------------------------------------------------------------


def hardware(config: Config, gpus: int | None, gib: float | None) -> tuple[int, int | None]:
    """Returns the number of workers, and the memory of one GPU or None if there is no GPU.

    An argument takes precedence over the configuration, and the configuration over the GPUs of this
    machine.

    Args:
        config: the configuration.
        gpus: the option `--gpus`.
        gib: the option `--gpu-memory`.

    Raises:
        MeowError: an option is out of its range.
    """
    import torch

    if gpus is not None and gpus < 1:
        raise MeowError(f"--gpus: training needs at least one GPU (got {gpus}). Give 1 or more.")
    if gib is not None and not 0 < gib < inf:
        raise MeowError(
            f"--gpu-memory: the memory of a GPU must be a positive number (got {gib}). "
            "Give the GiB of one GPU, such as 80."
        )
    local_gpus = torch.cuda.device_count()
    workers = gpus or config.resources.train.workers(local_gpus)
    if gib is not None:
        return workers, int(gib * GIB)
    if not local_gpus:
        return workers, None
    return workers, torch.cuda.get_device_properties(0).total_memory


@dataclass(frozen=True)
class _Setting:
    """The parts of an estimate that all rows of a plan share."""

    activations: int
    gpus_per_node: int
    gpu_memory: int | None
    configured: tuple[str, int, bool]
    """Method, ZeRO stage and offload of the configuration."""


def plan_memory(
    config: Config, workers: int, gpu_memory: int | None, gpus_per_node: int
) -> MemoryPlan:
    """Estimates the memory of training the configured model, and of each stage's engine.

    Args:
        config: the configuration.
        workers: ZeRO workers, one per GPU.
        gpu_memory: bytes of one GPU; None leaves open what fits.
        gpus_per_node: GPUs that share a node's CPU memory.

    Raises:
        MeowError: the model or the objective cannot be read, or the configuration names weights
        that the model lacks.
    """
    name, architecture = target_shapes(config)
    train, resources = config.train, config.resources.train
    objective = objectives.configured(train)
    trained = trained_shapes(architecture, objective)
    full, lora = training_methods(trained, config, objective)
    tokens = resources.micro_batch_size * len(objective.roles) * train.max_length
    setting = _Setting(
        activations=activations(
            trained,
            tokens,
            full.itemsize,
            attended=_attended(resources, tokens, train.max_length),
            checkpointing=resources.gradient_checkpointing,
            frozen=objective.needs_frozen,
        ),
        gpus_per_node=gpus_per_node,
        gpu_memory=gpu_memory,
        configured=(
            "lora" if train.lora else "full",
            resources.zero_stage,
            resources.offload != "none",
        ),
    )
    rows = tuple(
        _row(method, stage, offload, workers, setting)
        for method in (full, lora)
        for stage, offload in _STAGES_AND_OFFLOADS
    )
    if gpu_memory is None:
        least = _smallest(rows)
    else:
        fewest = "; ".join(_fewest_gpus(method, setting) for method in (full, lora))
        least = f"GPUs of {gpu_memory / GIB:g} GiB: {fewest}."
    engines, omitted = engine_rows(config, name, architecture, gpu_memory)
    return MemoryPlan(
        model=name,
        parameters=architecture.parameters,
        tokens=tokens,
        workers=workers,
        gpus_per_node=gpus_per_node,
        gpu_memory=gpu_memory,
        rows=rows,
        least=least,
        engines=engines,
        left_out=omitted,
    )


def _attended(resources: TrainResources, tokens: int, max_length: int) -> int:
    """Returns the length of a row of the stored attention matrix; 0 if the kernel stores none."""
    if resources.attention != "eager":
        return 0
    return tokens if resources.packing else max_length


def _row(method: Method, stage: int, offload: bool, workers: int, setting: _Setting) -> MemoryRow:
    states = model_states(method, stage, workers, offload=offload)
    buckets = bucket(stage, method.itemsize)
    gpu = states + setting.activations + buckets
    return MemoryRow(
        method=method.name,
        zero_stage=stage,
        offload=offload,
        states=states,
        activations=setting.activations,
        buckets=buckets,
        gpu=gpu,
        cpu=int(cpu_memory(method, stage, workers, setting.gpus_per_node, offload=offload)),
        fits=None if setting.gpu_memory is None else gpu <= setting.gpu_memory,
        configured=(method.name, stage, offload) == setting.configured,
    )


def _smallest(rows: tuple[MemoryRow, ...]) -> str:
    """Returns a sentence that names the row with the smallest GPU memory."""
    smallest = min(rows, key=lambda row: row.gpu)
    variant = _variant(smallest.zero_stage, smallest.offload)
    size = f"{smallest.gpu / GIB:.1f} GiB per GPU"
    return f"The smallest requirement is {size}: {NAMES[smallest.method]} with {variant}."


def _fewest_gpus(method: Method, setting: _Setting) -> str:
    """Returns a clause that names the fewest GPUs on which a method fits.

    It lists each combination of ZeRO stage and offload that needs fewer GPUs than those before it.
    """
    variants = list[str]()
    fewest = _MAX_WORKERS + 1
    for stage, offload in _STAGES_AND_OFFLOADS:
        # more workers never need more memory each, so bisection finds the smallest number that fits
        counts = range(1, fewest)
        smaller = bisect_left(counts, True, key=partial(_fits, method, stage, offload, setting))
        if smaller < len(counts):
            fewest = counts[smaller]
            variants.append(f"{fewest} with {_variant(stage, offload)}")
    if not variants:
        return f"{NAMES[method.name]} does not fit"
    return f"{NAMES[method.name]} fits on {', '.join(variants)}"


def _fits(method: Method, stage: int, offload: bool, setting: _Setting, workers: int) -> bool:
    return bool(_row(method, stage, offload, workers, setting).fits)


def _variant(stage: int, offload: bool) -> str:
    return f"ZeRO {stage}{' and offload' if offload else ''}"
