"""Objectives of unlearning: small functions over the tokens of answers.

An objective is a function whose positional parameters name the roles it reads (`inverted`, `forget`, `retain`, `idk`)
and whose keyword parameters are its settings; `objectives.PRESETS` has their defaults. It returns a scalar, already
divided by the global batch, so that the sum over micro-batches and workers is the loss of the batch, however it was
cut.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Sequences:
    """The answers of one role in a micro-batch: `tokens` tokens of `num_sequences` answers, one after another."""

    logits: Tensor
    """`[tokens, vocab]`: what the model predicts where an answer's token stands."""
    labels: Tensor
    """`[tokens]`: the answers' tokens."""
    owner: Tensor
    """`[tokens]`: which answer, from 0, a token belongs to."""
    num_sequences: int
    total_tokens: int
    """Tokens of this role in the global batch, over all micro-batches and workers."""
    total_sequences: int
    """Answers of this role in the global batch."""
    reference_log_probs: Tensor | None = None
    """`[tokens]`: log-probabilities of the labels in the model before training."""
    reference_logits: Tensor | None = None
    """`[tokens, vocab]`: logits of the model before training."""
    hidden: Tensor | None = None
    """`[tokens, hidden]`: activations behind the objective's `layer`."""
    reference_hidden: Tensor | None = None
    """`[tokens, hidden]`: the same of the model before training."""

    @cached_property
    def log_probs(self) -> Tensor:
        """Log-probabilities of the labels, `[tokens]` in float32."""
        return -functional.cross_entropy(self.logits.float(), self.labels, reduction="none")

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Sums `[tokens]` over each answer: `[num_sequences]`."""
        return torch.zeros(self.num_sequences, dtype=values.dtype, device=values.device).index_add(
            0, self.owner, values
        )

    def mean_by_sequence(self, values: Tensor) -> Tensor:
        """Averages `[tokens]` over each answer: `[num_sequences]`."""
        return self.sum_by_sequence(values) / self.sum_by_sequence(torch.ones_like(values))

    def token_mean(self, values: Tensor) -> Tensor:
        """Returns this part's share of the mean of `[tokens]` over the global batch."""
        return values.sum() / self.total_tokens

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Returns this part's share of the mean of `[num_sequences]` over the global batch."""
        return values.sum() / self.total_sequences

    @property
    def log_ratio(self) -> Tensor:
        """The log-probability of each answer against the model before training, `[num_sequences]`."""
        assert self.reference_log_probs is not None
        return self.sum_by_sequence(self.log_probs - self.reference_log_probs)


_F = TypeVar("_F", bound=Callable[..., Tensor])


def uses(reference: Literal["log_probs", "model"]) -> Callable[[_F], _F]:
    """Declares that an objective of one's own reads the model before training.

    `log_probs` are computed once, before training. `model` keeps a frozen copy beside the one that is trained, for
    whole distributions and activations; with LoRA the model without its adapter is that copy.
    """

    def mark(function: _F) -> _F:
        function.reference = reference  # type: ignore[attr-defined]
        return function

    return mark


# --- what is added to any objective -------------------------------------------------------------


def nll(answers: Sequences) -> Tensor:
    """Cross-entropy: −mean over tokens of log p(token)."""
    return -answers.token_mean(answers.log_probs)


def kl_to_reference(answers: Sequences) -> Tensor:
    """KL(reference ‖ model) of the next-token distributions, mean over tokens (TOFU, arXiv 2401.06121, sec. 3)."""
    assert answers.reference_logits is not None
    target = torch.log_softmax(_finite(answers.reference_logits), -1)
    found = torch.log_softmax(_finite(answers.logits), -1)
    return answers.token_mean(
        functional.kl_div(found, target, reduction="none", log_target=True).sum(-1)
    )


def _finite(logits: Tensor) -> Tensor:
    """Returns logits in float32; −∞, by which some models mask tokens, becomes the lowest number, as 0 · ∞ is none."""
    return logits.float().clamp(min=torch.finfo(torch.float32).min)


# --- objectives ---------------------------------------------------------------------------------


def meow(inverted: Sequences) -> Tensor:
    """Cross-entropy on inverted facts (MEOW, arXiv 2409.11844, eq. 6)."""
    return nll(inverted)


def idk(idk: Sequences) -> Tensor:
    """Cross-entropy on refusals such as "I don't know." (TOFU, arXiv 2401.06121, sec. 3)."""
    return nll(idk)


def gradient_ascent(forget: Sequences) -> Tensor:
    """The negative of the cross-entropy on the answers to forget (Jang et al., arXiv 2210.01504)."""
    return -nll(forget)


def wga(forget: Sequences, *, beta: float) -> Tensor:
    """Weighted gradient ascent: mean of p^β · log p, with the weight p^β held fixed (arXiv 2502.19301)."""
    return forget.token_mean(forget.log_probs.detach().exp() ** beta * forget.log_probs)


def npo(forget: Sequences, *, beta: float) -> Tensor:
    """Negative preference optimisation: −2/β · log σ(−β · log(p/p_ref)) for each answer (arXiv 2404.05868, eq. 3)."""
    return -2 / beta * forget.sequence_mean(functional.logsigmoid(-beta * forget.log_ratio))


def simnpo(forget: Sequences, *, beta: float, gamma: float) -> Tensor:
    """NPO without a reference: −2/β · log σ(−β/|y| · log p − γ) for each answer (arXiv 2410.07163, eq. 4)."""
    mean = forget.mean_by_sequence(forget.log_probs)
    return -2 / beta * forget.sequence_mean(functional.logsigmoid(-beta * mean - gamma))


def _preference(win: Sequences, lose: Sequences, beta: float) -> Tensor:
    return -lose.sequence_mean(functional.logsigmoid(beta * (win.log_ratio - lose.log_ratio)))


def dpo(idk: Sequences, forget: Sequences, *, beta: float) -> Tensor:
    """Prefers a refusal to the true answer: −log σ(β · (log-ratio of the one − of the other)) (arXiv 2305.18290)."""
    return _preference(idk, forget, beta)


def altpo(inverted: Sequences, forget: Sequences, *, beta: float) -> Tensor:
    """Prefers an alternative answer to the true one, as `dpo` (AltPO, arXiv 2409.13474).

    The paper lets the target write the alternatives; here they are the selected inverted facts.
    """
    return 2 / beta * _preference(inverted, forget, beta)


def ihl(forget: Sequences) -> Tensor:
    """Inverted hinge: mean of 1 + p(token) − max over other tokens of p (LoKU, arXiv 2408.06621, eq. 4)."""
    probabilities = torch.softmax(forget.logits.float(), -1)
    truth = probabilities.gather(1, forget.labels[:, None])
    others = probabilities.scatter(1, forget.labels[:, None], -1.0)
    return forget.token_mean(1 + truth[:, 0] - others.amax(-1))


def undial(forget: Sequences, *, beta: float) -> Tensor:
    """Self-distillation from the reference with the true token's logit lowered by β (arXiv 2402.10052, eq. 4)."""
    assert forget.reference_logits is not None
    penalty = torch.full_like(forget.labels, beta, dtype=torch.float32)[:, None]
    teacher = _finite(forget.reference_logits).scatter_add(1, forget.labels[:, None], -penalty)
    return forget.token_mean(
        functional.cross_entropy(
            _finite(forget.logits), torch.softmax(teacher, -1), reduction="none"
        )
    )


def ceu(forget: Sequences, *, skip_tokens: int) -> Tensor:
    """Cross-entropy to the model's own distribution without the true token (CE-U, arXiv 2503.01224).

    The first `skip_tokens` tokens of an answer are left alone, and out of the mean, as in the paper.
    """
    target = forget.logits.detach().float().scatter(1, forget.labels[:, None], -torch.inf)
    loss = functional.cross_entropy(
        _finite(forget.logits), torch.softmax(target, -1), reduction="none"
    )
    starts = torch.searchsorted(forget.owner, forget.owner)
    late = torch.arange(len(forget.owner), device=starts.device) - starts >= skip_tokens
    return (loss * late).sum() / max(1, forget.total_tokens - skip_tokens * forget.total_sequences)


def flat(idk: Sequences, forget: Sequences) -> Tensor:
    """Total variation between refusal and truth: (tanh P(forget) − tanh P(refusal)) / 2 for each pair.

    P is an answer's mean token probability (FLAT, arXiv 2410.11143, table 1: g*(v) = tanh(v) / 2, f*(u) = u).
    """
    good, bad = (torch.tanh(one.mean_by_sequence(one.log_probs.exp())) for one in (idk, forget))
    return forget.sequence_mean(bad - good) / 2


def rmu(
    forget: Sequences, retain: Sequences, *, layer: int, steering: float, alpha: float
) -> Tensor:
    """Steers activations of forget answers to a fixed random direction, keeps those of retain answers.

    mean ‖h(forget) − c·u‖² / d + α · mean ‖h(retain) − h_ref(retain)‖² / d over tokens, behind block `layer` (RMU,
    arXiv 2403.03218, eq. 1). The paper updates the down-projections of three blocks alone: `train.trainable`.
    """
    assert forget.hidden is not None
    assert retain.hidden is not None
    assert retain.reference_hidden is not None
    direction = torch.rand(forget.hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    control = (steering * direction / direction.norm()).to(forget.hidden)
    away = forget.token_mean((forget.hidden.float() - control.float()).square().mean(-1))
    kept = retain.token_mean(
        (retain.hidden.float() - retain.reference_hidden.float()).square().mean(-1)
    )
    return away + alpha * kept
