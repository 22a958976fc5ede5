"""The arithmetic of merging: one change of a weight from the changes of several requests.

A change is the difference that the adapter of a request makes to the weight of a linear layer,
`[out, in]`: the layer maps inputs X, `[tokens, in]`, to X Wᵀ. If all requests make the same change,
all methods return it (`ties` with density 1).
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

Method: TypeAlias = Literal["gram", "linear", "ties"]

RIDGE = 1e-10
"""Added to the diagonal of each Gram matrix, as a share of the mean diagonal of their sum."""
TIES_DENSITY = 0.2
"""The share of the entries of a change that `ties` keeps (arXiv 2306.01708, section 4)."""


def linear(changes: Sequence[Any]) -> Any:
    """Returns the mean of changes, each `[out, in]`."""
    import torch

    return torch.stack(list(changes)).mean(0)


def ties(changes: Sequence[Any], density: float) -> Any:
    """Returns the merge of changes by TIES (arXiv 2306.01708).

    Of each change, the largest entries are kept. The sign of an entry is that of the sum. The
    result is the mean of the kept values that have this sign.

    Args:
        changes: each `[out, in]`.
        density: the share of entries that are kept, above 0 and up to 1.
    """
    import torch
    from peft.utils.merge_utils import calculate_majority_sign_mask, disjoint_merge, prune

    # PEFT warns that density 1 keeps all
    kept = [change if density == 1 else prune(change, density, "magnitude") for change in changes]
    stacked = torch.stack(kept)
    return disjoint_merge(stacked, calculate_majority_sign_mask(stacked))


def gram(changes: Sequence[Any], roots: Sequence[Any]) -> Any:
    """Returns the change that gives each request's inputs most nearly what its own change gives.

    It is the W that minimises Σ ‖Xᵢ Wᵀ - Xᵢ Wᵢᵀ‖² over the requests i (EUL, arXiv 2310.20150,
    section 3.3; RegMean, arXiv 2212.09849): with Gᵢ = XᵢᵀXᵢ, W = (Σ Wᵢ Gᵢ) (Σ Gᵢ)⁻¹. Few tokens
    leave Σ Gᵢ singular. So a small ridge is added to each Gᵢ, and in directions that no request
    reads, W is the mean of the changes.

    Args:
        changes: Wᵢ, each `[out, in]`.
        roots: Rᵢ with RᵢᵀRᵢ = Gᵢ, each `[rows, in]`.

    Returns:
        W, `[out, in]` in float64.
    """
    import torch

    grams = [root.double().T @ root.double() for root in roots]
    total = torch.stack(grams).sum(0)
    # inputs that are all 0 leave the mean
    ridge = (RIDGE * total.diagonal().mean()).item() or 1.0
    identity = torch.eye(total.shape[0], dtype=torch.float64)
    target = torch.zeros_like(changes[0], dtype=torch.float64)
    for change, own in zip(changes, grams, strict=True):
        target += change.double() @ (own + ridge * identity)
    factor = torch.linalg.cholesky(total + len(grams) * ridge * identity)
    # the sum is symmetric, so that W (Σ G) = T is solved as (Σ G) Wᵀ = Tᵀ
    return torch.cholesky_solve(target.T, factor).T
