"""One worker's fine-tuning: step, save, export. Knows no Ray."""

import math
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.errors import MeowError
from meow_ray.stages.train import batches, checkpoints, layout, zero
from meow_ray.stages.train.batches import Dataset, Item
from meow_ray.stages.train.export import export_model
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.layout import Layout
from meow_ray.stages.train.zero import Model


@dataclass(frozen=True)
class Hooks:
    """How the loop speaks to whoever launched it."""

    rank: int
    local_rank: int
    world_size: int
    resume: Path | None
    """A folder that `save` was given before; the workers of a node share it."""
    save: Callable[[Path, dict[str, Any]], None]
    """Called by every rank with a folder that holds its part of a checkpoint."""
    progress: Callable[[dict[str, Any]], None]
    """Called after each optimiser step with its record."""


def run(job: Job, hooks: Hooks) -> None:
    """Fine-tunes and exports; every worker calls it."""
    import torch

    torch.manual_seed(job.spec.seed)  # of new adapters
    data, objective = job.load(), job.objective.load()
    accumulation = job.accumulation(hooks.world_size)
    on_gpu = torch.cuda.is_available()
    config = zero.settings(job.spec, job.resources, accumulation, on_gpu=on_gpu, own=job.deepspeed)
    zero_optimization = config["zero_optimization"]
    if hooks.world_size == 1 and zero_optimization["stage"] == 2:
        zero_optimization["stage"] = (
            1  # nothing to partition, and 2 would move gradients after each forward pass
        )
    cut = {"zero_stage": zero_optimization["stage"], "workers": hooks.world_size}
    resume = _checkpoint(hooks, cut)
    config["checkpoint"] = {
        **config.get("checkpoint", {}),
        "load_universal": resume != hooks.resume,
    }
    model = zero.build(
        job.model,
        job.spec,
        job.resources,
        config,
        data.num_steps,
        frozen=job.objective.needs_frozen,
        trainable=job.objective.trainable,
    )
    if job.resources.packing:
        _check_packing(model, data)
    step, history = 0, list[dict[str, Any]]()
    if resume is not None:
        state = checkpoints.restore(model.engine, resume)
        step, history = state["meow_step"], state["meow_history"]
        if resume != hooks.resume:
            _barrier()
            shutil.rmtree(resume, ignore_errors=True)
    while step < data.num_steps:
        batch = data.batch(step)
        totals, learning_rate = batches.totals(batch), model.engine.get_lr()[0]
        torch.manual_seed(_dropout_seed(job.spec.seed, step, hooks.rank))
        summed: Any = 0
        for items in batches.micro_batches(batch, hooks.rank, hooks.world_size, accumulation):
            terms = _terms(job, model, objective, items or batch[:1], totals)
            # a worker without an item sends a stand-in through without a loss, to stay in step; DeepSpeed averages
            # over workers, but the terms are shares of a mean over the global batch
            loss = sum(terms.values()) * (hooks.world_size if items else 0)
            model.engine.backward(loss, scale_wrt_gas=False)
            summed = summed + torch.stack([term.detach() for term in terms.values()]) * bool(items)
            model.engine.step()
        if hooks.world_size > 1:
            torch.distributed.all_reduce(summed)
        step += 1
        found = dict(zip(terms, summed.tolist(), strict=True))
        if not math.isfinite(sum(found.values())):
            raise MeowError(
                f"The loss is not a number at step {step} any more; lower the learning rate."
            )
        record: dict[str, Any] = {
            "step": step,
            "epoch": step / data.per_epoch,
            "loss": sum(found.values()),
            "tokens": sum(tokens for tokens, _ in totals.values()),
            "learning_rate": learning_rate,
        }
        if len(found) > 1:
            record["terms"] = found
        history.append(record)
        hooks.progress(record)
        if step % (data.per_epoch * job.resources.checkpoint_every) == 0 and step < data.num_steps:
            with TemporaryDirectory() as folder:
                checkpoints.save(
                    model.engine, Path(folder), {"meow_step": step, "meow_history": history}, cut
                )
                hooks.save(Path(folder), {"step": step, "loss": record["loss"]})
    export_model(job, model.engine, hooks.rank, history)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of a worker's dropout in a step: the same after a resume."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)  # noqa: S311 - not for secrets


def _checkpoint(hooks: Hooks, cut: dict[str, int]) -> Path | None:
    """Returns the checkpoint to go on from; one of other workers is converted, once a node."""
    if hooks.resume is None or checkpoints.fits(hooks.resume, cut):
        return hooks.resume
    if hooks.local_rank == 0:
        checkpoints.convert(hooks.resume)
    _barrier()
    return checkpoints.converted(hooks.resume)


def _check_packing(model: Model, data: Dataset) -> None:
    """Refuses to pack where the model does not keep the pairs of a row apart.

    Raises:
        MeowError: a pair's logits depend on the pair in front of it.
    """
    import torch

    pairs = [
        pair for number in range(min(2, data.num_items)) for pair in data.item(number).values()
    ][:2]
    items = [{"pair": pair} for pair in (*pairs, *pairs)[:2]]
    network = model.engine.module
    network.eval()
    with torch.no_grad():
        together, alone = (
            forward(
                network,
                layout.lay_out(part, model.pad, model.engine.device, packed=True),
                model,
                None,
            )[0].float()
            for part in (items, items[1:])
        )
    network.train()
    apart = (together[-len(alone) :] - alone).abs().mean() / alone.std()
    if apart > (0.05 if model.half else 1e-3):
        raise MeowError(
            "This model does not keep the pairs of a packed row apart: set resources.train.packing=false "
            "(resources.memorize.packing for memorize)."
        )


def _barrier() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def _terms(
    job: Job,
    model: Model,
    objective: Callable[..., Any],
    items: Sequence[Item],
    totals: dict[str, tuple[int, int]],
) -> dict[str, Any]:
    """Returns the weighted terms of the loss of some items, by name."""
    import torch

    from meow_ray.stages.train import losses

    spec = job.objective
    found = layout.lay_out(items, model.pad, model.engine.device, packed=job.resources.packing)
    logits, hidden = forward(model.engine, found, model, spec.layer)
    reference_logits = reference_hidden = None
    if spec.needs_frozen:
        before, off = (
            (model.frozen, nullcontext())
            if model.frozen
            else (model.engine, model.engine.module.disable_adapter())
        )
        with torch.no_grad(), off:
            reference_logits, reference_hidden = forward(before, found, model, spec.layer)

    def part(tensor: Any, where: slice) -> Any:
        return None if tensor is None else tensor[where]

    sequences = {
        role: losses.Sequences(
            logits[where],
            found.labels[where],
            found.owners[where],
            count,
            *totals[role],
            reference_log_probs=part(found.log_probs, where),
            reference_logits=part(reference_logits, where),
            hidden=part(hidden, where),
            reference_hidden=part(reference_hidden, where),
        )
        for role, (where, count) in found.roles.items()
    }
    terms = {
        "objective": spec.forget_weight
        * objective(*(sequences[r] for r in spec.reads), **spec.settings)
    }
    if spec.retain_weight:
        terms["retain"] = spec.retain_weight * losses.nll(sequences["retain"])
    if spec.kl_weight:
        terms["kl"] = spec.kl_weight * losses.kl_to_reference(sequences["retain"])
    return terms


def forward(network: Any, found: Layout, model: Model, layer: int | None) -> tuple[Any, Any]:
    """Returns logits `[tokens, vocab]` and activations `[tokens, hidden]` where tokens are predicted."""
    inputs: dict[str, Any] = {
        **found.inputs,
        "use_cache": False,
        "output_hidden_states": layer is not None,
    }
    rows, columns = found.rows, found.columns
    predicted: Any = (rows, columns)
    if model.keeps_logits and "position_ids" in inputs:
        inputs["logits_to_keep"], predicted = columns, 0
    elif model.keeps_logits:
        first = int(columns.min())
        inputs["logits_to_keep"], predicted = (
            inputs["input_ids"].shape[1] - first,
            (rows, columns - first),
        )
    out = network(**inputs)
    return out.logits[predicted], None if layer is None else out.hidden_states[layer + 1][
        rows, columns
    ]


# --- export -------------------------------------------------------------------------------------
