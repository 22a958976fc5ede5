"""A model under DeepSpeed ZeRO: its settings, and how it is loaded. It does not know Ray."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from meow_ray.config import LEARNING_RATE, FineTuning, TrainResources
from meow_ray.core import timeline
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import fila
from meow_ray.stages.train.adapters import with_adapters
from meow_ray.stages.train.structure import trained_parameters

_OURS = {
    "optimizer": "Use `learning_rate` and `weight_decay`",
    "scheduler": "Use `learning_rate`, `epochs` and `warmup_ratio`",
    "fp16": "Use `train_dtype`",
    "train_batch_size": "Use `batch_size`",
    "zero_optimization.offload_optimizer.device": "Use `offload`",
    "zero_optimization.offload_param.device": "Use `offload`",
    "checkpoint.load_universal": "Remove it: the run decides that",
}
"""DeepSpeed's keys that a user's file must not set, and what to do instead."""


@dataclass(frozen=True)
class Model:
    """The model that is trained, with the reference and facts about both."""

    engine: Any
    """DeepSpeed's engine."""
    frozen: Any | None
    """The reference: a copy of the model before training; None if no objective reads one."""
    pad: int
    """The token that fills padded rows."""
    keeps_logits: bool
    """Whether the model can leave out the logits that no loss is taken on."""
    half: bool
    """Whether it computes in 16 bits."""


def read_settings(path: str, content: bytes) -> dict[str, Any]:
    """Parses a user's DeepSpeed file.

    Raises:
        MeowError: the file is not a JSON object.
    """
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise MeowError(f"`deepspeed`: {path} is not valid JSON: {error}.") from None
    if not isinstance(parsed, dict):
        raise MeowError(f"`deepspeed`: {path} is not a JSON object. Put the settings in {{…}}.")
    return parsed


def settings(
    spec: FineTuning,
    resources: TrainResources,
    accumulation: int,
    *,
    on_gpu: bool,
    user_settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns DeepSpeed's settings: those of the configuration, a user's, and our defaults.

    Args:
        spec: batch sizes, dtype and clipping.
        resources: ZeRO stage and offload.
        accumulation: micro-batches of one worker per optimiser step.
        on_gpu: whether the workers have GPUs.
        user_settings: those of the file that `deepspeed` names.

    Raises:
        MeowError: a user's setting contradicts the configuration.
    """
    bf16 = spec.train_dtype == "bfloat16"
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": resources.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": spec.max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": _zero_settings(resources, on_gpu),
        "zero_allow_untested_optimizer": True,
    }
    if bf16:  # otherwise sums would depend on how a batch is divided
        ours |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    defaults: dict[str, Any] = {"steps_per_print": 1 << 30, "zero_force_ds_cpu_optimizer": on_gpu}
    if not on_gpu:
        # DeepSpeed's own defaults, buckets of 5e8 elements and a copy of gradients, suit GPUs
        bucket = int(5e7)
        defaults["zero_optimization"] = {
            "allgather_bucket_size": bucket,
            "reduce_bucket_size": bucket,
            "contiguous_gradients": False,
        }
    return _with_defaults(_with_users(ours, user_settings, ""), defaults)


def _zero_settings(resources: TrainResources, on_gpu: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": resources.zero_stage}
    if resources.offload == "none":
        return zero
    device: dict[str, Any] = {"device": resources.offload}
    if resources.offload == "nvme":
        if resources.zero_stage != 3 or not resources.nvme_path:
            raise MeowError(
                "`offload` nvme needs `zero_stage` 3 and `nvme_path`, a folder on a local disk."
            )
        device["nvme_path"] = resources.nvme_path
    zero["offload_optimizer"] = {**device, "pin_memory": on_gpu}
    if resources.zero_stage == 3:
        zero["offload_param"] = {**device, "pin_memory": on_gpu}
    return zero


def _with_users(ours: Mapping[str, Any], users: Mapping[str, Any], parent: str) -> dict[str, Any]:
    """Adds a user's settings to those of the configuration, which they must not contradict."""
    merged = dict(ours)
    for key, value in users.items():
        name = f"{parent}.{key}" if parent else key
        is_harmless = value in ({"enabled": False}, merged.get(key), "auto")
        if name in _OURS and not is_harmless:
            raise MeowError(f"`deepspeed`: {name} does not belong in that file. {_OURS[name]}.")
        if isinstance(value, Mapping) and isinstance(merged.get(key, {}), Mapping):
            merged[key] = _with_users(merged.get(key, {}), value, name)
        elif key not in merged:
            merged[key] = value
        elif value not in (merged[key], "auto"):
            raise MeowError(
                f"`deepspeed`: {name} is {value!r} in the file, but {merged[key]!r} by the "
                "configuration. Remove one of them."
            )
    return merged


def _with_defaults(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Adds defaults for keys that are not set, on every level."""
    merged = dict(config)
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key, {}), Mapping):
            merged[key] = _with_defaults(merged.get(key, {}), value)
        else:
            merged.setdefault(key, value)
    return merged


def check_quantization(spec: FineTuning, *, on_gpu: bool) -> None:
    """Checks that a model can be loaded in 4 bits, if the configuration asks for it.

    Raises:
        MeowError: there is no GPU, or bitsandbytes is not installed.
    """
    if spec.lora is None or spec.lora.quantize == "none":
        return
    if not on_gpu:
        raise MeowError(
            "`lora.quantize` nf4 needs a GPU, and this cluster has none. Set it to none."
        )
    if find_spec("bitsandbytes") is None:
        raise MeowError(
            "`lora.quantize` nf4 needs the package bitsandbytes. Run: pip install bitsandbytes."
        )


def build(
    *,
    ref: ModelRef,
    spec: FineTuning,
    resources: TrainResources,
    config: dict[str, Any],
    total: int,
    frozen: bool,
    trainable: str | None,
    layer: int | None = None,
    first_adapters: Mapping[str, Any] | None = None,
    mask_ratio: float | None = None,
) -> Model:
    """Loads a model and hands it to DeepSpeed; every worker calls this.

    Args:
        ref: the model.
        spec: learning rate, LoRA and dtype.
        resources: attention, checkpointing and offload.
        config: DeepSpeed's settings.
        total: optimiser steps of the run.
        frozen: also load the reference.
        trainable: the parameters that are updated, see `ObjectiveSpec`; None updates all.
        layer: the block that the objective reads, if it reads one.
        first_adapters: what the adapters start from, see `fila`; None starts from zero.
        mask_ratio: masks drop this share of the trainable matrices, and nothing else is trained;
            None trains their values.

    Raises:
        MeowError: no parameter matches `trainable`, or some cannot have masks.
    """
    import deepspeed
    from transformers import get_linear_schedule_with_warmup

    timeline.mark("libraries imported")
    compile_kernels(resources.offload)
    deepspeed.init_distributed(dist_init_required=False)
    timeline.mark("kernels loaded")
    model = _load(ref, spec, resources, config)
    timeline.mark("model loaded")
    keeps_logits = "logits_to_keep" in refs.forward_parameters(model)
    _without_dropout(model)
    if spec.lora is not None:
        model = with_adapters(model, spec.lora)
        if first_adapters is not None:
            stage = config["zero_optimization"]["stage"]
            fila.start(model, first_adapters, is_partitioned=stage == 3)
    elif trainable is not None:
        _freeze(model, trainable, layer, mask_ratio)
    model.train()
    if resources.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    warmup = round(total * spec.warmup_ratio)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=_optimizer(model, spec, resources),
        lr_scheduler=lambda opt: get_linear_schedule_with_warmup(opt, warmup, total + 1),
        config=config,
        dist_init_required=False,
    )
    # without an adapter that started from a part of the weights, these are not the target's
    needs_copy = frozen and (spec.lora is None or first_adapters is not None)
    return Model(
        engine=engine,
        frozen=_load_reference(ref, spec, resources, config) if needs_copy else None,
        pad=refs.load_tokenizer(ref).pad_token_id,
        keeps_logits=keeps_logits,
        half=spec.train_dtype == "bfloat16",
    )


def _optimizer(model: Any, spec: FineTuning, resources: TrainResources) -> Any:
    """Returns AdamW; with offload on a GPU machine, the one that runs on the CPU."""
    import deepspeed
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # set explicitly: torch's AdamW decays by default, DeepSpeed's does not
    rate = spec.learning_rate or LEARNING_RATE
    options: dict[str, Any] = {"lr": rate, "weight_decay": spec.weight_decay}
    if resources.offload != "none" and torch.cuda.is_available():
        return deepspeed.ops.adam.DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)


def compile_kernels(offload: str = "none") -> None:
    """Compiles the kernels that DeepSpeed runs on CPU, in one process of a machine at a time.

    PyTorch waits forever for the lock of a process that was killed. Here a lock of our own, which
    the system releases, guards the compilation, so that PyTorch's lock can be removed first.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils.cpp_extension import _get_build_directory

    accelerator = get_accelerator()
    names = ["ShareMemCommBuilder"]
    if accelerator.device_name() != "cpu":
        names = ["CPUAdamBuilder"] if offload != "none" else []
    for name in names:
        builder = accelerator.create_op_builder(name)
        folder = Path(_get_build_directory(builder.name, verbose=False))
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            (folder / "lock").unlink(missing_ok=True)
            builder.load()


def _load(
    ref: ModelRef, spec: FineTuning, resources: TrainResources, config: dict[str, Any]
) -> Any:
    """Loads a model; with ZeRO 3 one parameter at a time, of which each worker keeps a part."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations import HfDeepSpeedConfig

    shards = HfDeepSpeedConfig(config)  # transformers partitions weights while this object exists
    options: dict[str, Any] = {}
    if spec.lora is not None and spec.lora.quantize == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(
        ref.folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=ref.trust_remote_code,
        attn_implementation=attention(spec, resources),
        **options,
    )
    del shards
    return model


def attention(spec: FineTuning, resources: TrainResources) -> str | None:
    """Returns transformers' name of the attention kernel; None leaves the choice to the model."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    if resources.attention != "auto":
        return resources.attention
    flash = (
        spec.train_dtype == "bfloat16" and torch.cuda.is_available() and is_flash_attn_2_available()
    )
    return "flash_attention_2" if flash else None


def _without_dropout(model: Any) -> None:
    """Disables the model's own dropout, which would make results depend on the micro-batches."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _freeze(model: Any, trainable: str, layer: int | None, mask_ratio: float | None) -> None:
    """Freezes all parameters but those that an objective updates, or gives these masks."""
    names = trained_parameters(model, trainable, layer)
    if not names:
        raise MeowError(
            f"`train.trainable`: no parameter of the model matches {trainable}. "
            "Compare it with the names in the model's safetensors files."
        )
    if mask_ratio is not None:
        from meow_ray.stages.train import masks

        masks.attach(model, names, mask_ratio)
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


def _load_reference(
    ref: ModelRef, spec: FineTuning, resources: TrainResources, config: dict[str, Any]
) -> Any:
    import deepspeed
    import torch

    model = _load(ref, spec, resources, config).eval().requires_grad_(requires_grad=False)
    if config["zero_optimization"]["stage"] == 3:
        names = ("train_micro_batch_size_per_gpu", "bf16", "steps_per_print")
        inference = {name: config[name] for name in names}
        inference["zero_optimization"] = {"stage": 3}
        return deepspeed.initialize(model=model, config=inference, dist_init_required=False)[0]
    if spec.train_dtype == "bfloat16":
        for parameter in model.parameters():  # DeepSpeed leaves buffers as they are, too
            parameter.data = parameter.data.bfloat16()
    return model.to(torch.accelerator.current_accelerator() or "cpu")
