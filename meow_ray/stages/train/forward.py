"""Forward passes of a micro-batch: logits, activations, and the weighted terms of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from meow_ray.errors import MeowError
from meow_ray.stages.train import layout
from meow_ray.stages.train.items import Item, Pair, Totals
from meow_ray.stages.train.layout import Layout

if TYPE_CHECKING:
    from meow_ray.stages.train.batches import Dataset
    from meow_ray.stages.train.before import Before
    from meow_ray.stages.train.job import Job
    from meow_ray.stages.train.zero import Model

LEAK = {"float32": 1e-3, "bfloat16": 0.05}
"""The largest change of a pair's logits by the pair before it, in standard deviations."""


def weighted_terms(
    job: Job,
    model: Model,
    objective: Callable[..., Any],
    items: Sequence[Item],
    totals: Mapping[str, Totals],
    before: Before,
    weights: Mapping[str, float],
) -> dict[str, Any]:
    """Returns the weighted terms of the loss of some items, scalars by name.

    Args:
        job: the objective's weights and settings.
        model: the model that is trained, and the reference.
        objective: the function of the objective.
        items: a micro-batch.
        totals: the sizes of the global batch by role.
        before: what the model said before training.
        weights: the weights of the terms `retain` and `kl`, which a budget changes from step to
            step.
    """
    from meow_ray.stages.train import terms as added
    from meow_ray.stages.train.sequences import Sequences

    spec = job.objective
    laid_out = layout.lay_out(items, model.pad, model.engine.device, packed=job.resources.packing)
    logits, hidden = forward(model.engine, laid_out, model.keeps_logits, spec.layer)
    reference_logits = None
    reference_hidden = None
    if spec.needs_frozen:
        reference_logits, reference_hidden = _reference_forward(laid_out, model, spec.layer)

    def part_of(tensor: Any, tokens: slice) -> Any:
        return None if tensor is None else tensor[tokens]

    sequences = {}
    for role, (tokens, num_sequences) in laid_out.roles.items():
        pairs = [item[role] for item in items]
        sequences[role] = Sequences(
            logits=logits[tokens],
            labels=laid_out.labels[tokens],
            owner=laid_out.owners[tokens],
            num_sequences=num_sequences,
            total_tokens=totals[role].tokens,
            total_sequences=totals[role].sequences,
            total_facts=totals[role].facts,
            reference_log_probs=part_of(laid_out.log_probs, tokens),
            reference_logits=part_of(reference_logits, tokens),
            hidden=part_of(hidden, tokens),
            reference_hidden=part_of(reference_hidden, tokens),
            reference_top_k=_top_k_of(pairs, before, laid_out.labels.device),
            is_fact=_fact_mask(pairs, laid_out.labels.device),
            floors=_floors(pairs, before, laid_out.labels.device),
        )
    loss = objective(*(sequences[role] for role in spec.reads), **spec.settings)
    terms = {"objective": spec.forget_weight * loss}
    if spec.retain_weight:
        terms["retain"] = weights["retain"] * added.nll(sequences["retain"])
    if spec.kl_weight:
        is_cached = spec.kl_reference == "top_k"
        divergence = added.kl_to_cached if is_cached else added.kl_to_reference
        terms["kl"] = weights["kl"] * divergence(sequences["retain"])
    return terms


def _top_k_of(pairs: Sequence[Pair], before: Before, device: Any) -> Any:
    """Returns the most probable tokens before training; None if they were not asked for."""
    import torch

    from meow_ray.stages.train.sequences import TopK

    if any(pair.row not in before.top_k for pair in pairs):
        return None
    fields = zip(*(before.top_k[pair.row] for pair in pairs), strict=True)
    tokens, log_probs, log_rest, log_label = (torch.cat(parts).to(device) for parts in fields)
    return TopK(tokens.long(), log_probs, log_rest, log_label)


def _fact_mask(pairs: Sequence[Pair], device: Any) -> Any:
    """Returns which tokens bear a fact, `[tokens]`; None if the pairs do not tell it."""
    import torch

    if any(pair.is_fact is None for pair in pairs):
        return None
    mask = [is_fact for pair in pairs for is_fact in pair.fact_mask]
    return torch.tensor(mask, dtype=torch.bool, device=device)


def _floors(pairs: Sequence[Pair], before: Before, device: Any) -> Any:
    """Returns the floors of answers, `[tokens]`; None without twins or fact-bearing tokens."""
    import torch

    if not before.all_floors or any(pair.is_fact is None for pair in pairs):
        return None
    floors = [floor for pair in pairs for floor in before.floors_of(pair)]
    return torch.tensor(floors, dtype=torch.float32, device=device)


def _reference_forward(laid_out: Layout, model: Model, layer: int | None) -> tuple[Any, Any]:
    """Returns `forward` of the reference: a frozen copy, or with LoRA the model without adapter."""
    import torch

    if model.frozen:
        with torch.no_grad():
            return forward(model.frozen, laid_out, model.keeps_logits, layer)
    with torch.no_grad(), model.engine.module.disable_adapter():
        return forward(model.engine, laid_out, model.keeps_logits, layer)


def forward(
    network: Any, laid_out: Layout, keeps_logits: bool, layer: int | None
) -> tuple[Any, Any]:
    """Returns what a network predicts for the tokens that a loss is taken on.

    Args:
        network: the model, or the reference.
        laid_out: the micro-batch.
        keeps_logits: whether the network can leave out logits.
        layer: the block whose activations are returned; None returns none.

    Returns:
        Logits `[tokens, vocab]`, and activations `[tokens, hidden]` or None.
    """
    inputs: dict[str, Any] = {
        **laid_out.inputs,
        "use_cache": False,
        "output_hidden_states": layer is not None,
    }
    rows, columns = laid_out.rows, laid_out.columns
    predicted: Any = (rows, columns)
    if keeps_logits and "position_ids" in inputs:
        # one packed row: only the logits of these columns are computed
        inputs["logits_to_keep"] = columns
        predicted = 0
    elif keeps_logits:
        # padded rows: only the logits from the first of these columns on
        first = int(columns.min())
        inputs["logits_to_keep"] = inputs["input_ids"].shape[1] - first
        predicted = (rows, columns - first)
    out = network(**inputs)
    hidden = None if layer is None else out.hidden_states[layer + 1][rows, columns]
    return out.logits[predicted], hidden


LEAKS = (
    "this model's attention leaks between packed pairs. Set resources.train.packing=false (for "
    "memorize, resources.memorize.packing=false)."
)
"""What is wrong with packing for a model that does not keep the pairs of a row apart."""


def check_packing(model: Model, data: Dataset) -> None:
    """Checks that the model keeps the pairs of a packed row apart.

    Raises:
        MeowError: the logits of a pair depend on the pair before it.
    """
    first_items = [data.item(number) for number in range(min(2, data.num_items))]
    pairs = [pair for item in first_items for pair in item.values()][:2]
    network = model.engine.module
    network.eval()
    change = packing_leak(
        network, (*pairs, *pairs)[:2], model.pad, model.engine.device, model.keeps_logits
    )
    network.train()
    if change > LEAK["bfloat16" if model.half else "float32"]:
        raise MeowError(f"resources.train.packing: {LEAKS}")


def packing_leak(
    network: Any, pairs: Sequence[Pair], pad: int, device: Any, keeps_logits: bool
) -> float:
    """Returns by how much the second pair's logits depend on the first, in standard deviations."""
    import torch

    def packed_logits(items: Sequence[Item]) -> Any:
        laid_out = layout.lay_out(items, pad, device, packed=True)
        return forward(network, laid_out, keeps_logits, None)[0].float()

    items = [{"pair": pair} for pair in pairs]
    with torch.no_grad():
        together = packed_logits(items)
        alone = packed_logits(items[1:])
    change = (together[-len(alone) :] - alone).abs().mean() / alone.std()
    return float(change)
