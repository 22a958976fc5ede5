"""MEMO, a score of how well a model has memorised an answer, and the scores it is compared with.

An answer is cut at several positions. The model reads everything before the cut and continues
greedily. ROUGE compares the continuation with the rest of the answer, and MEMO is the mean over all
cuts (MEOW, arXiv 2409.11844, section 3.2). A memorised answer is completed from any cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from meow_ray.config import Memo
from meow_ray.models.text import ROUGE_TYPES, Rouge, rouge

Tokens = Sequence[int]


@dataclass(frozen=True)
class Window:
    """One cut of a question–answer pair: the model reads `prompt`, `label` is the rest."""

    prompt: str
    label: str


@dataclass(frozen=True)
class Score:
    """The memorisation of one answer; all scores are None if the text is too short for a window."""

    memo: float | None
    rouge1: float | None
    rouge2: float | None
    rougeL: float | None
    cv: float | None
    """Standard deviation of the configured score over its mean; None if the mean is 0."""
    num_windows: int


def windows(question: str, answer: str, spec: Memo, rendered: str | None = None) -> list[Window]:
    """Cuts a question–answer pair every `spec.step` characters.

    Mode `suffix` cuts the answer at k = 1, 1 + step, … < len(answer). The prompt is the question
    and the first k characters of the answer. Mode `prefix` cuts the question at k < len(question);
    the label is the rest of the question and the answer.

    Args:
        question: the question.
        answer: the answer.
        spec: mode and step.
        rendered: the question through a chat template. In mode `suffix`, it replaces the question
            and the space after it.
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
        return Score(memo=None, rouge1=None, rouge2=None, rougeL=None, cv=None, num_windows=0)
    results = rouge(labels, continuations)
    values = {name: [_statistic(result[name], spec) for result in results] for name in ROUGE_TYPES}
    configured = values[spec.rouge]
    mean = fmean(configured)
    return Score(
        memo=mean,
        rouge1=fmean(values["rouge1"]),
        rouge2=fmean(values["rouge2"]),
        rougeL=fmean(values["rougeL"]),
        cv=pstdev(configured) / mean if mean else None,
        num_windows=len(labels),
    )


def _statistic(value: Rouge, spec: Memo) -> float:
    return float(getattr(value, spec.statistic))


# --- token windows ------------------------------------------------------------------------------
#
# From a cut, greedy decoding follows the answer as long as the answer's next token is the greedy
# one. One teacher-forced pass tells this for all positions. So the continuation from cut k is the
# answer up to the first mismatch at or after k, followed by what the model generates from there.
# All cuts that reach this mismatch share the generated part. The mismatch is called a branch.


def token_cuts(length: int, spec: Memo, first: int = 1) -> range:
    """Returns the positions at which tokens are cut: first, first + step, … < length."""
    return range(first, length, spec.step)


def branches(
    is_greedy: Sequence[bool], ends: bool, cuts: Sequence[int], limits: Sequence[int]
) -> dict[int, int]:
    """Returns the positions from which the model must generate.

    Args:
        is_greedy: `[seq]`, whether a token is the greedy one after the tokens before it.
        ends: whether greedy decoding ends after the whole sequence.
        cuts: `[window]`, positions of the windows.
        limits: `[window]`, the largest number of new tokens of each window.

    Returns:
        The number of tokens to generate from each position, the most that any window needs.
    """
    needed: dict[int, int] = {}
    for (cut, mismatch), limit in zip(mismatches(is_greedy, cuts), limits, strict=True):
        if mismatch == len(is_greedy) and ends:
            continue
        tokens = limit - (mismatch - cut)
        if tokens > 0:
            needed[mismatch] = max(tokens, needed.get(mismatch, 0))
    return needed


def assemble(
    sequence: Tokens,
    is_greedy: Sequence[bool],
    cuts: Sequence[int],
    limits: Sequence[int],
    generated: Mapping[int, Tokens],
) -> list[list[int]]:
    """Returns the greedy continuation of each window: `[window, seq]`.

    Args:
        sequence: `[seq]`, the tokens that are cut.
        is_greedy: `[seq]`, whether a token is the greedy one after the tokens before it.
        cuts: `[window]`, positions of the windows.
        limits: `[window]`, the largest number of new tokens of each window.
        generated: the tokens that the model generated from each branch.
    """
    return [
        [*sequence[cut:mismatch], *generated.get(mismatch, ())][:limit]
        for (cut, mismatch), limit in zip(mismatches(is_greedy, cuts), limits, strict=True)
    ]


def mismatches(is_greedy: Sequence[bool], cuts: Sequence[int]) -> list[tuple[int, int]]:
    """Returns each cut with the first position at or after it whose token is not the greedy one.

    The position is the length of the sequence if all tokens from the cut on are greedy.
    """
    first_mismatch = [len(is_greedy)] * (len(is_greedy) + 1)
    for i in range(len(is_greedy) - 1, -1, -1):
        first_mismatch[i] = first_mismatch[i + 1] if is_greedy[i] else i
    return [(cut, first_mismatch[cut]) for cut in cuts]


# --- what the paper compares MEMO with ----------------------------------------------------------


def memorization_accuracy(is_greedy: Sequence[bool]) -> float | None:
    """Returns MA: the share of an answer's tokens that are greedy, given the true tokens before.

    Definition: Tirumala et al., arXiv 2205.10770, section 3, over the answer's tokens.
    open-unlearning calls the same figure exact memorisation (EM).
    """
    return sum(is_greedy) / len(is_greedy) if is_greedy else None


def extraction_strength(is_greedy: Sequence[bool]) -> float | None:
    """Returns ES: the share of an answer that its longest suffix of greedy tokens takes.

    It is 1 - k / length for the least k so that all tokens from k on are greedy. Definition:
    Carlini et al., arXiv 2012.07805, as open-unlearning measures it. The result is 0 if not even
    the last token is greedy, where open-unlearning reports 1 / length.
    """
    if not is_greedy:
        return None
    suffix = next((i for i, same in enumerate(reversed(is_greedy)) if not same), len(is_greedy))
    return suffix / len(is_greedy)


def extraction_likelihood(
    labels: Sequence[Tokens], continuations: Sequence[Tokens], n: int
) -> float | None:
    """Returns EL_n: the mean share of a continuation's n-grams of tokens that occur in its label.

    A continuation counts up to the length of its label. A window whose label has fewer than n
    tokens does not count; the result is None if no window counts. Definition: Jang et al., arXiv
    2210.01504, equation 4, over the windows of MEMO.
    """
    shares = []
    for label, tokens in zip(labels, continuations, strict=True):
        known = set(_ngrams(label, n))
        if known:
            grams = _ngrams(tokens[: len(label)], n)
            shares.append(sum(gram in known for gram in grams) / len(grams) if grams else 0.0)
    return fmean(shares) if shares else None


def _ngrams(tokens: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
