"""Relearning: a model is taught half of the facts again and asked for the other half.

What comes back of facts that were not taught was still in the weights (Deeb and Roger, arXiv
2410.08827). The halves change places, so that each fact is asked once. A model that never knew the
facts is taught and asked in the same way: it also learns the form of the answers, and only what the
tuned model gives away beyond it counts.

The loop runs in the process that asks the model. The project's own trainer would start Ray Train,
DeepSpeed and an inference engine for each point of each curve, and write a model folder for it,
which costs far more than the few steps themselves. So the model must fit into one device in
float32, with gradients and both moments of AdamW: 16 bytes per parameter.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.stages.audit.attack import Subject
from meow_ray.stages.train.forward import forward
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.layout import lay_out

HALVES = (0, 1)


def halves(subjects: Sequence[Subject], seed: int) -> tuple[list[Subject], list[Subject]]:
    """Divides subjects into two halves by a seed.

    All twins of a fact are in the same half, because they resemble one another.
    """
    facts = sorted({fact_of(subject) for subject in subjects})
    random.Random(f"{seed}/relearn").shuffle(facts)  # noqa: S311 - not for secrets
    first = set(facts[: len(facts) // 2])
    return (
        [subject for subject in subjects if fact_of(subject) in first],
        [subject for subject in subjects if fact_of(subject) not in first],
    )


def fact_of(subject: Subject) -> str:
    """Returns the id of the fact that a subject is, or is a twin of."""
    if subject.group == "facts":
        return subject.fact_id
    return subject.fact_id.rpartition("#")[0]


def taught_and_asked(
    subjects: Sequence[Subject], taught: int, seed: int
) -> tuple[list[Subject], list[Subject]]:
    """Returns the subjects that are taught, and those that are asked.

    Of twins, one for each fact is taught, so that facts and twins are taught in the same number;
    all twins of the other half are asked.

    Args:
        subjects: facts, or twins.
        taught: 0 or 1, the half that is taught.
        seed: decides the halves.
    """
    parts = halves(subjects, seed)
    first_of_each = {fact_of(subject): subject for subject in reversed(parts[taught])}
    chosen = {subject.fact_id for subject in first_of_each.values()}
    return (
        [subject for subject in parts[taught] if subject.fact_id in chosen],
        parts[1 - taught],
    )


def teach(
    model: Any,
    prompter: Prompter,
    pairs: Sequence[tuple[str, str]],
    steps: int,
    *,
    learning_rate: float,
    batch_size: int,
    seed: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Trains a model on questions with answers by AdamW, at a constant learning rate.

    The loss is the mean over the tokens of a batch's answers. Dropout is off. On a GPU the forward
    pass runs in bfloat16.

    Args:
        model: a causal language model of transformers, in float32; it is changed.
        prompter: writes and tokenises prompts.
        pairs: questions with answers. All of them come once in a shuffled order, then again in
            another one, and so on.
        steps: number of optimiser steps.
        learning_rate: of AdamW, without weight decay.
        batch_size: pairs per step.
        seed: of the order.
        after_step: is called with the number of steps taken, from 1.

    Returns:
        `[steps]`, the loss of each step before its update, in nats.

    Raises:
        MeowError: the loss is NaN or infinite.
    """
    import torch

    encoded = prompter.encode_pairs(*zip(*pairs, strict=True))
    items = [{"taught": Pair(ids, labels)} for ids, labels in encoded]
    device = next(model.parameters()).device
    keeps_logits = "logits_to_keep" in refs.forward_parameters(model)
    pad = prompter.tokenizer.pad_token_id
    model.eval()
    model.requires_grad_(requires_grad=True)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
    )
    losses = []
    try:
        for step, numbers in zip(
            range(1, steps + 1), batches(len(items), batch_size, seed), strict=False
        ):
            laid_out = lay_out([items[i] for i in numbers], pad, device, packed=False)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits, _ = forward(model, laid_out, keeps_logits, None)
            loss: Any = torch.nn.functional.cross_entropy(logits.float(), laid_out.labels)
            losses.append(float(loss.detach()))
            if not torch.isfinite(loss):
                raise MeowError(
                    f"`audit.relearn.learning_rate`: the loss is NaN or infinite at step {step}. "
                    "Lower it."
                )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            after_step(step)
    finally:
        optimizer.zero_grad()
    return losses


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Yields batches of numbers below `count` without end; a batch may span two passes.

    Each pass has all numbers once, in an order of its own.
    """

    def endless() -> Iterator[int]:
        number = 0
        while True:
            order = list(range(count))
            random.Random(f"{seed}/{number}").shuffle(order)  # noqa: S311 - not for secrets
            yield from order
            number += 1

    numbers = endless()
    while True:
        yield [next(numbers) for _ in range(min(size, count))]
