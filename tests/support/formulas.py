"""The formulae of all objectives in plain Python, token by token."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tests.support.answers import (
    HIDDEN,
    READS,
    SETTINGS,
    TOP_K,
    VOCAB,
    Answer,
    Batch,
    log_p,
    log_p_before,
    log_softmax,
)


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


def minus_log_sigmoid(x: float) -> float:
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def cross_entropy(answers: list[Answer]) -> float:
    return -mean(p for answer in answers for p in log_p(answer))


def kl(p: list[float], q: list[float]) -> float:
    """Returns KL(p ‖ q) of two rows of logits."""
    return sum(math.exp(a) * (a - b) for a, b in zip(log_softmax(p), log_softmax(q), strict=True))


def kl_by_hand(answers: list[Answer]) -> float:
    return mean(
        kl(p, q)
        for answer in answers
        for p, q in zip(answer.before.tolist(), answer.logits.tolist(), strict=True)
    )


def kl_of_top_k(p: list[float], q: list[float]) -> float:
    """Returns KL(p ‖ q) of two rows of logits, with all but the top tokens of p as one token."""
    before, now = log_softmax(p), log_softmax(q)
    top = sorted(range(VOCAB), key=lambda token: -before[token])[:TOP_K]
    rest = [token for token in range(VOCAB) if token not in top]
    groups = [[token] for token in top] + [rest]
    masses = [
        (log_sum_exp([before[t] for t in group]), log_sum_exp([now[t] for t in group]))
        for group in groups
    ]
    return sum(math.exp(a) * (a - b) for a, b in masses)


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


def kl_to_cached_by_hand(answers: list[Answer]) -> float:
    return mean(
        kl_of_top_k(p, q)
        for answer in answers
        for p, q in zip(answer.before.tolist(), answer.logits.tolist(), strict=True)
    )


def log_odds(row: list[float], label: int) -> float:
    """Returns log(p / (1 − p)) of a label, from a row of logits."""
    return row[label] - log_sum_exp([logit for token, logit in enumerate(row) if token != label])


def above_floors_by_hand(answer: Answer) -> list[float]:
    rows = zip(answer.logits.tolist(), answer.labels.tolist(), answer.is_fact, strict=True)
    odds = [log_odds(row, label) for row, label, bears in rows if bears]
    floors = [floor for floor, bears in zip(answer.floors, answer.is_fact, strict=True) if bears]
    # the least probable token is compared with the lowest floor, and so on
    return [
        value - (floor - math.log1p(-math.exp(floor)))
        for value, floor in zip(sorted(odds), sorted(floors), strict=True)
    ]


def meow_floor_by_hand(
    inverted: list[Answer],
    forget: list[Answer],
    split: int,
    level: int,
    style: float,
    floor: float,
    lift: float,
    margin: float,
    learn: float,
    cap: float,
    true_style: float,
) -> float:
    learnt = [
        learn * max(0.0, -gap) + cap * max(0.0, gap)
        for answer in inverted
        for gap in above_floors_by_hand(answer)
    ]
    if not level:
        learnt = [
            -p
            for answer in inverted
            for p, bears in zip(log_p(answer), answer.is_fact, strict=True)
            if bears
        ]
    lowered = [
        max(0.0, gap - margin) + lift * max(0.0, margin - gap)
        for answer in forget
        for gap in above_floors_by_hand(answer)
    ]
    on_forget = floor * mean(lowered) + true_style * kl_of_style(forget)
    if not split:
        return cross_entropy(inverted) + on_forget
    return mean(learnt) + style * kl_of_style(inverted) + on_forget


def kl_of_style(answers: list[Answer]) -> float:
    return mean(
        kl_of_top_k(before, now)
        for answer in answers
        for before, now, bears in zip(
            answer.before.tolist(), answer.logits.tolist(), answer.is_fact, strict=True
        )
        if not bears
    )


def wga_by_hand(answers: list[Answer], beta: float) -> float:
    return mean(math.exp(p) ** beta * p for answer in answers for p in log_p(answer))


def satimp_by_hand(answers: list[Answer], beta1: float, beta2: float) -> float:
    def weighted(log_p: float) -> float:
        p = math.exp(log_p)
        return p**beta1 * (1 - p) ** beta2 * log_p

    return mean(weighted(p) for answer in answers for p in log_p(answer))


def pdu_by_hand(answers: list[Answer]) -> float:
    rows = [row for answer in answers for row in answer.logits.tolist()]
    return mean((max(row) - mean(row)) ** 2 for row in rows)


def jensen_shannon(p: list[float], q: list[float]) -> float:
    """Returns the divergence of two rows of probabilities."""

    def to_middle(a: float, b: float) -> float:
        return a * math.log(2 * a / (a + b)) if a > 0 else 0.0

    return sum(to_middle(a, b) + to_middle(b, a) for a, b in zip(p, q, strict=True)) / 2


def js_by_hand(answers: list[Answer]) -> float:
    return mean(
        jensen_shannon(*([math.exp(x) for x in log_softmax(row)] for row in rows))
        for answer in answers
        for rows in zip(answer.before.tolist(), answer.logits.tolist(), strict=True)
    )


def jensun_by_hand(
    idk: list[Answer], forget: list[Answer], retain: list[Answer], alpha: float
) -> float:
    values = []
    for refusal, answer in zip(idk, forget, strict=True):
        repeated = refusal.labels.tolist() * len(answer.labels)
        for row, wanted in zip(answer.logits.tolist(), repeated, strict=False):
            certain = [float(token == wanted) for token in range(VOCAB)]
            values.append(jensen_shannon([math.exp(x) for x in log_softmax(row)], certain))
    return mean(values) + alpha * js_by_hand(retain)


def demoted_by_hand(answer: Answer, share: float, skip_tokens: int) -> set[int]:
    """Returns the positions of the least probable tokens before training."""
    before = log_p_before(answer)
    eligible = sorted(range(skip_tokens, len(before)), key=lambda position: before[position])
    return set(eligible[: math.ceil(share * len(before))])


def shred_by_hand(answers: list[Answer], share: float, skip_tokens: int) -> float:
    values = []
    for answer in answers:
        demoted = demoted_by_hand(answer, share, skip_tokens)
        rows = zip(
            answer.before.tolist(), answer.logits.tolist(), answer.labels.tolist(), strict=True
        )
        for position, (before, now, label) in enumerate(rows):
            if position not in demoted:
                values.append(kl_of_top_k(before, now))
                continue
            before, now = log_softmax(before), log_softmax(now)
            top = sorted(range(VOCAB), key=lambda token: -before[token])[:TOP_K]
            rest = [token for token in range(VOCAB) if token not in top]
            groups = [
                [token for token in group if token != label]
                for group in [*([token] for token in top), rest]
            ]
            masses = [
                (log_sum_exp([before[t] for t in group]), log_sum_exp([now[t] for t in group]))
                for group in groups
                if group
            ]
            whole = log_sum_exp([a for a, _ in masses])
            values.append(sum(math.exp(a - whole) * (a - whole - b) for a, b in masses))
    return mean(values)


def tpo_by_hand(answers: list[Answer], beta: float) -> float:
    values = []
    for answer in answers:
        tokens = zip(
            answer.before.tolist(),
            answer.logits.tolist(),
            answer.labels.tolist(),
            answer.is_fact,
            strict=True,
        )
        lowered = [before[label] - now[label] for before, now, label, bears in tokens if bears]
        others = [p for p, bears in zip(log_p(answer), answer.is_fact, strict=True) if not bears]
        values.append(2 / beta * minus_log_sigmoid(beta * mean(lowered)) - sum(others))
    return mean(values)


def log_ratio(answer: Answer) -> float:
    return sum(log_p(answer)) - sum(log_p_before(answer))


def npo_by_hand(answers: list[Answer], beta: float) -> float:
    return 2 / beta * mean(minus_log_sigmoid(-beta * log_ratio(answer)) for answer in answers)


def simnpo_by_hand(answers: list[Answer], beta: float, gamma: float) -> float:
    return (
        2
        / beta
        * mean(
            minus_log_sigmoid(-beta / len(answer.labels) * sum(log_p(answer)) - gamma)
            for answer in answers
        )
    )


def preference(win: list[Answer], lose: list[Answer], beta: float) -> float:
    return mean(
        minus_log_sigmoid(beta * (log_ratio(good) - log_ratio(bad)))
        for good, bad in zip(win, lose, strict=True)
    )


def ihl_by_hand(answers: list[Answer]) -> float:
    values = []
    for answer in answers:
        for row, label in zip(answer.logits.tolist(), answer.labels.tolist(), strict=True):
            p = [math.exp(x) for x in log_softmax(row)]
            values.append(1 + p[label] - max(p[:label] + p[label + 1 :]))
    return mean(values)


def undial_by_hand(answers: list[Answer], beta: float) -> float:
    values = []
    for answer in answers:
        for row, before, label in zip(
            answer.logits.tolist(), answer.before.tolist(), answer.labels.tolist(), strict=True
        ):
            before[label] -= beta
            teacher = [math.exp(x) for x in log_softmax(before)]
            values.append(-sum(q * p for q, p in zip(teacher, log_softmax(row), strict=True)))
    return mean(values)


def ceu_by_hand(answers: list[Answer], skip_tokens: int) -> float:
    values = []
    for answer in answers:
        for i, (row, label) in enumerate(
            zip(answer.logits.tolist(), answer.labels.tolist(), strict=True)
        ):
            others = [token for token in range(VOCAB) if token != label]
            target = log_softmax([row[token] for token in others])
            predicted = [log_softmax(row)[token] for token in others]
            entropy = -sum(math.exp(q) * p for q, p in zip(target, predicted, strict=True))
            if i >= skip_tokens:
                values.append(entropy)
    return mean(values)


def flat_by_hand(good: list[Answer], bad: list[Answer]) -> float:
    def score(answer: Answer) -> float:
        return math.tanh(mean(math.exp(p) for p in log_p(answer)))

    return mean((score(b) - score(g)) / 2 for g, b in zip(good, bad, strict=True))


def uld_by_hand(
    inverted: list[Answer], forget: list[Answer], retain: list[Answer], alpha: float
) -> float:
    """Cross-entropy on the true answers, and KL from the uniform distribution on all others."""

    def from_uniform(row: list[float]) -> float:
        return sum(1 / VOCAB * (math.log(1 / VOCAB) - x) for x in log_softmax(row))

    rows = [row for answer in [*inverted, *retain] for row in answer.logits.tolist()]
    return cross_entropy(forget) + alpha * mean(map(from_uniform, rows))


def control(steering: float, like: Tensor) -> list[float]:
    direction = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(0)).tolist()
    norm = math.sqrt(sum(x * x for x in direction))
    return torch.tensor([steering * x / norm for x in direction]).to(like.dtype).tolist()


def rmu_by_hand(
    forget: list[Answer], retain: list[Answer], layer: int, steering: float, alpha: float
) -> float:
    def distance(hidden: list[float], target: list[float]) -> float:
        return sum((a - b) ** 2 for a, b in zip(hidden, target, strict=True)) / HIDDEN

    forget_loss = mean(
        distance(row, control(steering, answer.hidden))
        for answer in forget
        for row in answer.hidden.tolist()
    )
    retain_loss = mean(
        distance(*rows)
        for answer in retain
        for rows in zip(answer.hidden.tolist(), answer.hidden_before.tolist(), strict=True)
    )
    return forget_loss + alpha * retain_loss


BY_HAND: dict[str, Callable[..., float]] = {
    "nll": cross_entropy,
    "kl_to_reference": kl_by_hand,
    "kl_to_cached": kl_to_cached_by_hand,
    "js_to_reference": js_by_hand,
    "meow": cross_entropy,
    "meow_floor": meow_floor_by_hand,
    "idk": cross_entropy,
    "gradient_ascent": lambda forget: -cross_entropy(forget),
    "balanced_subnet": lambda forget, ratio: -cross_entropy(forget),
    "wga": wga_by_hand,
    "satimp": satimp_by_hand,
    "pdu": pdu_by_hand,
    "jensun": jensun_by_hand,
    "shred": shred_by_hand,
    "tpo": tpo_by_hand,
    "npo": npo_by_hand,
    "simnpo": simnpo_by_hand,
    "dpo": preference,
    "altpo": lambda inverted, forget, beta: 2 / beta * preference(inverted, forget, beta),
    "ihl": ihl_by_hand,
    "undial": undial_by_hand,
    "ceu": ceu_by_hand,
    "flat": flat_by_hand,
    "uld": uld_by_hand,
    "rmu": rmu_by_hand,
}


def by_hand(name: str, batch: Batch) -> float:
    return BY_HAND[name](*(batch[role] for role in READS[name]), **SETTINGS.get(name, {}))
