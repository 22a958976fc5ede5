"""MEMO: how well a model has memorised an answer (MEOW, arXiv 2409.11844, section 3.2), and its comparators.

An answer is cut at growing positions; the model continues each beginning greedily, and ROUGE compares what
it says with what was cut off. A memorised answer is completed from any cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from meow_ray.config import Memo
from meow_ray.models.text import ROUGE_TYPES, Rouge, rouge

Tokens = Sequence[int]


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
    """Cuts a pair every `spec.step` characters.

    Mode `suffix` prompts with the question and the answer up to k = 1, 1 + step, … < len(answer); mode `prefix`
    with the question alone up to k < len(question), the answer belongs to the label. `rendered` is the question
    through a chat template; it replaces the question and the blank behind it.
    """
    if spec.mode == "prefix":
        return [
            Window(question[:k], f"{question[k:]} {answer}")
            for k in range(1, len(question), spec.step)
        ]
    head = f"{question} " if rendered is None else rendered
    return [Window(head + answer[:k], answer[k:]) for k in range(1, len(answer), spec.step)]


def score_answer(labels: Sequence[str], continuations: Sequence[str], spec: Memo) -> Score:
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


# --- token windows ------------------------------------------------------------------------------
#
# Greedy decoding from a cut follows the answer as long as the answer's next token is the greedy one. One teacher-forced
# pass tells for every position whether it is. So the continuation from cut k is the answer up to the first mismatch at
# or behind k, and then what the model says from there, which is the same for all cuts that meet this mismatch.


def token_cuts(length: int, spec: Memo, first: int = 1) -> range:
    """Returns the positions in tokens at which a sequence is cut: first, first + step, … < length."""
    return range(first, length, spec.step)


def branches(
    is_greedy: Sequence[bool], ends: bool, cuts: Sequence[int], limits: Sequence[int]
) -> dict[int, int]:
    """Returns where the model must speak for itself: position → number of tokens that some window needs from there.

    Args:
        is_greedy: `[seq]`, whether a token is the one that greedy decoding gives behind those before it.
        ends: whether greedy decoding ends behind the whole sequence.
        cuts: positions of the windows.
        limits: the most new tokens of each window.
    """
    need: dict[int, int] = {}
    for (cut, at), limit in zip(_mismatches(is_greedy, cuts), limits, strict=True):
        if at == len(is_greedy) and ends:
            continue
        tokens = limit - (at - cut)
        if tokens > 0:
            need[at] = max(tokens, need.get(at, 0))
    return need


def assemble(
    sequence: Tokens,
    is_greedy: Sequence[bool],
    cuts: Sequence[int],
    limits: Sequence[int],
    said: Mapping[int, Tokens],
) -> list[list[int]]:
    """Returns the greedy continuation of each window, from what the model said at the branches."""
    return [
        [*sequence[cut:at], *said.get(at, ())][:limit]
        for (cut, at), limit in zip(_mismatches(is_greedy, cuts), limits, strict=True)
    ]


def _mismatches(is_greedy: Sequence[bool], cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (cut, first position at or behind it whose token is not the greedy one, or the length)."""
    following = [len(is_greedy)] * (len(is_greedy) + 1)
    for i in range(len(is_greedy) - 1, -1, -1):
        following[i] = following[i + 1] if is_greedy[i] else i
    return [(cut, following[cut]) for cut in cuts]


# --- what the paper compares MEMO with ----------------------------------------------------------


def memorization_accuracy(is_greedy: Sequence[bool]) -> float | None:
    """Returns MA: the share of an answer's tokens that greedy decoding gives behind the true ones before them.

    Definition: Tirumala et al., arXiv 2205.10770, section 3, over the answer's tokens. open-unlearning calls the
    same figure exact memorisation (EM).
    """
    return sum(is_greedy) / len(is_greedy) if is_greedy else None


def extraction_strength(is_greedy: Sequence[bool]) -> float | None:
    """Returns ES: the share of an answer that is a suffix which its beginning suffices to extract; 0 if none is.

    It is 1 - k / length for the least k so that all tokens from k on are greedy. Definition: Carlini et al., arXiv
    2012.07805, as open-unlearning measures it, but 0 and not 1 / length where even the last token is not greedy.
    """
    if not is_greedy:
        return None
    suffix = next((i for i, same in enumerate(reversed(is_greedy)) if not same), len(is_greedy))
    return suffix / len(is_greedy)


def extraction_likelihood(labels: Sequence[Tokens], said: Sequence[Tokens], n: int) -> float | None:
    """Returns EL_n: the mean share of a continuation's n-grams of tokens that stand in what was cut off.

    A continuation counts up to the length of its label; windows whose label has fewer than n tokens do not count.
    None if there is no other. Definition: Jang et al., arXiv 2210.01504, equation 4, over the windows of MEMO.
    """
    values = []
    for label, tokens in zip(labels, said, strict=True):
        true = _ngrams(label, n)
        if true:
            found = _ngrams(tokens[: len(label)], n)
            known = set(true)
            values.append(sum(gram in known for gram in found) / len(found) if found else 0.0)
    return fmean(values) if values else None


def _ngrams(tokens: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


# --- figures over facts -------------------------------------------------------------------------
