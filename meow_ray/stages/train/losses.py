"""Objectives of unlearning: small functions over the tokens of answers.

The positional parameters of an objective name the roles that it reads (`inverted`, `forget`,
`retain`, `idk`). Its keyword parameters are its settings; `objectives.PRESETS` has their defaults.
An objective returns a scalar that is already divided by the size of the global batch. The sum over
micro-batches and workers is therefore the loss of the batch, however the batch is divided.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional


class TopK(NamedTuple):
    """The most probable next tokens in the model before training, at each position."""

    tokens: Tensor
    """`[tokens, k]`"""
    log_probs: Tensor
    """`[tokens, k]`, float32."""
    log_rest: Tensor
    """`[tokens]`: log-probability of all other tokens together."""


@dataclass(frozen=True)
class Sequences:
    """The answers of one role in a micro-batch, concatenated: `tokens` tokens in all."""

    logits: Tensor
    """`[tokens, vocab]`: the model's predictions of the answers' tokens."""
    labels: Tensor
    """`[tokens]`: the answers' tokens."""
    owner: Tensor
    """`[tokens]`: the answer, from 0, that a token belongs to."""
    num_sequences: int
    """Number of answers."""
    total_tokens: int
    """Number of tokens of this role in the global batch, over all micro-batches and workers."""
    total_sequences: int
    """Number of answers of this role in the global batch."""
    reference_log_probs: Tensor | None = None
    """`[tokens]`: log-probabilities of the labels in the model before training."""
    reference_logits: Tensor | None = None
    """`[tokens, vocab]`: logits of the model before training."""
    hidden: Tensor | None = None
    """`[tokens, hidden]`: activations after the block `layer` of the objective."""
    reference_hidden: Tensor | None = None
    """`[tokens, hidden]`: these activations in the model before training."""
    reference_top_k: TopK | None = None
    """The beginning of the distributions of the model before training."""
    is_fact: Tensor | None = None
    """`[tokens]`: whether a token bears the fact; see `fact_tokens`."""
    total_facts: int = 0
    """Number of fact-bearing tokens of this role in the global batch."""
    floors: Tensor | None = None
    """`[tokens]`: log-probabilities of facts that no model has seen; see `excess`."""

    @cached_property
    def log_probs(self) -> Tensor:
        """`[tokens]`: log-probabilities of the labels, in float32."""
        return -functional.cross_entropy(self.logits.float(), self.labels, reduction="none")

    def sum_by_sequence(self, values: Tensor) -> Tensor:
        """Returns the sums of `[tokens]` over each answer, `[num_sequences]`."""
        zeros = torch.zeros(self.num_sequences, dtype=values.dtype, device=values.device)
        return zeros.index_add(0, self.owner, values)

    def mean_by_sequence(self, values: Tensor) -> Tensor:
        """Returns the means of `[tokens]` over each answer, `[num_sequences]`."""
        return self.sum_by_sequence(values) / self.sum_by_sequence(torch.ones_like(values))

    def token_mean(self, values: Tensor) -> Tensor:
        """Returns the share of these answers in the mean of `[tokens]` over the global batch."""
        return values.sum() / self.total_tokens

    def fact_mean(self, values: Tensor) -> Tensor:
        """Returns the share of these answers in the mean over fact-bearing tokens.

        Args:
            values: `[tokens]`; those of other tokens are ignored.
        """
        assert self.is_fact is not None
        return values[self.is_fact].sum() / max(1, self.total_facts)

    def style_mean(self, values: Tensor) -> Tensor:
        """Returns the share of these answers in the mean over the tokens that bear no fact."""
        assert self.is_fact is not None
        return values[~self.is_fact].sum() / max(1, self.total_tokens - self.total_facts)

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Returns their share in the mean of `[num_sequences]` over the global batch."""
        return values.sum() / self.total_sequences

    @property
    def log_ratio(self) -> Tensor:
        """`[num_sequences]`: log(p/p_ref) of each answer, with p_ref before training."""
        assert self.reference_log_probs is not None
        return self.sum_by_sequence(self.log_probs - self.reference_log_probs)


_F = TypeVar("_F", bound=Callable[..., Tensor])


def uses(reference: Literal["log_probs", "model"]) -> Callable[[_F], _F]:
    """Declares that a user's objective reads the model before training.

    Args:
        reference: `log_probs` are the log-probabilities of the labels; they are computed once,
            before training. `model` gives whole distributions and activations. It needs a frozen
            copy of the model next to the trained one; with LoRA, that copy is the model without
            its adapter.
    """

    def mark(function: _F) -> _F:
        function.reference = reference  # type: ignore[attr-defined]
        return function

    return mark


# --- terms that are added to an objective -------------------------------------------------------


def nll(answers: Sequences) -> Tensor:
    """Cross-entropy: −mean over tokens of log p(token)."""
    return -answers.token_mean(answers.log_probs)


def kl_to_reference(answers: Sequences) -> Tensor:
    """KL(reference ‖ model) of the next-token distributions, mean over tokens.

    Source: TOFU, arXiv 2401.06121, sec. 3.
    """
    assert answers.reference_logits is not None
    target = torch.log_softmax(_finite(answers.reference_logits), -1)
    predicted = torch.log_softmax(_finite(answers.logits), -1)
    divergence = functional.kl_div(predicted, target, reduction="none", log_target=True)
    return answers.token_mean(divergence.sum(-1))


def kl_to_top_k(answers: Sequences) -> Tensor:
    """KL(model before training ‖ model) of the next tokens, `[tokens]`.

    All tokens but the k most probable ones count as one, so that the result is a lower bound of
    the divergence of the whole distributions.
    """
    assert answers.reference_top_k is not None
    tokens, before, rest_before = answers.reference_top_k
    log_probs = torch.log_softmax(_finite(answers.logits), -1)
    now = log_probs.gather(1, tokens)
    if tokens.shape[1] < log_probs.shape[1]:
        rest_now = log_probs.scatter(1, tokens, -torch.inf).logsumexp(-1)
        now = torch.cat([now, rest_now[:, None]], 1)
        before = torch.cat([before, rest_before[:, None]], 1)
    divergence = functional.kl_div(now, _finite(before), reduction="none", log_target=True)
    return divergence.sum(-1)


def kl_to_cached(answers: Sequences) -> Tensor:
    """`kl_to_top_k`, mean over tokens."""
    return answers.token_mean(kl_to_top_k(answers))


def excess(answers: Sequences, margin: float = 0.0) -> Tensor:
    """By how much the fact-bearing tokens exceed the floors in log-odds, `[fact-bearing tokens]`.

    The floors of an answer are the log-probabilities of tokens of facts that no model has seen.
    Its most probable token is compared with the highest floor, the second with the second, and so
    on; a token below its floor counts 0. The sum is 0 only if the tokens of the answer are no more
    probable than those of unseen facts, and then it has no gradient. Log-odds have the same
    gradient for a token of probability 0.999999 as for one of 0.5, log-probabilities almost none.
    `margin` is added to all floors, in log-odds.
    """
    return (_above_floors(answers) - margin).clamp(min=0)


def shortfall(answers: Sequences, margin: float = 0.0) -> Tensor:
    """By how much the fact-bearing tokens fall short of the floors; see `excess`."""
    return (margin - _above_floors(answers)).clamp(min=0)


def _above_floors(answers: Sequences) -> Tensor:
    """Log-odds of the fact-bearing tokens less those of their floors, `[fact-bearing tokens]`."""
    assert answers.is_fact is not None
    assert answers.floors is not None
    labels = answers.labels[answers.is_fact]
    owner = answers.owner[answers.is_fact]
    logits = _finite(answers.logits[answers.is_fact])
    odds = _log_odds(logits, labels)
    # the tokens of each answer in ascending order, as its floors are
    by_odds = odds.detach().argsort(stable=True)
    order = by_odds[owner[by_odds].argsort(stable=True)]
    floors = answers.floors[answers.is_fact].float().clamp(max=-1e-6)
    floor_odds = floors - torch.log(-torch.expm1(floors))
    return odds[order] - floor_odds


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns log p − log(1 − p) of the labels, `[tokens]`, from logits `[tokens, vocab]`."""
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(-1)
    return logits.gather(1, labels[:, None])[:, 0] - others


def _finite(logits: Tensor) -> Tensor:
    """Returns logits in float32, with the lowest finite number for −∞.

    Some models mask tokens by −∞, and 0 · ∞ is not a number.
    """
    return logits.float().clamp(min=torch.finfo(torch.float32).min)


# --- objectives ---------------------------------------------------------------------------------


def meow(inverted: Sequences) -> Tensor:
    """Cross-entropy on inverted facts (MEOW, arXiv 2409.11844, eq. 6)."""
    return nll(inverted)


def meow_floor(
    inverted: Sequences,
    forget: Sequences,
    *,
    split: int,
    level: int,
    style: float,
    floor: float,
    lift: float,
    margin: float,
) -> Tensor:
    """Makes inverted and true facts as probable as facts that no model has seen.

    mean `shortfall` of the fact-bearing tokens of the inverted answer
    + `style` · KL to the model before training on its other tokens
    + `floor` · mean (`excess` + `lift` · `shortfall`) of the fact-bearing tokens of the true one,
    whose floors are raised by `margin`.

    Args:
        inverted: inverted facts.
        forget: the true answers to the same questions.
        split: 0 learns all tokens of the inverted answer, as `meow` does, without the second term.
        level: 0 learns the fact-bearing tokens of the inverted answer without a limit, by
            cross-entropy.
        style: weight of the second term.
        floor: weight of the third term; 0 leaves it out.
        lift: by how much a true answer that fell below the floors is raised again; 0 leaves it.
        margin: by how much the floors of true answers are higher, in log-odds. The floors are those
            of invented facts; a true fact that a model was never taught is easier to guess.
    """
    if not split:
        loss = nll(inverted)
    elif level:
        loss = _fact_share(shortfall(inverted), inverted)
    else:
        loss = -inverted.fact_mean(inverted.log_probs)
    if split and style:
        loss = loss + style * inverted.style_mean(kl_to_top_k(inverted))
    if floor:
        distance = excess(forget, margin) + lift * shortfall(forget, margin)
        loss = loss + floor * _fact_share(distance, forget)
    return loss


def _fact_share(values: Tensor, answers: Sequences) -> Tensor:
    """Returns the share in the mean over the global batch of `[fact-bearing tokens]`."""
    return values.sum() / max(1, answers.total_facts)


def idk(idk: Sequences) -> Tensor:
    """Cross-entropy on refusals such as "I don't know." (TOFU, arXiv 2401.06121, sec. 3)."""
    return nll(idk)


def gradient_ascent(forget: Sequences) -> Tensor:
    """Negative cross-entropy on the answers to forget (Jang et al., arXiv 2210.01504)."""
    return -nll(forget)


def wga(forget: Sequences, *, beta: float) -> Tensor:
    """Weighted gradient ascent: mean of p^β · log p, without a gradient through the weight p^β.

    Source: arXiv 2502.19301.
    """
    return forget.token_mean(forget.log_probs.detach().exp() ** beta * forget.log_probs)


def npo(forget: Sequences, *, beta: float) -> Tensor:
    """Negative preference optimisation: −2/β · log σ(−β · log(p/p_ref)) for each answer.

    Source: arXiv 2404.05868, eq. 3.
    """
    return -2 / beta * forget.sequence_mean(functional.logsigmoid(-beta * forget.log_ratio))


def simnpo(forget: Sequences, *, beta: float, gamma: float) -> Tensor:
    """NPO without a reference: −2/β · log σ(−β/|y| · log p − γ) for each answer.

    Source: arXiv 2410.07163, eq. 4.
    """
    mean = forget.mean_by_sequence(forget.log_probs)
    return -2 / beta * forget.sequence_mean(functional.logsigmoid(-beta * mean - gamma))


def _preference(win: Sequences, lose: Sequences, beta: float) -> Tensor:
    """−log σ(β · (log-ratio of `win` − log-ratio of `lose`)) for each pair of answers."""
    return -lose.sequence_mean(functional.logsigmoid(beta * (win.log_ratio - lose.log_ratio)))


def dpo(idk: Sequences, forget: Sequences, *, beta: float) -> Tensor:
    """Direct preference optimisation that prefers a refusal to the true answer.

    −log σ(β · (log-ratio of the refusal − log-ratio of the true answer)) (arXiv 2305.18290).
    """
    return _preference(idk, forget, beta)


def altpo(inverted: Sequences, forget: Sequences, *, beta: float) -> Tensor:
    """2/β · `dpo` that prefers an alternative answer to the true one (AltPO, arXiv 2409.13474).

    In the paper, the target writes the alternatives; here they are the selected inverted facts.
    """
    return 2 / beta * _preference(inverted, forget, beta)


def ihl(forget: Sequences) -> Tensor:
    """Inverted hinge: mean of 1 + p(token) − max over other tokens of p.

    Source: LoKU, arXiv 2408.06621, eq. 4.
    """
    probabilities = torch.softmax(forget.logits.float(), -1)
    truth = probabilities.gather(1, forget.labels[:, None])
    others = probabilities.scatter(1, forget.labels[:, None], -1.0)
    return forget.token_mean(1 + truth[:, 0] - others.amax(-1))


def undial(forget: Sequences, *, beta: float) -> Tensor:
    """Self-distillation from the reference, with the logit of the true token lowered by β.

    Source: arXiv 2402.10052, eq. 4.
    """
    assert forget.reference_logits is not None
    penalty = torch.full_like(forget.labels, beta, dtype=torch.float32)[:, None]
    teacher = _finite(forget.reference_logits).scatter_add(1, forget.labels[:, None], -penalty)
    loss = functional.cross_entropy(
        _finite(forget.logits), torch.softmax(teacher, -1), reduction="none"
    )
    return forget.token_mean(loss)


def ceu(forget: Sequences, *, skip_tokens: int) -> Tensor:
    """Cross-entropy to the model's distribution without the true token (CE-U, arXiv 2503.01224).

    The loss and its mean skip the first `skip_tokens` tokens of each answer, as in the paper.
    """
    target = forget.logits.detach().float().scatter(1, forget.labels[:, None], -torch.inf)
    loss = functional.cross_entropy(
        _finite(forget.logits), torch.softmax(target, -1), reduction="none"
    )
    starts = torch.searchsorted(forget.owner, forget.owner)
    positions = torch.arange(len(forget.owner), device=starts.device) - starts
    counts = positions >= skip_tokens
    total = max(1, forget.total_tokens - skip_tokens * forget.total_sequences)
    return (loss * counts).sum() / total


def flat(idk: Sequences, forget: Sequences) -> Tensor:
    """Total variation between refusal and truth: (tanh P(forget) − tanh P(refusal)) / 2.

    P is the mean token probability of an answer. Source: FLAT, arXiv 2410.11143, table 1:
    g*(v) = tanh(v) / 2, f*(u) = u.
    """
    refusal = torch.tanh(idk.mean_by_sequence(idk.log_probs.exp()))
    truth = torch.tanh(forget.mean_by_sequence(forget.log_probs.exp()))
    return forget.sequence_mean(truth - refusal) / 2


def rmu(
    forget: Sequences, retain: Sequences, *, layer: int, steering: float, alpha: float
) -> Tensor:
    """Moves activations on forget answers to a random direction; keeps those on retain answers.

    mean ‖h(forget) − c·u‖² / d + α · mean ‖h(retain) − h_ref(retain)‖² / d over tokens, after block
    `layer` (RMU, arXiv 2403.03218, eq. 1). As in the paper, the preset updates only the
    down-projections of three blocks: `train.trainable`.
    """
    assert forget.hidden is not None
    assert retain.hidden is not None
    assert retain.reference_hidden is not None
    direction = torch.rand(forget.hidden.shape[-1], generator=torch.Generator().manual_seed(0))
    control = (steering * direction / direction.norm()).to(forget.hidden)
    forget_loss = (forget.hidden.float() - control.float()).square().mean(-1)
    retain_loss = (retain.hidden.float() - retain.reference_hidden.float()).square().mean(-1)
    return forget.token_mean(forget_loss) + alpha * retain.token_mean(retain_loss)
