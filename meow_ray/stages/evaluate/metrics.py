"""Measures of forgetting and utility for single examples, and bootstrap intervals over examples."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from meow_ray.models.text import novel_words, rouge, share_of, spaced, words

BOOTSTRAP_BATCH = 10**6
"""Number of values that the bootstrap draws at once, which bounds its memory."""


class Interval(NamedTuple):
    """A value with its 95 % bootstrap interval; the bounds are None if there is no interval."""

    value: float
    low: float | None
    high: float | None


# --- one example ----------------------------------------------------------------------------------


def loss(log_probs: Sequence[float]) -> float:
    """Returns the mean negative log-probability of an answer's tokens, in nats per token."""
    return -sum(log_probs) / len(log_probs)


def probability(log_probs: Sequence[float]) -> float:
    """Returns an answer's token probability: the exponential of the mean log-probability.

    It is P(answer | question)^(1 / tokens) as TOFU defines it (arXiv 2401.06121, section 2.2.2).
    """
    return math.exp(-loss(log_probs))


def rougeL_recall(answers: Sequence[str], generated: Sequence[str]) -> list[float]:
    """Returns the ROUGE-L recall of each reply: the share of the true answer in it, in order.

    Source: TOFU (arXiv 2401.06121).
    """
    return [scores["rougeL"].recall for scores in rouge(answers, generated)]


def leak(question: str, answer: str, generated: str) -> float | None:
    """Returns the share of the true answer's novel words in the reply; None if it has none."""
    return share_of(novel_words(answer, question), generated)


def states(question: str, answer: str, inverted: Sequence[str], generated: str) -> float:
    """Returns 1 if a reply states one of the inverted facts, else 0.

    A reply states an inverted fact if it contains at least half of the words that are new in the
    inverted answer (new compared with the question and the true answer), and if that share is
    larger than its share of the true answer's novel words.
    """
    true_share = leak(question, answer, generated) or 0.0
    known = f"{question} {answer}"
    shares = [share_of(novel_words(text, known), generated) or 0.0 for text in inverted]
    best = max(shares, default=0.0)
    return float(best >= 0.5 and best > true_share)


def rep3(generated: str) -> float:
    """Returns Rep-3, the share of word trigrams that repeat an earlier one.

    0 is fluent; text that runs in a loop comes close to 1. Definition: Welleck et al.,
    arXiv 1908.04319.
    """
    tokens = words(generated)
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def bleu(passage: str, generated: str) -> float:
    """Returns the sentence BLEU of a continuation in [0, 1], with sacrebleu's default smoothing.

    In scripts without spaces between words, each letter counts as a word.

    Args:
        passage: the true continuation.
        generated: the model's continuation.
    """
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(spaced(generated), [spaced(passage)]).score) / 100


def score_replies(
    rows: Sequence[Mapping[str, Any]], text_suite: str
) -> list[dict[str, float | None]]:
    """Returns the scores of each reply that need no model, by the column of `examples`.

    `leak` treats the beginning of the reply that an attack sets (`start`) as known, like the
    question. The suite of passages has BLEU instead of a leak, and attacks have no Rep-3.

    Args:
        rows: each has `suite`, `question`, `start`, `answer`, `scored` and `generated`.
        text_suite: name of the suite of passages.
    """
    recalls = rougeL_recall([row["answer"] for row in rows], [row["generated"] for row in rows])
    scores: list[dict[str, float | None]] = []
    for row, recall in zip(rows, recalls, strict=True):
        values: dict[str, float | None] = {"rougeL_recall": recall}
        if row["suite"] == text_suite:
            values["bleu"] = bleu(row["answer"], row["generated"])
        else:
            known = f"{row['question']} {row['start']}"
            values["leak"] = leak(known, row["answer"], row["generated"])
        if row["scored"]:
            values["rep3"] = rep3(row["generated"])
        scores.append(values)
    return scores


# --- intervals ------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """Returns the mean over examples with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():
        raise ValueError("a value is NaN or infinite")
    mean = float(data.mean())
    if len(data) > 1 and np.ptp(data) == 0:
        return Interval(mean, mean, mean)
    return bootstrapped(mean, (data,), np.mean, resamples, seed)


def bootstrapped(
    value: float, samples: Sequence[Any], statistic: Callable[..., Any], resamples: int, seed: int
) -> Interval:
    """Returns a statistic of samples with its 95 % percentile bootstrap interval.

    There is no interval if a sample has only one example.

    Args:
        value: the statistic of the samples.
        samples: arrays `[examples]`; the bootstrap resamples each on its own.
        statistic: a function of as many arrays.
        resamples: number of resamples.
        seed: seed of the resamples.
    """
    if min(map(len, samples)) < 2:
        return Interval(value, None, None)
    from scipy.stats import bootstrap

    interval = bootstrap(
        tuple(samples),
        statistic,
        n_resamples=resamples,
        batch=max(1, BOOTSTRAP_BATCH // sum(map(len, samples))),
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(value, float(interval.low), float(interval.high))
