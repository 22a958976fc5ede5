"""What forgetting and utility are measured by; each value is of one example unless said otherwise."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from meow_ray.schema import EXAMPLES, SCHEMAS
from meow_ray.text import novel_words, rouge, share_of, words

MEASURES = ("memo", "rougeL_recall", "probability", "leak", "rep3", "states_inverted")
"""The metrics of the `metrics` table, in the order that people read them."""


class Interval(NamedTuple):
    """A mean with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def probability(log_probs: Sequence[float]) -> float:
    """Returns an answer's token probability: the exponential of its tokens' mean log-probability.

    It is P(answer | question)^(1 / tokens) as TOFU defines it (arXiv 2401.06121, section 2.2.2).
    """
    return math.exp(sum(log_probs) / len(log_probs))


def rougeL_recall(answer: str, generated: str) -> float:
    """Returns how much of the true answer's longest common subsequence a greedy answer says (TOFU)."""
    return rouge([answer], [generated])[0]["rougeL"].recall


def leak(question: str, answer: str, generated: str) -> float | None:
    """Returns the share of the true answer's novel words that a generated answer says; None if it has none."""
    return share_of(novel_words(answer, question), generated)


def states(question: str, answer: str, inverted: Sequence[str], generated: str) -> float:
    """Returns 1 if a generated answer states one of the inverted facts, else 0.

    It does if it says at least half of the words that are new in an inverted answer, against question and truth,
    and more of them than of the true answer's own novel words.
    """
    truth = leak(question, answer, generated) or 0.0
    shares = (share_of(novel_words(text, f"{question} {answer}"), generated) or 0.0 for text in inverted)
    best = max(shares, default=0.0)
    return float(best >= 0.5 and best > truth)


def rep3(generated: str) -> float:
    """Returns Rep-3, the share of word trigrams that repeat an earlier one: 0 is fluent, gibberish loops.

    Definition: Welleck et al., arXiv 1908.04319.
    """
    tokens = words(generated)
    triples = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def mean_interval(values: Sequence[float], resamples: int, seed: int) -> Interval:
    """Returns the mean over examples with its 95 % percentile bootstrap interval.

    Raises:
        ValueError: a value is not a number.
    """
    data = np.asarray(values, dtype=float)
    if not np.isfinite(data).all():
        raise ValueError("a metric is not a number")
    mean = float(data.mean())
    if len(data) < 2 or np.ptp(data) == 0:
        return Interval(mean, mean, mean)
    from scipy.stats import bootstrap

    found = bootstrap((data,), np.mean, n_resamples=resamples, method="percentile", rng=np.random.default_rng(seed))
    return Interval(mean, float(found.confidence_interval.low), float(found.confidence_interval.high))


def score_examples(answered: pa.Table, selected: pa.Table) -> pa.Table:
    """Adds the metrics that need no model to examples with `question`, `answer` and `generated`.

    `states_inverted` is scored for the forget facts that have a row in `selected`.
    """
    inverted: dict[str, list[str]] = {}
    for fact, text in zip(selected["fact_id"].to_pylist(), selected["answer"].to_pylist(), strict=True):
        inverted.setdefault(fact, []).append(text)
    rows = answered.to_pylist()
    for row in rows:
        question, answer, said = row["question"], row["answer"], row["generated"]
        texts = inverted.get(row["fact_id"], []) if row["suite"] == "forget" else []
        row["rougeL_recall"] = rougeL_recall(answer, said)
        row["leak"] = leak(question, answer, said)
        row["rep3"] = rep3(said)
        row["states_inverted"] = states(question, answer, texts, said) if texts else None
    return pa.Table.from_pylist(rows, schema=EXAMPLES)


def aggregate(examples: pa.Table, resamples: int, seed: int) -> pa.Table:
    """Returns the `metrics` table: one row a suite, metric and model, over the examples that have a value."""
    out = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in examples.to_pylist():
        groups.setdefault((row["suite"], row["model"]), []).append(row)
    for (suite, model), rows in groups.items():
        for metric in MEASURES:
            values = [row[metric] for row in rows if row[metric] is not None]
            if values:
                interval = mean_interval(values, resamples, seed)
                base = {"suite": suite, "metric": metric, "model": model, "num_examples": len(values)}
                out.append(base | interval._asdict())
    return pa.Table.from_pylist(out, schema=SCHEMAS["metrics"])
