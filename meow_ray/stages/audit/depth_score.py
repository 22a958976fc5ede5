"""The Unlearning Depth Score of one fact, from the drops that patching causes at each layer."""

from collections.abc import Sequence

MIN_DROP = 0.05
"""The drop above which a layer counts as one in which the retain model lacks the fact, in nats."""


def depth_score(never_taught: Sequence[float], unlearned: Sequence[float]) -> float | None:
    """Returns the Unlearning Depth Score: 1 if the fact is erased in all layers, 0 if in none.

    It is the mean of clip(drop of the unlearned model / drop of the retain model, 0, 1) over the
    layers in which the latter is above `MIN_DROP`, weighted by it. None if there is no such layer,
    which says that the original model does not know more about the fact than the retain model.

    Args:
        never_taught: `[layer]`, by how much the mean log-probability of the fact-bearing tokens
            drops in the original model if the states of this layer are those of the retain model,
            in nats per token.
        unlearned: `[layer]`, the same with the states of the unlearned model.

    Source: Lee et al., arXiv 2605.24614, sections 3.2 and 3.3.
    """
    layers = [pair for pair in zip(never_taught, unlearned, strict=True) if pair[0] > MIN_DROP]
    if not layers:
        return None
    # drop * clip(other / drop, 0, 1), without the division
    erased = sum(min(max(other, 0.0), drop) for drop, other in layers)
    return erased / sum(drop for drop, _ in layers)
