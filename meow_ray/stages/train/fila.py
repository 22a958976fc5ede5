"""FILA: adapters that start with the part of the weights that matters for the facts to forget.

LoKU (arXiv 2408.06621, sec. 3.3) asks which rows of a weight matrix W matter for the facts to
forget and not for those to retain, by their Fisher information. It splits W into the low-rank part
that these rows have most of, and the rest. Training starts with the part in the adapter and the
rest in the frozen weights, so that the model is the same as before, and the adapter moves what
matters.

`first_adapters` computes the part, once, in the stage `fila`. `start` divides a model's weights by
it, and `relative_to_base` undoes the division in a trained adapter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from meow_ray.config import FineTuning
from meow_ray.models.prompts import IGNORE
from meow_ray.stages.train.adapters import ADAPTER, adapted_layers, is_transposed
from meow_ray.stages.train.items import Pair

FILE = "first_adapters.safetensors"
"""The file of the artifact `fila`."""
EPSILON = 1e-5
"""Added to what is divided by, as in the authors' code."""
MORE_RANKS = 8
"""Singular values that are computed beyond the rank of the adapter, for accuracy."""
ITERATIONS = 4
"""Subspace iterations of the randomised decomposition."""


def is_configured(spec: FineTuning) -> bool:
    """Tells whether adapters start from a part of the weights."""
    return spec.lora is not None and spec.lora.init == "fila"


def fisher(model: Any, pairs: Iterable[Pair], device: Any) -> dict[str, Any]:
    """Returns the Fisher information of the adapted layers' weights, `[out, in]` by layer.

    It is the mean of the squared gradients of each pair's cross-entropy, weighted by the number of
    the answer's tokens.

    Args:
        model: a model with adapters, see `with_adapters`. None of its parameters has a gradient
            afterwards.
        pairs: tokenised questions with answers.
        device: the device of the model.
    """
    import torch

    layers = adapted_layers(model)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    model.requires_grad_(requires_grad=False)
    for weight in weights.values():
        weight.requires_grad_(requires_grad=True)
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    num_tokens = 0
    for pair in pairs:
        _loss(model, pair, device).backward()
        num_tokens += pair.num_labels
        for name, weight in weights.items():
            if weight.grad is not None:
                sums[name] += weight.grad.square() * pair.num_labels
                weight.grad = None
    model.requires_grad_(requires_grad=False)
    means = {name: total / max(1, num_tokens) for name, total in sums.items()}
    return {name: mean.T if is_transposed(layers[name]) else mean for name, mean in means.items()}


def _loss(model: Any, pair: Pair, device: Any) -> Any:
    """Returns the mean cross-entropy of the tokens of a pair's answer."""
    import torch

    input_ids = torch.tensor([pair.input_ids], device=device)
    labels = torch.tensor(pair.labels[1:], device=device)
    logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE)


def row_importance(forget: Any, retain: Any) -> Any:
    """Returns how much each row matters for the facts to forget, relative to those to retain.

    It is the square root of the row's sum of forget / (ε + retain), `[out]`.

    Args:
        forget: Fisher information of the facts to forget, `[out, in]`.
        retain: that of the retain set, `[out, in]`.
    """
    return (forget / (EPSILON + retain)).sum(1).sqrt()


def low_rank_part(weight: Any, importance: Any, rank: int, scaling: float) -> tuple[Any, Any]:
    """Returns the matrices A `[rank, in]` and B `[out, rank]` of the part that an adapter takes.

    scaling · B · A is the matrix of this rank that is nearest to the weight, where the error of
    each row counts by its importance: the rows are multiplied by their importance, decomposed into
    singular values, and divided again.

    Args:
        weight: `[out, in]`.
        importance: `[out]`.
        rank: the rank of the adapter.
        scaling: the factor of the adapter, alpha / rank.
    """
    import torch

    weighted = importance[:, None] * weight
    most = min(weighted.shape)
    with torch.random.fork_rng(devices=[weight.device] if weight.is_cuda else []):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(
            weighted, q=min(rank + MORE_RANKS, most), niter=ITERATIONS
        )
    left, values, right = left[:, :rank], values[:rank], right[:, :rank]
    root = (values / scaling).sqrt()
    a = (right * root).T
    b = (left * root) / (importance[:, None] + EPSILON)
    missing = rank - a.shape[0]  # of a matrix that is smaller than the rank
    pad = torch.nn.functional.pad
    return pad(a, (0, 0, 0, missing)), pad(b, (0, missing))


def first_adapters(
    model: Any, forget: Iterable[Pair], retain: Iterable[Pair], device: Any
) -> dict[str, Any]:
    """Returns the tensors that adapters start from, on the CPU, by `name_of`.

    Args:
        model: a model with adapters.
        forget: the true answers of the facts to forget.
        retain: pairs of the retain set.
        device: the device of the model.
    """
    of_forget = fisher(model, forget, device)
    of_retain = fisher(model, retain, device)
    tensors = {}
    for name, layer in adapted_layers(model).items():
        importance = row_importance(of_forget.pop(name), of_retain.pop(name))
        weight = layer.get_base_layer().weight.detach().float()
        if is_transposed(layer):
            weight = weight.T
        rank, scaling = layer.r[ADAPTER], layer.scaling[ADAPTER]
        a, b = low_rank_part(weight, importance, rank, scaling)
        tensors[name_of(name, "lora_A")] = a.contiguous().cpu()
        tensors[name_of(name, "lora_B")] = b.contiguous().cpu()
    return tensors


def name_of(layer: str, matrix: str) -> str:
    """Returns the name of the weight of `lora_A` or `lora_B` of a layer."""
    return f"{layer}.{matrix}.{ADAPTER}.weight"


# --- training -------------------------------------------------------------------------------------


def start(model: Any, first: Mapping[str, Any], *, is_partitioned: bool) -> None:
    """Moves the part of the weights that adapters start from out of a model's frozen weights.

    Args:
        model: a model with new adapters.
        first: see `first_adapters`.
        is_partitioned: whether ZeRO 3 gives each worker a part of the frozen weights.
    """
    import deepspeed
    import torch

    for name, layer in adapted_layers(model).items():
        weight = layer.get_base_layer().weight
        gathered = deepspeed.zero.GatheredParameters(
            [weight], modifier_rank=0, enabled=is_partitioned
        )
        with torch.no_grad(), gathered:
            layer.lora_A[ADAPTER].weight.copy_(first[name_of(name, "lora_A")])
            layer.lora_B[ADAPTER].weight.copy_(first[name_of(name, "lora_B")])
            weight -= layer.get_delta_weight(ADAPTER)


def relative_to_base(state: dict[str, Any], first: Mapping[str, Any], adapter: Any) -> None:
    """Makes a trained adapter one of the weights before `start`, in place.

    What was trained is scaling · (B · A − B₀ · A₀) away from these weights. As an adapter of twice
    the rank, that is [B, −B₀] · [A; A₀].

    Args:
        state: the trained weights by name.
        first: see `first_adapters`.
        adapter: PEFT's configuration of the adapter.
    """
    import torch

    for name, tensor in first.items():
        if ".lora_A." in name:
            state[name] = torch.cat([state[name], tensor])
        else:
            state[name] = torch.cat([state[name], -tensor], 1)
    adapter.r *= 2
    adapter.lora_alpha *= 2  # the scaling is alpha / rank
