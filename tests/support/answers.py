"""Batches of answers with known logits, their losses and gradients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meow_ray.stages.train import losses, terms
from meow_ray.stages.train.presets import PRESETS
from meow_ray.stages.train.sequences import Sequences, TopK

VOCAB, HIDDEN = 5, 3
TOP_K = 3
"""Number of tokens that are known of the distributions before training."""
LENGTHS = {
    "inverted": (3, 1, 4, 2),
    "forget": (2, 5, 1, 3),
    "retain": (4, 2, 2, 1),
    "idk": (1, 2, 3, 1),
}
"""Tokens of each answer."""

READS = {spec.function: spec.reads for spec in PRESETS.values()} | {
    "nll": ("retain",),
    "kl_to_reference": ("retain",),
    "kl_to_cached": ("retain",),
    "js_to_reference": ("retain",),
}
SETTINGS = {
    "meow_floor": {
        "split": 1,
        "level": 1,
        "style": 0.5,
        "floor": 2.0,
        "lift": 0.25,
        "margin": 0.5,
        "learn": 1.25,
        "cap": 0.75,
        "true_style": 0.375,
    },
    "balanced_subnet": {"ratio": 0.25},
    "wga": {"beta": 1.5},
    "npo": {"beta": 0.5},
    "simnpo": {"beta": 2.5, "gamma": 0.25},
    "dpo": {"beta": 0.5},
    "altpo": {"beta": 0.5},
    "undial": {"beta": 3.0},
    "satimp": {"beta1": 2.0, "beta2": 0.5},
    "jensun": {"alpha": 0.5},
    "shred": {"share": 0.4, "skip_tokens": 1},
    "tpo": {"beta": 0.5},
    "ceu": {"skip_tokens": 1},
    "uld": {"alpha": 0.75},
    "rmu": {"layer": 0, "steering": 4.0, "alpha": 10.0},
}
"""Settings of each function; none is a preset's default."""

BIG = 8192.0
"""A logit that makes all others negligible in float32; bfloat16 can represent it."""
DTYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and the outputs of a model at each of them."""

    labels: Tensor
    logits: Tensor
    before: Tensor
    """Logits of the model before training."""
    hidden: Tensor
    hidden_before: Tensor

    @property
    def is_fact(self) -> list[bool]:
        """Whether each token bears the fact: all but every third."""
        return [position % 3 != 2 for position in range(len(self.labels))]

    @property
    def floors(self) -> list[float]:
        """The floor of each token that bears the fact, ascending; NaN for the others."""
        return [
            -1.5 + position / 4 if bears else math.nan
            for position, bears in enumerate(self.is_fact)
        ]


Batch = dict[str, list[Answer]]
Truth = Mapping[str, Sequence[float]]
"""By role, one number per answer: the logit of its true tokens, and its activations."""


def example(
    dtype: torch.dtype = torch.float32,
    now: Truth | None = None,
    before: Truth | None = None,
    noise: float = 1.0,
) -> Batch:
    """Returns a random batch with four answers per role.

    Args:
        dtype: the dtype of logits and activations.
        now: fixed logits of the true tokens, and fixed activations, in the trained model.
        before: the same in the model before training.
        noise: the standard deviation of all other logits and activations.
    """
    generator = torch.Generator().manual_seed(0)

    def drawn(length: int, width: int) -> Tensor:
        return noise * torch.randn(length, width, generator=generator)

    def drawn_answer(role: str, number: int) -> Answer:
        length = LENGTHS[role][number]
        labels = torch.randint(VOCAB, (length,), generator=generator)
        outputs = []
        for truth in (now, before):
            logits = drawn(length, VOCAB)
            hidden = drawn(length, HIDDEN)
            if truth is not None:
                logits[torch.arange(length), labels] = truth[role][number]
                hidden[:] = truth[role][number]
            outputs.append((logits.to(dtype), hidden.to(dtype)))
        (logits, hidden), (logits_before, hidden_before) = outputs
        return Answer(
            labels=labels,
            logits=logits.requires_grad_(),
            before=logits_before,
            hidden=hidden.requires_grad_(),
            hidden_before=hidden_before,
        )

    return {
        role: [drawn_answer(role, i) for i in range(len(lengths))]
        for role, lengths in LENGTHS.items()
    }


def sequences(part: list[Answer], whole: list[Answer]) -> Sequences:
    """Returns some answers of a role, as parts of the global batch."""
    before = torch.cat([answer.before for answer in part])
    log_probs = torch.log_softmax(before.float(), -1)
    top = log_probs.topk(TOP_K)
    rest = log_probs.scatter(1, top.indices, -torch.inf).logsumexp(-1)
    before_training = torch.tensor([p for answer in part for p in log_p_before(answer)])
    return Sequences(
        logits=torch.cat([answer.logits for answer in part]),
        labels=torch.cat([answer.labels for answer in part]),
        owner=torch.tensor([i for i, answer in enumerate(part) for _ in answer.labels]),
        num_sequences=len(part),
        total_tokens=sum(len(answer.labels) for answer in whole),
        total_sequences=len(whole),
        reference_log_probs=before_training,
        reference_logits=torch.cat([answer.before for answer in part]),
        hidden=torch.cat([answer.hidden for answer in part]),
        reference_hidden=torch.cat([answer.hidden_before for answer in part]),
        reference_top_k=TopK(top.indices, top.values, rest, before_training),
        is_fact=torch.tensor([bears for answer in part for bears in answer.is_fact]),
        total_facts=sum(sum(answer.is_fact) for answer in whole),
        floors=torch.tensor([floor for answer in part for floor in answer.floors]),
    )


def loss(name: str, batch: Batch, part: slice = slice(None)) -> Tensor:
    """Returns the loss of a part of a batch, by default of the whole batch."""
    read = (sequences(batch[role][part], batch[role]) for role in READS[name])
    function = getattr(losses, name, None) or getattr(terms, name)
    value: Tensor = function(*read, **SETTINGS.get(name, {}))
    assert value.shape == ()
    assert value.dtype == torch.float32
    return value


def gradients(name: str, batch: Batch, value: Tensor) -> dict[str, list[Tensor]]:
    """Returns the gradients of each answer's logits; for `rmu`, of its activations."""
    leaves = {
        role: [answer.hidden if name == "rmu" else answer.logits for answer in batch[role]]
        for role in READS[name]
    }
    flat = [leaf for of_role in leaves.values() for leaf in of_role]
    # jensun reads the tokens of refusals alone
    grads = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
    return {role: [next(grads) for _ in of_role] for role, of_role in leaves.items()}


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    norm = top + math.log(math.fsum(math.exp(x - top) for x in row))
    return [x - norm for x in row]


def log_p(answer: Answer) -> list[float]:
    return [
        log_softmax(row)[label]
        for row, label in zip(answer.logits.tolist(), answer.labels.tolist(), strict=True)
    ]


def log_p_before(answer: Answer) -> list[float]:
    return [
        log_softmax(row)[label]
        for row, label in zip(answer.before.tolist(), answer.labels.tolist(), strict=True)
    ]
