"""MEMO: how well a model has memorised an answer (MEOW, arXiv 2409.11844, section 3.2).

An answer is cut at growing positions; the model continues each beginning greedily, and ROUGE compares what
it says with what was cut off. A memorised answer is completed from any cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from meow_ray.config import Memo
from meow_ray.text import ROUGE_TYPES, Rouge, rouge


@dataclass(frozen=True)
class Window:
    """One cut of a question–answer pair: the model sees `prompt` and should say `label`."""

    prompt: str
    label: str


@dataclass(frozen=True)
class Score:
    """The memorisation of one answer; all None where the text is too short for a window."""

    memo: float | None
    rouge1: float | None
    rouge2: float | None
    rougeL: float | None
    cv: float | None
    """Standard deviation of the configured score over its mean; None where the mean is 0."""
    num_windows: int


def windows(question: str, answer: str, spec: Memo, rendered: str | None = None) -> list[Window]:
    """Cuts a pair every `spec.stride` characters.

    Mode `suffix` prompts with the question and the answer up to k = 1, 1 + stride, … < len(answer); mode `prefix`
    with the question alone up to k < len(question), the answer belongs to the label. `rendered` is the question
    through a chat template; it replaces the question and the blank behind it.
    """
    if spec.mode == "prefix":
        return [Window(question[:k], f"{question[k:]} {answer}") for k in range(1, len(question), spec.stride)]
    head = f"{question} " if rendered is None else rendered
    return [Window(head + answer[:k], answer[k:]) for k in range(1, len(answer), spec.stride)]


def score(labels: Sequence[str], continuations: Sequence[str], spec: Memo) -> Score:
    """Scores one answer from the continuations of its windows, aligned with their labels."""
    if not labels:
        return Score(None, None, None, None, None, 0)
    results = rouge(labels, continuations)
    values = {name: [_statistic(result[name], spec) for result in results] for name in ROUGE_TYPES}
    chosen = values[spec.rouge]
    mean = fmean(chosen)
    return Score(
        memo=mean,
        rouge1=fmean(values["rouge1"]),
        rouge2=fmean(values["rouge2"]),
        rougeL=fmean(values["rougeL"]),
        cv=pstdev(chosen) / mean if mean else None,
        num_windows=len(labels),
    )


def _statistic(value: Rouge, spec: Memo) -> float:
    return float(getattr(value, spec.statistic))
