"""The objectives where answers are impossible or certain."""

import math
from collections.abc import Iterable

import pytest
import torch

from tests.support.answers import (
    BIG,
    DTYPES,
    HIDDEN,
    LENGTHS,
    VOCAB,
    Batch,
    Truth,
    example,
    gradients,
    loss,
)
from tests.support.formulas import BY_HAND, by_hand, mean

MIXED: Truth = {
    "inverted": (-BIG, -BIG, BIG, BIG),
    "idk": (-BIG, -BIG, BIG, BIG),
    "forget": (-BIG, BIG, -BIG, BIG),
    "retain": (-BIG, -BIG, BIG, BIG),
}
"""Answers that are impossible and answers that are certain, in every combination of two roles."""


@pytest.mark.parametrize(
    "before", [None, -BIG, BIG], ids=["before drawn", "before impossible", "before certain"]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", BY_HAND)
def test_probabilities_of_0_and_1_give_numbers_and_finite_gradients(
    name: str, dtype: torch.dtype, before: float | None
):
    batch = example(
        dtype, MIXED, None if before is None else {role: [before] * 4 for role in LENGTHS}
    )
    value = loss(name, batch)
    assert value.item() == pytest.approx(by_hand(name, batch), rel=1e-3, abs=1e-3)
    for role, grads in gradients(name, batch, value).items():
        for answer, grad in zip(batch[role], grads, strict=True):
            assert grad.dtype == dtype
            assert grad.shape == (len(answer.labels), HIDDEN if name == "rmu" else VOCAB)
            assert grad.isfinite().all()


def certain(dtype: torch.dtype, roles: Iterable[str]) -> Batch:
    """Returns a batch where the answers of `roles` are certain and all others impossible.

    Before training, all tokens have the same probability.
    """
    return example(
        dtype, {role: [BIG if role in roles else -BIG] * 4 for role in LENGTHS}, noise=0.0
    )


OTHERS = VOCAB - 1
NEVER = BIG + math.log(OTHERS)
"""−log p of an impossible token. Where one token is certain, it is `BIG` for the others."""
TRUTH = math.exp(-3) / (math.exp(-3) + OTHERS)
"""The probability of the true token if its logit is 3 lower than the others, which are equal."""


def preferred_wrongly(win: str) -> float:
    """Returns the preference loss if the truth is certain and the preferred answer impossible."""
    pairs = zip(LENGTHS[win], LENGTHS["forget"], strict=True)
    return 0.5 * mean(
        good * (NEVER - math.log(VOCAB)) + bad * math.log(VOCAB) for good, bad in pairs
    )


LIMITS: dict[str, tuple[float, float]] = {
    "nll": (NEVER, 0),
    "kl_to_reference": (
        (NEVER + OTHERS * math.log(OTHERS)) / VOCAB - math.log(VOCAB),
        OTHERS / VOCAB * BIG - math.log(VOCAB),
    ),
    "meow": (NEVER, 0),
    "idk": (NEVER, 0),
    "gradient_ascent": (0, -NEVER),
    "wga": (0, 0),
    "satimp": (0, 0),
    "npo": (2 / 0.5 * mean(math.log1p(VOCAB ** (0.5 * length)) for length in LENGTHS["forget"]), 0),
    "simnpo": (2 / 2.5 * math.log1p(math.exp(0.25)), 0),
    "dpo": (preferred_wrongly("idk"), 0),
    "altpo": (2 / 0.5 * preferred_wrongly("inverted"), 0),
    "ihl": (2, 1 - 1 / OTHERS),
    "undial": ((1 - TRUTH) * BIG, TRUTH * NEVER + (1 - TRUTH) * math.log(OTHERS)),
    "ceu": (BIG, math.log(OTHERS)),
    "flat": (math.tanh(1) / 2, -math.tanh(1) / 2),
}
"""The loss where undesired answers are certain, and where desired answers are."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LIMITS)
def test_the_loss_at_its_worst_and_its_best(name: str, dtype: torch.dtype):
    learnt = set(LENGTHS) - {"forget"}
    worst, best = loss(name, certain(dtype, ["forget"])), loss(name, certain(dtype, learnt))
    assert [worst.item(), best.item()] == pytest.approx(LIMITS[name], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LIMITS)
def test_only_some_objectives_have_a_gradient_at_their_best(name: str, dtype: torch.dtype):
    batch = certain(dtype, set(LENGTHS) - {"forget"})
    grads = gradients(name, batch, loss(name, batch))
    steepest = max(grad.abs().max().item() for of_role in grads.values() for grad in of_role)
    # ascent is unbounded; the other two pull towards the uniform distribution before training
    assert (steepest > 1e-3) == (name in {"gradient_ascent", "undial", "kl_to_reference"})
    assert steepest < 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_ascent_is_bounded_only_by_the_logits(dtype: torch.dtype):
    batches = [
        example(dtype, {role: [-scale * BIG] * 4 for role in LENGTHS}) for scale in (1, 2, 2**20)
    ]
    values = [loss("gradient_ascent", batch).item() for batch in batches]
    assert values == pytest.approx([-BIG, -2 * BIG, -(2.0**20) * BIG], rel=1e-3)
