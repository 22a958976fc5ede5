"""One worker's fine-tuning on DeepSpeed: build, step, save, load, export. Knows no Ray."""

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray import models, storage
from meow_ray.config import FineTuning
from meow_ray.errors import MeowError
from meow_ray.models import ModelRef
from meow_ray.prompts import IGNORE, Prompter

HISTORY = "training.json"
"""Stands in the exported folder: one record a step."""
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".gguf", *models.PICKLED)


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; the same for each."""

    model: ModelRef
    pairs: str
    """URI of a Parquet file with `question` and `answer`."""
    template: str
    system: str | None
    spec: FineTuning
    objective: str
    micro_batch_size: int
    zero_stage: int
    checkpoint_every: int
    out: str
    """URI of the folder that the model is exported to."""


@dataclass(frozen=True)
class Hooks:
    """How the loop speaks to whoever launched it."""

    rank: int
    world_size: int
    resume: Path | None
    """A folder that `save` was given before."""
    save: Callable[[Path, dict[str, Any]], None]
    """Called by every rank with a folder that holds its part of a checkpoint."""
    progress: Callable[[int, dict[str, str]], None]
    """Called after each optimiser step."""


@dataclass(frozen=True)
class Pair:
    """One tokenised example, both lists `[seq]`."""

    input_ids: list[int]
    labels: list[int]


def encode(job: Job) -> list[Pair]:
    """Tokenises the pairs.

    Raises:
        MeowError: there are none, or one is longer than `max_length`.
    """
    table = storage.read_table([job.pairs])
    if not table.num_rows:
        raise MeowError("There is nothing to train on: no pair of question and answer came through.")
    prompter = Prompter(models.load_tokenizer(job.model), job.template, job.system)
    rows = zip(table["question"].to_pylist(), table["answer"].to_pylist(), strict=True)
    pairs = [Pair(*prompter.encode_pair(question, answer)) for question, answer in rows]
    longest = max(len(pair.input_ids) for pair in pairs)
    if longest > job.spec.max_length:
        raise MeowError(f"A pair has {longest} tokens, `max_length` is {job.spec.max_length}; raise it.")
    return pairs


def num_steps(num_pairs: int, spec: FineTuning) -> int:
    """Returns the optimiser steps of a whole run."""
    return spec.epochs * -(-num_pairs // spec.batch_size)


def batch_of(step: int, num_pairs: int, spec: FineTuning) -> list[int]:
    """Returns the pairs of one optimiser step: a function of seed and step alone, so that any worker can resume."""
    per_epoch = -(-num_pairs // spec.batch_size)
    epoch, position = divmod(step, per_epoch)
    order = list(range(num_pairs))
    random.Random(f"{spec.seed}/{epoch}").shuffle(order)  # noqa: S311 - not for secrets
    return order[position * spec.batch_size : (position + 1) * spec.batch_size]


def micro_batches(batch: list[int], rank: int, world_size: int, micro: int, count: int) -> list[list[int]]:
    """Returns one worker's share of a batch as `count` lists of at most `micro` pairs; some may be empty."""
    mine = batch[rank::world_size]
    return [mine[i * micro : (i + 1) * micro] for i in range(count)]


def run(job: Job, hooks: Hooks) -> None:
    """Fine-tunes and exports; every worker calls it."""
    import torch

    from meow_ray import losses

    torch.manual_seed(job.spec.seed)
    pairs = encode(job)
    total = num_steps(len(pairs), job.spec)
    per_epoch = total // job.spec.epochs
    accumulation = max(1, -(-job.spec.batch_size // (hooks.world_size * job.micro_batch_size)))
    engine = _build(job, total, accumulation)
    step, history = _load(engine, hooks)
    objective = losses.OBJECTIVES[job.objective]
    pad = engine.meow_pad
    while step < total:
        batch = batch_of(step, len(pairs), job.spec)
        tokens = sum(label != IGNORE for i in batch for label in pairs[i].labels[1:])
        summed = torch.zeros((), device=engine.device)
        for rows in micro_batches(batch, hooks.rank, hooks.world_size, job.micro_batch_size, accumulation):
            input_ids, mask, labels = _tensors([pairs[i] for i in rows], pairs[batch[0]], pad, engine.device)
            logits = engine(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
            loss = objective(*losses.label_log_probs(logits, labels))
            # DeepSpeed averages over workers; the sum over the global batch is divided by its tokens instead
            engine.backward(loss * hooks.world_size / tokens, scale_wrt_gas=False)
            summed += loss.detach()
            engine.step()
        if hooks.world_size > 1:
            torch.distributed.all_reduce(summed)
        step += 1
        if not math.isfinite(float(summed)):
            raise MeowError(f"The loss is not a number at step {step} any more; lower the learning rate.")
        record = {"step": step, "epoch": step / per_epoch, "loss": float(summed) / tokens, "tokens": tokens}
        history.append(record | {"learning_rate": engine.get_lr()[0]})
        hooks.progress(step, {"loss": f"{record['loss']:.4f}", "epoch": f"{record['epoch']:.1f}"})
        if step % (per_epoch * job.checkpoint_every) == 0 and step < total:
            with TemporaryDirectory() as folder:
                engine.save_checkpoint(folder, tag="state", client_state={"meow_step": step, "meow_history": history})
                hooks.save(Path(folder), {"step": step, "loss": record["loss"]})
    _export(engine, job, hooks.rank, history)


def _build(job: Job, total: int, accumulation: int) -> Any:
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

    on_gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        job.model.folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=job.model.trust_remote_code
    )
    model.train()
    spec = job.spec
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": job.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": spec.max_grad_norm,
        "bf16": {"enabled": spec.train_dtype == "bfloat16"},
        "zero_optimization": {"stage": job.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 30,
    }
    if spec.train_dtype == "bfloat16":  # else sums would depend on how a batch is cut
        config |= {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    if not on_gpu:  # the default buckets of 5e8 elements are made for GPUs with tens of gigabytes
        config["zero_optimization"] |= {"allgather_bucket_size": 5e7, "reduce_bucket_size": 5e7}
    # set explicitly: torch's AdamW decays by default, DeepSpeed's does not
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)
    warmup = round(total * spec.warmup_ratio)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=lambda opt: get_linear_schedule_with_warmup(opt, warmup, total + 1),
        config=config,
        dist_init_required=False,
    )
    engine.meow_pad = models.load_tokenizer(job.model).pad_token_id
    return engine


def _load(engine: Any, hooks: Hooks) -> tuple[int, list[dict[str, float]]]:
    if hooks.resume is None:
        return 0, []
    path, state = engine.load_checkpoint(str(hooks.resume), tag="state")
    assert path is not None, f"the checkpoint {hooks.resume} cannot be loaded"
    return int(state["meow_step"]), list(state["meow_history"])


def _tensors(pairs: list[Pair], stand_in: Pair, pad: int, device: Any) -> tuple[Any, Any, Any]:
    """Pads to the longest; a worker without a pair sends the stand-in through without a loss, to stay in step."""
    import torch

    rows = pairs or [Pair(stand_in.input_ids, [IGNORE] * len(stand_in.labels))]
    width = max(len(row.input_ids) for row in rows)

    def tensor(lists: list[list[int]], fill: int) -> Any:
        return torch.tensor([row + [fill] * (width - len(row)) for row in lists], device=device)

    return (
        tensor([row.input_ids for row in rows], pad),
        tensor([[1] * len(row.input_ids) for row in rows], 0),
        tensor([row.labels for row in rows], IGNORE),
    )


def _export(engine: Any, job: Job, rank: int, history: list[dict[str, float]]) -> None:
    """Writes one Hugging Face folder; every worker takes part in gathering the weights."""
    import deepspeed
    import torch

    module, dtype = engine.module, getattr(torch, models.stored_dtype(job.model))
    parameters = dict(module.named_parameters())  # tied weights once, as the source has them
    kept = set(module.state_dict())
    state = {name: buffer.detach().cpu() for name, buffer in module.named_buffers() if name in kept}
    for name, parameter in parameters.items():
        with deepspeed.zero.GatheredParameters([parameter], enabled=job.zero_stage == 3):
            if rank == 0:
                state[name] = parameter.detach().to("cpu", dtype, copy=True)
    if rank == 0:
        with TemporaryDirectory() as folder:
            _save(module, state, job, Path(folder), history)
            storage.copy_folder(folder, job.out)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _save(module: Any, state: dict[str, Any], job: Job, folder: Path, history: list[dict[str, float]]) -> None:
    source = job.model.folder
    module.save_pretrained(folder, state_dict=state)
    module.config.dtype = models.stored_dtype(job.model)  # transformers has put that of training there
    module.config.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in source.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name not in ("config.json", HISTORY):
            shutil.copy(file, folder)
    (folder / HISTORY).write_text(json.dumps(history))
    tied = set(getattr(module, "_tied_weights_keys", None) or ())  # some sources store both names of one weight
    before, after = shapes(source), shapes(folder)
    wrong = [name for name in {*before, *after} if before.get(name) != after.get(name) and name not in tied]
    assert not wrong, f"exported weights differ from the source's: {sorted(wrong)[:3]}"


def shapes(folder: Path) -> dict[str, list[int]]:
    """Returns the names and shapes of a folder's weights."""
    from safetensors import safe_open

    out: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            out |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 - not a dict
    return out
