"""Objectives of unlearning: small functions over the tokens of answers.

The positional parameters of an objective name the roles that it reads (`inverted`, `forget`,
`retain`, `idk`). Its keyword parameters are its settings; `presets.PRESETS` has their defaults.
An objective returns a scalar that is already divided by the size of the global batch. The sum over
micro-batches and workers is therefore the loss of the batch, however the batch is divided.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from meow_ray.stages.train.sequences import Sequences, ascending
from meow_ray.stages.train.terms import (
    excess,
    finite,
    js_to_reference,
    kl_from_uniform,
    kl_to_top_k,
    nll,
    shortfall,
)


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
    learn: float,
    cap: float,
    true_style: float,
) -> Tensor:
    """Makes inverted and true facts as probable as facts that no model has seen.

    mean (`learn` · `shortfall` + `cap` · `excess`) of the inverted answer's fact-bearing tokens
    + `style` · KL to the model before training on its other tokens
    + `floor` · mean (`excess` + `lift` · `shortfall`) of the fact-bearing tokens of the true one,
    whose floors are raised by `margin`
    + `true_style` · KL to the model before training on the other tokens of the true one.

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
        learn: by how much an inverted answer below its floors is raised; 0 does not teach it.
        cap: by how much an inverted answer that rose above its floors is lowered again; 0 leaves
            it.
        true_style: weight of the last term.
    """
    if not split:
        loss = nll(inverted)
    elif level:
        distance = learn * shortfall(inverted) + cap * excess(inverted)
        loss = _fact_share(distance, inverted)
    else:
        loss = -inverted.fact_mean(inverted.log_probs)
    if split and style:
        loss = loss + style * inverted.style_mean(kl_to_top_k(inverted))
    if floor:
        distance = excess(forget, margin) + lift * shortfall(forget, margin)
        loss = loss + floor * _fact_share(distance, forget)
    if true_style:
        loss = loss + true_style * forget.style_mean(kl_to_top_k(forget))
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


def balanced_subnet(forget: Sequences, *, ratio: float) -> Tensor:
    """Negative cross-entropy on the answers to forget; what is trained is masks, not weights.

    The preset adds the cross-entropy on the retain set, and drops the share `ratio` of the weights
    of each feed-forward matrix; see `masks`. Source: BalancedSubnet (arXiv 2410.02159).
    """
    return gradient_ascent(forget)


def wga(forget: Sequences, *, beta: float) -> Tensor:
    """Weighted gradient ascent: mean of p^β · log p, without a gradient through the weight p^β.

    Source: arXiv 2502.19301.
    """
    return forget.token_mean(forget.log_probs.detach().exp() ** beta * forget.log_probs)


def satimp(forget: Sequences, *, beta1: float, beta2: float) -> Tensor:
    """Gradient ascent weighted by p^β₁ · (1 − p)^β₂, without a gradient through the weight.

    p^β₁ gives weight to tokens that are still probable (saturation), (1 − p)^β₂ to those that are
    informative (importance). Source: SatImp, arXiv 2505.11953.
    """
    p = forget.log_probs.detach().exp()
    return forget.token_mean(p**beta1 * (1 - p) ** beta2 * forget.log_probs)


def pdu(forget: Sequences) -> Tensor:
    """Flattens the logits: mean of (largest − mean of the vocabulary's)² at each token.

    The preset adds the retain set as a constraint (`retain_budget`): its cross-entropy shall not
    exceed a budget, whatever forgetting takes. Source: PDU, arXiv 2506.05314.
    """
    logits = forget.logits.float()
    known = logits.isfinite()  # some models mask tokens by −∞
    mean = logits.where(known, 0).sum(-1) / known.sum(-1)
    return forget.token_mean((logits.amax(-1) - mean).square())


def jensun(idk: Sequences, forget: Sequences, retain: Sequences, *, alpha: float) -> Tensor:
    """Jensen-Shannon divergence: to a refusal on forget answers, to the target on retain answers.

    At each token of a true answer, the model's distribution is compared with the certainty of a
    token of the refusal, whose tokens are repeated to the length of the answer. The second term,
    with weight α, compares it with the model before training. Both lie between 0 and log 2.
    Source: JensUn, arXiv 2509.02820.
    """
    # the refusal's tokens from its first on, and again when they are used up
    first_of_refusal = idk.lengths.cumsum(0) - idk.lengths
    offsets = forget.positions % idk.lengths[forget.owner]
    refusal = idk.labels[first_of_refusal[forget.owner] + offsets]
    log_p = torch.log_softmax(finite(forget.logits), -1).gather(1, refusal[:, None])[:, 0]
    p = log_p.exp()
    # with m the mean of both distributions: KL(model ‖ m), then KL(refusal ‖ m)
    log_mean = torch.log1p(p) - math.log(2)
    from_model = p * (log_p - log_mean) + (1 - p) * math.log(2)
    return forget.token_mean((from_model - log_mean) / 2) + alpha * js_to_reference(retain)


def shred(forget: Sequences, *, share: float, skip_tokens: int) -> Tensor:
    """KL to the target's own distribution, without the true token where it was least probable.

    A share of the tokens of each answer, the least probable ones before training, are demoted:
    there the distribution before training is taken without the true token. At all other tokens the
    model keeps its distribution, so that no retain set is needed. The first `skip_tokens` tokens
    are never demoted. Source: SHRED, arXiv 2605.07482 (its variant without the nucleus).
    """
    assert forget.reference_top_k is not None
    # the most probable tokens come last, and skipped ones after all others
    log_probs = forget.reference_top_k.log_label
    order = ascending(
        log_probs.masked_fill(forget.positions < skip_tokens, torch.inf), forget.owner
    )
    rank = torch.empty_like(order).scatter(0, order, forget.positions)
    eligible = (forget.lengths - skip_tokens).clamp(min=0)
    count = torch.minimum((share * forget.lengths.double()).ceil().long(), eligible)
    demoted = rank < count[forget.owner]
    return forget.token_mean(kl_to_top_k(forget, demoted))


def tpo(forget: Sequences, *, beta: float) -> Tensor:
    """Lowers the logits of fact-bearing tokens, and keeps the other tokens of the same answer.

    −2/β · log σ(β · (mean logit before training − mean logit)) over the fact-bearing tokens of each
    answer, plus the cross-entropy of its other tokens, summed over the answer; both are means over
    answers. Source: TPO, arXiv 2506.03142, with the sums of its authors' code; there, a language
    model names the tokens, and the first difference is a mean over the batch.
    """
    assert forget.is_fact is not None
    assert forget.reference_logits is not None
    labels = forget.labels[:, None]
    now = finite(forget.logits).gather(1, labels)[:, 0]
    before = finite(forget.reference_logits).gather(1, labels)[:, 0]
    facts = forget.sum_by_sequence(forget.is_fact.float())
    lowered = forget.sum_by_sequence((before - now) * forget.is_fact) / facts.clamp(min=1)
    preference = -2 / beta * functional.logsigmoid(beta * lowered)
    others = -forget.sum_by_sequence(forget.log_probs * ~forget.is_fact)
    return forget.sequence_mean(preference + others)


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
    teacher = finite(forget.reference_logits).scatter_add(1, forget.labels[:, None], -penalty)
    loss = functional.cross_entropy(
        finite(forget.logits), torch.softmax(teacher, -1), reduction="none"
    )
    return forget.token_mean(loss)


def ceu(forget: Sequences, *, skip_tokens: int) -> Tensor:
    """Cross-entropy to the model's distribution without the true token (CE-U, arXiv 2503.01224).

    The loss and its mean skip the first `skip_tokens` tokens of each answer, as in the paper.
    """
    target = forget.logits.detach().float().scatter(1, forget.labels[:, None], -torch.inf)
    loss = functional.cross_entropy(
        finite(forget.logits), torch.softmax(target, -1), reduction="none"
    )
    counts = forget.positions >= skip_tokens
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


def uld(inverted: Sequences, forget: Sequences, retain: Sequences, *, alpha: float) -> Tensor:
    """Teaches an assistant the true answers, and to be uniform on all others.

    Cross-entropy on the true answers + α · KL(uniform ‖ assistant), a mean over the tokens of
    inverted and of retained answers. The target then answers without what the assistant knows; see
    `engines.uld`. Source: ULD, arXiv 2406.08607, with the weight α of its authors' code; inverted
    facts are what the paper calls perturbed answers.
    """
    to_uniform = kl_from_uniform(inverted).sum() + kl_from_uniform(retain).sum()
    tokens = max(1, inverted.total_tokens + retain.total_tokens)
    return nll(forget) + alpha * to_uniform / tokens


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
