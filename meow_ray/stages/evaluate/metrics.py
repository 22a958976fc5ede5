"""What forgetting and utility are measured by; each value is of one example unless said otherwise."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meow_ray.models.text import novel_words, rouge, share_of, words

BATCH = 10**6
"""Values that a bootstrap draws at once."""


class Interval(NamedTuple):
    """A figure with its 95 % bootstrap interval; None where it has none."""

    value: float
    low: float | None
    high: float | None


def loss(log_probs: Sequence[float]) -> float:
    """Returns the mean of an answer's negative log-probabilities, in nats a token."""
    return -sum(log_probs) / len(log_probs)


def probability(log_probs: Sequence[float]) -> float:
    """Returns an answer's token probability: the exponential of its tokens' mean log-probability.

    It is P(answer | question)^(1 / tokens) as TOFU defines it (arXiv 2401.06121, section 2.2.2).
    """
    return math.exp(-loss(log_probs))


def rougeL_recall(answers: Sequence[str], generated: Sequence[str]) -> list[float]:
    """Returns for each true answer how much of it a greedy answer says in the same order (TOFU)."""
    return [found["rougeL"].recall for found in rouge(answers, generated)]


def leak(question: str, answer: str, generated: str) -> float | None:
    """Returns the share of the true answer's novel words that a generated answer says; None if it has none."""
    return share_of(novel_words(answer, question), generated)


def states(question: str, answer: str, inverted: Sequence[str], generated: str) -> float:
    """Returns 1 if a generated answer states one of the inverted facts, else 0.

    It does if it says at least half of the words that are new in an inverted answer, against question and truth,
    and more of them than of the true answer's own novel words.
    """
    truth = leak(question, answer, generated) or 0.0
    shares = (
        share_of(novel_words(text, f"{question} {answer}"), generated) or 0.0 for text in inverted
    )
    best = max(shares, default=0.0)
    return float(best >= 0.5 and best > truth)


def rep3(generated: str) -> float:
    """Returns Rep-3, the share of word trigrams that repeat an earlier one: 0 is fluent, gibberish loops.

    Definition: Welleck et al., arXiv 1908.04319.
    """
    tokens = words(generated)
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def bleu(reference: str, generated: str) -> float:
    """Returns the sentence BLEU of a continuation, smoothed as sacrebleu does by default, 0 … 1."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(generated, [reference]).score) / 100


def compare(rows: Sequence[Mapping[str, Any]], text_suite: str) -> list[dict[str, float | None]]:
    """Returns what a reply and the true answer of each row say without a model.

    A row has `suite`, `question`, `start`, `answer`, `generated`. What the attacks begin the reply with counts as given
    away, like the question. BLEU is for the suite of passages alone, Rep-3 for what is no attack.
    """
    recalls = rougeL_recall([row["answer"] for row in rows], [row["generated"] for row in rows])
    out: list[dict[str, float | None]] = []
    for row, recall in zip(rows, recalls, strict=True):
        found: dict[str, float | None] = {"rougeL_recall": recall}
        if row["suite"] == text_suite:
            found["bleu"] = bleu(row["answer"], row["generated"])
        else:
            found["leak"] = leak(
                f"{row['question']} {row['start']}", row["answer"], row["generated"]
            )
        if row["scored"]:
            found["rep3"] = rep3(row["generated"])
        out.append(found)
    return out


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """Returns the mean over examples with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: a value is not a number.
    """
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():
        raise ValueError("a metric is not a number")
    mean = float(data.mean())
    if len(data) > 1 and np.ptp(data) == 0:
        return Interval(mean, mean, mean)
    return bootstrapped(mean, (data,), np.mean, resamples, seed)


def bootstrapped(
    value: float, samples: Sequence[Any], statistic: Callable[..., Any], resamples: int, seed: int
) -> Interval:
    """Returns a statistic of samples with its 95 % percentile bootstrap interval; none where one has a single example.

    Args:
        value: the statistic of the samples.
        samples: arrays, each drawn anew by itself.
        statistic: of as many arrays.
        resamples: how often they are drawn.
        seed: of the draws.
    """
    if min(map(len, samples)) < 2:
        return Interval(value, None, None)
    from scipy.stats import bootstrap

    found = bootstrap(
        tuple(samples),
        statistic,
        n_resamples=resamples,
        batch=max(1, BATCH // sum(map(len, samples))),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(found.low), float(found.high))
