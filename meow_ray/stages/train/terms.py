"""Terms of losses that several objectives share, and those that are added to an objective.

As an objective does, a term returns a scalar that is divided by the size of the global batch,
unless it says that it returns `[tokens]`.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from meow_ray.stages.train.sequences import Sequences, ascending


def nll(answers: Sequences) -> Tensor:
    """Cross-entropy: −mean over tokens of log p(token)."""
    return -answers.token_mean(answers.log_probs)


def kl_to_reference(answers: Sequences) -> Tensor:
    """KL(reference ‖ model) of the next-token distributions, mean over tokens.

    Source: TOFU, arXiv 2401.06121, sec. 3.
    """
    assert answers.reference_logits is not None
    target = torch.log_softmax(finite(answers.reference_logits), -1)
    predicted = torch.log_softmax(finite(answers.logits), -1)
    divergence = functional.kl_div(predicted, target, reduction="none", log_target=True)
    return answers.token_mean(divergence.sum(-1))


def kl_to_top_k(answers: Sequences, demoted: Tensor | None = None) -> Tensor:
    """KL(model before training ‖ model) of the next tokens, `[tokens]`.

    All tokens but the k most probable ones count as one, so that the result is a lower bound of
    the divergence of the whole distributions.

    Args:
        answers: the answers, with `reference_top_k`.
        demoted: `[tokens]`: where the distribution before training is taken without the answer's
            own token, and sums to 1 without it; None is nowhere.
    """
    assert answers.reference_top_k is not None
    top, before, rest_before, label_before = answers.reference_top_k
    log_probs = torch.log_softmax(finite(answers.logits), -1)
    now = log_probs.gather(1, top)
    labels = answers.labels[:, None]
    is_label = top == labels
    if top.shape[1] < log_probs.shape[1]:
        others = log_probs.scatter(1, top, -torch.inf)
        if demoted is not None:
            is_left_out = torch.zeros_like(others, dtype=torch.bool).scatter(
                1, labels, demoted[:, None]
            )
            others = others.masked_fill(is_left_out, -torch.inf)
            in_rest = demoted & ~is_label.any(1)
            rest_before = torch.where(in_rest, _less(rest_before, label_before), rest_before)
        now = torch.cat([now, others.logsumexp(-1)[:, None]], 1)
        before = torch.cat([before, rest_before[:, None]], 1)
        is_label = functional.pad(is_label, (0, 1))
    if demoted is not None:
        without = before.masked_fill(is_label, -torch.inf)
        renormalised = without - without.logsumexp(-1, keepdim=True)
        before = torch.where(demoted[:, None], renormalised, before)
    divergence = functional.kl_div(now, finite(before), reduction="none", log_target=True)
    return divergence.sum(-1)


def _less(whole: Tensor, part: Tensor) -> Tensor:
    """Returns log(exp(whole) − exp(part)), where `part` is a share of `whole`."""
    share = (part - whole).clamp(max=-1e-6)  # they differ by more, but for rounding
    return whole + torch.log1p(-share.exp())


def kl_to_cached(answers: Sequences) -> Tensor:
    """`kl_to_top_k`, mean over tokens."""
    return answers.token_mean(kl_to_top_k(answers))


def kl_from_uniform(answers: Sequences) -> Tensor:
    """KL(uniform ‖ model) of the next tokens, `[tokens]`.

    The distribution is uniform over the tokens that the model can say; some models mask others
    by −∞.
    """
    logits = answers.logits.float()
    known = logits.isfinite()
    count = known.sum(-1)
    log_probs = torch.log_softmax(logits, -1)
    return -log_probs.where(known, 0).sum(-1) / count - count.log()


def js_to_reference(answers: Sequences) -> Tensor:
    """Jensen-Shannon divergence from the model before training, mean over tokens.

    Between 0 and log 2. Source: JensUn, arXiv 2509.02820.
    """
    assert answers.reference_logits is not None
    before = torch.log_softmax(finite(answers.reference_logits), -1)
    now = torch.log_softmax(finite(answers.logits), -1)
    middle = torch.logaddexp(before, now) - math.log(2)
    divergence = (now.exp() * (now - middle) + before.exp() * (before - middle)) / 2
    return answers.token_mean(divergence.sum(-1))


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
    logits = finite(answers.logits[answers.is_fact])
    odds = _log_odds(logits, labels)
    # the tokens of each answer in ascending order, as its floors are
    order = ascending(odds.detach(), owner)
    floors = answers.floors[answers.is_fact].float().clamp(max=-1e-6)
    floor_odds = floors - torch.log(-torch.expm1(floors))
    return odds[order] - floor_odds


def _log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns log p − log(1 − p) of the labels, `[tokens]`, from logits `[tokens, vocab]`."""
    others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(-1)
    return logits.gather(1, labels[:, None])[:, 0] - others


def finite(logits: Tensor) -> Tensor:
    """Returns logits in float32, with the lowest finite number for −∞.

    Some models mask tokens by −∞, and 0 · ∞ is not a number.
    """
    return logits.float().clamp(min=torch.finfo(torch.float32).min)
