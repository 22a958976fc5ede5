"""A model under DeepSpeed ZeRO: its settings, loading, checkpoints. Knows no Ray."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from meow_ray.config import FineTuning, TrainResources
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef

_OURS = {
    "optimizer": "`learning_rate` and `weight_decay`",
    "scheduler": "`learning_rate`, `epochs` and `warmup_ratio`",
    "fp16": "`train_dtype`",
    "train_batch_size": "`batch_size`",
    "zero_optimization.offload_optimizer.device": "`offload`",
    "zero_optimization.offload_param.device": "`offload`",
    "checkpoint.load_universal": "nothing: the run knows",
}
"""DeepSpeed's keys that a file must not have, and what says it instead."""


@dataclass(frozen=True)
class Model:
    """The model that is trained, and what stands beside it."""

    engine: Any
    """DeepSpeed's engine."""
    frozen: Any | None
    """The model before training."""
    pad: int
    keeps_logits: bool
    """The model can leave out the logits that no loss is taken on."""
    half: bool
    """It computes in 16 bits."""


def read_settings(path: str, content: bytes) -> dict[str, Any]:
    """Parses a user's DeepSpeed file.

    Raises:
        MeowError: it is no JSON object.
    """
    try:
        found = json.loads(content)
    except ValueError as error:
        raise MeowError(f"`deepspeed`: {path} is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise MeowError(f"`deepspeed`: {path} holds no JSON object.")
    return found


def settings(
    spec: FineTuning,
    resources: TrainResources,
    accumulation: int,
    *,
    on_gpu: bool,
    own: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns DeepSpeed's settings: ours, a user's own, and defaults of ours where the user has none.

    Raises:
        MeowError: a user's setting contradicts one of ours.
    """
    bf16 = spec.train_dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": resources.zero_stage}
    if resources.offload != "none":
        place: dict[str, Any] = {"device": resources.offload}
        if resources.offload == "nvme":
            if resources.zero_stage != 3 or not resources.nvme_path:
                raise MeowError(
                    "`offload` nvme needs `zero_stage` 3 and `nvme_path`, a folder on a local disk."
                )
            place["nvme_path"] = resources.nvme_path
        zero["offload_optimizer"] = {**place, "pin_memory": on_gpu}
        if resources.zero_stage == 3:
            zero["offload_param"] = {**place, "pin_memory": on_gpu}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": resources.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": spec.max_grad_norm,
        "bf16": {"enabled": bf16},
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
    }
    if bf16:  # else sums would depend on how a batch is cut
        ours |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    defaults: dict[str, Any] = {"steps_per_print": 1 << 30, "zero_force_ds_cpu_optimizer": on_gpu}
    if not on_gpu:  # DeepSpeed's defaults, buckets of 5e8 elements and one more copy of gradients, are made for GPUs
        bucket = int(5e7)
        defaults["zero_optimization"] = {
            "allgather_bucket_size": bucket,
            "reduce_bucket_size": bucket,
            "contiguous_gradients": False,
        }
    return _merged(_merged(ours, own, ""), defaults, None)


def _merged(ours: Mapping[str, Any], other: Mapping[str, Any], where: str | None) -> dict[str, Any]:
    """Adds what is not in `ours`; a contradiction is an error if `where`, the key above, is given."""
    out = dict(ours)
    for key, value in other.items():
        name = f"{where}.{key}" if where else key
        if (
            where is not None
            and name in _OURS
            and value not in ({"enabled": False}, out.get(key), "auto")
        ):
            raise MeowError(f"`deepspeed`: {name} is not for that file; say it by {_OURS[name]}.")
        if isinstance(value, Mapping) and isinstance(out.get(key, {}), Mapping):
            out[key] = _merged(out.get(key, {}), value, None if where is None else name)
        elif key not in out:
            out[key] = value
        elif where is not None and value not in (out[key], "auto"):
            raise MeowError(
                f"`deepspeed`: {name} is {value!r} in the file, but {out[key]!r} by the configuration; drop one."
            )
    return out


def check_quantization(spec: FineTuning, *, on_gpu: bool) -> None:
    """Refuses to hold a model in 4 bits where that cannot be done.

    Raises:
        MeowError: there is no GPU, or bitsandbytes is not installed.
    """
    if spec.lora is None or spec.lora.quantize == "none":
        return
    if not on_gpu:
        raise MeowError("`lora.quantize` nf4 needs a GPU, and this cluster has none.")
    if find_spec("bitsandbytes") is None:
        raise MeowError(
            "`lora.quantize` nf4 needs the package bitsandbytes: pip install bitsandbytes."
        )


def build(
    ref: ModelRef,
    spec: FineTuning,
    resources: TrainResources,
    config: dict[str, Any],
    total: int,
    *,
    frozen: bool,
    trainable: str | None,
) -> Model:
    """Loads a model and hands it to DeepSpeed; every worker calls it.

    Args:
        ref: the model.
        spec: how it is trained.
        resources: what it is trained on.
        config: DeepSpeed's settings.
        total: optimiser steps of the run.
        frozen: keep the model before training beside it.
        trainable: regular expression of the parameters that are updated; None is all.
    """
    import deepspeed
    import torch
    from transformers import get_linear_schedule_with_warmup

    compile_kernels(resources.offload)
    deepspeed.init_distributed(dist_init_required=False)
    model = _load(ref, spec, resources, config)
    keeps_logits = "logits_to_keep" in refs.forward_parameters(model)
    _without_dropout(model)
    if spec.lora is not None:
        model = _with_lora(model, spec)
    elif trainable is not None:
        _freeze(model, trainable)
    model.train()
    if resources.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # set explicitly: torch's AdamW decays by default, DeepSpeed's does not
    options: dict[str, Any] = {"lr": spec.learning_rate, "weight_decay": spec.weight_decay}
    if resources.offload != "none" and torch.cuda.is_available():
        optimizer: Any = deepspeed.ops.adam.DeepSpeedCPUAdam(parameters, adamw_mode=True, **options)
    else:
        optimizer = torch.optim.AdamW(parameters, fused=True, **options)
    warmup = round(total * spec.warmup_ratio)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda opt: get_linear_schedule_with_warmup(opt, warmup, total + 1),
        config=config,
        dist_init_required=False,
    )
    pad = refs.load_tokenizer(ref).pad_token_id
    before = _frozen(ref, spec, resources, config) if frozen and spec.lora is None else None
    return Model(engine, before, pad, keeps_logits, spec.train_dtype == "bfloat16")


def compile_kernels(offload: str = "none") -> None:
    """Compiles what DeepSpeed runs on CPU, one process of a machine at a time.

    PyTorch would wait without end for the lock of a process that was killed; here such a lock is seen as what it is.
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
    """Loads a model; with ZeRO 3 a parameter at a time, each worker keeps its part."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.integrations import HfDeepSpeedConfig

    shards = HfDeepSpeedConfig(config)  # transformers asks for it as long as it lives
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
    """Returns the attention kernel by transformers' name; None leaves it to the model."""
    import torch
    from transformers.utils import is_flash_attn_2_available

    if resources.attention != "auto":
        return resources.attention
    flash = (
        spec.train_dtype == "bfloat16" and torch.cuda.is_available() and is_flash_attn_2_available()
    )
    return "flash_attention_2" if flash else None


def _with_lora(model: Any, spec: FineTuning) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    lora = spec.lora
    assert lora is not None
    if lora.quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.layers) or "all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def _without_dropout(model: Any) -> None:
    """Switches the model's own dropout off: results would depend on how a batch is cut."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _freeze(model: Any, trainable: str) -> None:
    pattern, found = re.compile(trainable), False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(pattern.fullmatch(name)))
        found = found or parameter.requires_grad
    if not found:
        raise MeowError(f"`train.trainable`: no parameter of the model is named like {trainable}.")


def _frozen(
    ref: ModelRef, spec: FineTuning, resources: TrainResources, config: dict[str, Any]
) -> Any:
    import deepspeed
    import torch

    model = _load(ref, spec, resources, config).eval().requires_grad_(requires_grad=False)
    if config["zero_optimization"]["stage"] == 3:
        kept = {
            name: config[name]
            for name in ("train_micro_batch_size_per_gpu", "bf16", "steps_per_print")
        }
        zero = {"zero_optimization": {"stage": 3}}
        return deepspeed.initialize(model=model, config=kept | zero, dist_init_required=False)[0]
    if spec.train_dtype == "bfloat16":
        for parameter in model.parameters():  # buffers stay as they are, as DeepSpeed leaves them
            parameter.data = parameter.data.bfloat16()
    return model.to(torch.accelerator.current_accelerator() or "cpu")


# --- checkpoints --------------------------------------------------------------------------------
