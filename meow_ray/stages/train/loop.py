"""The training loop of one worker: steps, checkpoints, export. It does not know Ray."""

import math
import random
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from meow_ray.core import timeline
from meow_ray.errors import MeowError
from meow_ray.stages.train import checkpoints, gram, zero
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.before import Before
from meow_ray.stages.train.export import export_model
from meow_ray.stages.train.forward import check_packing, weighted_terms
from meow_ray.stages.train.items import Totals, micro_batches, totals_of
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.passes import Workers, read_before
from meow_ray.stages.train.stop import CoolDown, Stop
from meow_ray.stages.train.watched import Watched
from meow_ray.stages.train.weight_distance import WeightDistance
from meow_ray.stages.train.zero import Model

History = list[dict[str, Any]]
"""One record per optimiser step."""
DUAL_RATE = 5.0
"""Change of a term's weight per step, for each nat per token beyond the term's budget."""
LEAST_WEIGHT = 0.1
"""The smallest weight of a term with a budget, so that the term remains measured."""
LEAST_STEPS_TO_SAVE = 20
"""The smallest number of steps between two checkpoints of a run that ends by itself."""


@dataclass(frozen=True)
class Hooks:
    """The connection of the loop to the program that launched it."""

    rank: int
    local_rank: int
    world_size: int
    resume: Path | None
    """A checkpoint to resume from; the workers of a node share the folder."""
    save: Callable[[Path, dict[str, Any]], None]
    """Called by every rank with a folder that holds its part of a checkpoint, and with metrics."""
    progress: Callable[[dict[str, Any]], None]
    """Called after each optimiser step with its record."""


def run(job: Job, hooks: Hooks) -> None:
    """Fine-tunes a model and exports it; every worker calls this.

    Raises:
        MeowError: the loss is not finite, the model cannot be packed, or a file cannot be written.
    """
    import torch

    from meow_ray.stages.train import masks

    torch.manual_seed(job.spec.seed)  # for new adapters and masks
    data = job.load()
    num_steps = job.num_steps(data)
    watched = Watched.load(job.watched) if job.watched else None
    objective = job.objective.load()
    config = _deepspeed_settings(job, hooks.world_size)
    cut = {"zero_stage": config["zero_optimization"]["stage"], "workers": hooks.world_size}
    resume = _checkpoint_to_resume(hooks, cut)
    is_converted = resume != hooks.resume
    config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": is_converted}
    model = zero.build(
        ref=job.model,
        spec=job.spec,
        resources=job.resources,
        config=config,
        total=num_steps,
        frozen=job.objective.needs_frozen,
        trainable=job.objective.trainable,
        layer=job.objective.layer,
        first_adapters=job.load_first_adapters(),
        mask_ratio=job.objective.mask_ratio,
    )
    if job.resources.packing:
        check_packing(model, data)
    # a run that resumes asks the model before training again, and gets the same answers
    workers = Workers(hooks.rank, hooks.world_size)
    before = read_before(job, model, data, watched.calibration if watched else (), workers)
    moved = WeightDistance.of(model.engine.module) if job.objective.weight_distance else None
    stop = Stop.of(job, model, watched, workers) if watched else None
    if job.objective.masks:
        masks.switch_on(model.engine.module)
    timeline.mark("worker ready")
    step = 0
    history: History = []
    if resume is not None:
        state = checkpoints.restore(model.engine, resume)
        step = state["meow_step"]
        history = state["meow_history"]
        if is_converted:
            _barrier()
            shutil.rmtree(resume, ignore_errors=True)
    cool_down = CoolDown.of(job, history)
    while step < _end(cool_down, num_steps):
        if cool_down is not None:
            _scale_learning_rate(model, cool_down.share(step))
        weights = _term_weights(job, history)
        record = _step(job, hooks, model, objective, data, step, before, weights, moved)
        step += 1
        timeline.mark_first("first result")
        if stop is not None and (stop.is_due(step) or step == _end(cool_down, num_steps)):
            record["never_seen"] = stop.compare(job, model, workers)
        history.append(record)
        hooks.progress(record)
        cool_down = CoolDown.of(job, history)
        if _saves_after(step, job, data, _end(cool_down, num_steps)):
            state = {"meow_step": step, "meow_history": history}
            with TemporaryDirectory() as folder:
                checkpoints.save(model.engine, Path(folder), state, cut)
                hooks.save(Path(folder), {"step": step, "loss": record["loss"]})
    if job.objective.masks:
        masks.apply(model.engine.module)
    timeline.mark("last result")
    keeps_gram = job.spec.lora is not None and job.spec.lora.gram
    roots = gram.measure(job, model, data, workers) if keeps_gram else {}
    export_model(job, model.engine, hooks.rank, history, roots)
    timeline.mark("model exported")


def _end(cool_down: CoolDown | None, num_steps: int) -> int:
    """Returns the number of steps of the run, as far as it is known."""
    return num_steps if cool_down is None else min(num_steps, cool_down.end)


# --- a step ---------------------------------------------------------------------------------------


def _step(
    job: Job,
    hooks: Hooks,
    model: Model,
    objective: Callable[..., Any],
    data: Dataset,
    step: int,
    before: Before,
    weights: Mapping[str, float],
    moved: WeightDistance | None,
) -> dict[str, Any]:
    """Takes one optimiser step, counted from 0; returns its record.

    Args:
        job: what to train.
        hooks: the position of this worker.
        model: the model that is trained.
        objective: the function of the objective.
        data: the pairs.
        step: the number of the step.
        before: what the model said before training.
        weights: the weights of the added terms in this step.
        moved: the term of the distance of the weights; None if the objective has none.

    Raises:
        MeowError: the loss is NaN or infinite.
    """
    import torch

    batch = data.batch(step)
    totals = totals_of(batch)
    learning_rate = model.engine.get_lr()[0]
    torch.manual_seed(_dropout_seed(job.spec.seed, step, hooks.rank))
    accumulation = job.accumulation(hooks.world_size)
    names: list[str] = []
    sums: Any = 0  # `[terms]`, this worker's share of each term
    distance: Any = None
    for items in micro_batches(batch, hooks.rank, hooks.world_size, accumulation):
        # A worker without an item sends a stand-in through without a loss, to stay in step with
        # the others. DeepSpeed averages over workers, but the terms are shares of a mean over the
        # global batch.
        has_items = bool(items)
        terms = weighted_terms(job, model, objective, items or batch[:1], totals, before, weights)
        loss = sum(terms.values()) * (hooks.world_size if has_items else 0)
        if moved is not None and distance is None:
            # once per step: it depends on no item, and is the same for all workers
            distance = job.objective.weight_distance * moved.to(model.engine.module)
            loss = loss + distance
        model.engine.backward(loss, scale_wrt_gas=False)
        names = list(terms)
        sums = sums + torch.stack([term.detach() for term in terms.values()]) * has_items
        model.engine.step()
    if hooks.world_size > 1:
        torch.distributed.all_reduce(sums)
    terms_of_batch = dict(zip(names, sums.tolist(), strict=True))
    if distance is not None:
        terms_of_batch["distance"] = distance.item()
    record = _record(terms_of_batch, totals, step + 1, data, learning_rate)
    if job.objective.utility_budget is not None:
        record["kl_weight"] = weights["kl"]
    if job.objective.retain_budget is not None:
        record["retain_weight"] = weights["retain"]
    return record


def _scale_learning_rate(model: Model, share: float) -> None:
    """Lowers the learning rate of the next step only; the schedule sets that of the step after."""
    for group in model.engine.optimizer.param_groups:
        group["lr"] *= share


def _term_weights(job: Job, history: History) -> dict[str, float]:
    """Returns the weights of the added terms in the next step, by the name of the term."""
    spec = job.objective
    return {
        "retain": _adapted("retain", spec.retain_weight, spec.retain_budget, history),
        "kl": _adapted("kl", spec.kl_weight, spec.utility_budget, history),
    }


def _adapted(term: str, weight: float, budget: float | None, history: History) -> float:
    """Returns the weight of a term in the next step.

    With a budget it rises while the term exceeds the budget, and falls otherwise, by the dual step
    of PDU (arXiv 2506.05314).

    Args:
        term: the name of the term.
        weight: its weight in the first step.
        budget: the budget of the term without its weight, in nats per token; None keeps the weight.
        history: the records of the steps before.
    """
    if budget is None or not history:
        return weight
    last = history[-1]
    last_weight: float = last[f"{term}_weight"]
    value: float = last["terms"][term] / last_weight
    return max(LEAST_WEIGHT, last_weight + DUAL_RATE * (value - budget))


def _record(
    terms: Mapping[str, float],
    totals: Mapping[str, Totals],
    step: int,
    data: Dataset,
    learning_rate: float,
) -> dict[str, Any]:
    """Returns the record of a step, counted from 1, by the terms of its loss."""
    loss = sum(terms.values())
    if not math.isfinite(loss):
        raise MeowError(
            f"The loss became NaN or infinite at step {step}. Try a lower learning rate."
        )
    record: dict[str, Any] = {
        "step": step,
        "epoch": step / data.per_epoch,
        "loss": loss,
        "tokens": sum(total.tokens for total in totals.values()),
        "learning_rate": learning_rate,
    }
    if len(terms) > 1:
        record["terms"] = dict(terms)
    return record


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Returns the seed of a worker's dropout in a step, the same after a resume."""
    return random.Random(f"{seed}/{step}/{rank}").getrandbits(63)  # noqa: S311 - not for secrets


# --- settings and checkpoints ---------------------------------------------------------------------


def _deepspeed_settings(job: Job, world_size: int) -> dict[str, Any]:
    import torch

    config = zero.settings(
        job.spec,
        job.resources,
        job.accumulation(world_size),
        on_gpu=torch.cuda.is_available(),
        user_settings=job.deepspeed,
    )
    if world_size == 1 and config["zero_optimization"]["stage"] == 2:
        # one worker has nothing to partition, and stage 2 moves gradients after each forward pass
        config["zero_optimization"]["stage"] = 1
    return config


def _checkpoint_to_resume(hooks: Hooks, cut: dict[str, int]) -> Path | None:
    """Returns the checkpoint to resume from; one of other workers is converted once per node."""
    if hooks.resume is None or checkpoints.fits(hooks.resume, cut):
        return hooks.resume
    if hooks.local_rank == 0:
        checkpoints.convert(hooks.resume)
    _barrier()
    return checkpoints.converted(hooks.resume)


def _saves_after(step: int, job: Job, data: Dataset, num_steps: int) -> bool:
    """Whether a checkpoint is saved after a step, counted from 1; the last one is exported."""
    interval = data.per_epoch * job.resources.checkpoint_every
    if job.objective.until == "never_seen":
        interval = max(interval, LEAST_STEPS_TO_SAVE)  # few facts have epochs of one step
    return step % interval == 0 and step < num_steps


def _barrier() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()
