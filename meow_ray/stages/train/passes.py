"""Forward passes without training: what the model says of some pairs, by all workers together.

Before the first step they give what an objective compares with: the most probable tokens of the
model that is about to be trained, so that no second model has to be in memory, and the floors of
facts that no model has seen. During training they tell whether the facts look forgotten.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from meow_ray.stages.train import layout
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.before import Before
from meow_ray.stages.train.forward import forward
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.zero import Model

TOP_K = 64
"""Number of tokens of each distribution that is kept, 0.5 KiB per token of an answer."""

_Result = TypeVar("_Result")


class Workers(NamedTuple):
    """The position of this worker among those that train."""

    rank: int
    world_size: int


class Score(NamedTuple):
    """What the model says of the answer of a pair, by token."""

    log_probs: list[float]
    is_greedy: list[bool]
    """Whether no other token is more probable."""


def read_before(
    job: Job, model: Model, data: Dataset, calibration: Sequence[Pair], workers: Workers
) -> Before:
    """Asks the model before training for all that the objective compares with later.

    Args:
        job: the objective.
        model: the model, which has not been trained yet.
        data: the pairs to train on.
        calibration: the twins that set the floors.
        workers: the position of this worker.
    """
    rows = [row for role in job.objective.cached_roles for row in data.rows_of(role)]
    pairs = [data.pair(row) for row in rows]
    top_k = map_pairs(job, model, pairs, _top_k, workers)
    scores = map_pairs(job, model, calibration, score, workers)
    by_fact: dict[str, list[float]] = {}
    for pair, twin in zip(calibration, scores, strict=True):
        own = by_fact.setdefault(pair.fact_id, [])
        own += [p for p, is_fact in zip(twin.log_probs, pair.fact_mask, strict=True) if is_fact]
    return Before(
        top_k=dict(zip(rows, top_k, strict=True)),
        floors={fact_id: sorted(values) for fact_id, values in by_fact.items()},
        all_floors=sorted(value for values in by_fact.values() for value in values),
    )


def _top_k(logits: Any, labels: Any) -> tuple[Any, Any, Any, Any]:
    """Returns the fields of `sequences.TopK` for logits `[tokens, vocab]`, on the CPU."""
    import torch

    log_probs = torch.log_softmax(logits.float(), -1)
    top = log_probs.topk(min(TOP_K, log_probs.shape[-1]))
    rest = log_probs.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    own = log_probs.gather(1, labels[:, None])[:, 0]
    return top.indices.int().cpu(), top.values.cpu(), rest.cpu(), own.cpu()


def score(logits: Any, labels: Any) -> Score:
    """Returns what logits `[tokens, vocab]` say of labels `[tokens]`."""
    import torch

    log_probs = torch.log_softmax(logits.float(), -1)
    own = log_probs.gather(1, labels[:, None])[:, 0]
    return Score(own.tolist(), (own >= log_probs.amax(-1)).tolist())


def map_pairs(
    job: Job,
    model: Model,
    pairs: Sequence[Pair],
    function: Callable[[Any, Any], _Result],
    workers: Workers,
) -> list[_Result]:
    """Returns `function(logits, labels)` of each pair; every worker calls this.

    Each worker takes a part of the pairs, and all of them get all results. With ZeRO 3 they have
    to run the same number of forward passes, so that a worker without pairs repeats some.
    """
    import torch

    order = sorted(range(len(pairs)), key=lambda number: len(pairs[number].input_ids))
    size = job.resources.micro_batch_size
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    network = model.engine.module
    network.eval()
    results: dict[int, _Result] = {}
    for chunk, is_own in chunks_of_worker(chunks, workers):
        with torch.no_grad():
            found = list(_results(job, model, [pairs[number] for number in chunk], function))
        if is_own:
            results |= zip(chunk, found, strict=True)
    network.train()
    gathered: list[Any] = [results]
    if workers.world_size > 1:
        gathered = [None] * workers.world_size
        torch.distributed.all_gather_object(gathered, results)
    all_results = {number: result for part in gathered for number, result in part.items()}
    return [all_results[number] for number in range(len(pairs))]


def chunks_of_worker(
    chunks: Sequence[Sequence[int]], workers: Workers
) -> Iterator[tuple[Sequence[int], bool]]:
    """Yields the chunks of a worker, and whether it is one of its own or a stand-in."""
    for start in range(0, len(chunks), workers.world_size):
        position = start + workers.rank
        is_own = position < len(chunks)
        yield chunks[position if is_own else 0], is_own


def _results(
    job: Job, model: Model, pairs: Sequence[Pair], function: Callable[[Any, Any], _Result]
) -> Iterator[_Result]:
    items = [{"pair": pair} for pair in pairs]
    laid_out = layout.lay_out(items, model.pad, model.engine.device, packed=job.resources.packing)
    logits, _ = forward(model.engine.module, laid_out, model.keeps_logits, None)
    start = 0
    for pair in pairs:
        tokens = slice(start, start + pair.num_labels)
        yield function(logits[tokens], laid_out.labels[tokens])
        start = tokens.stop
