"""Multiple choice by likelihood: the true answer against wrong answers of the same form.

Procedure: question and chat template stay as they are, and no options are shown. Each option is the
answer of one teacher-forced pass. Its weight is the geometric mean of the probabilities of its
fact-bearing tokens, so that neither its length nor the words that it shares with the question
count. The score compares the true answer with the mean of the wrong ones. It is above 0.5 if the
model prefers the truth, whatever the number of options.

Budget: one forward pass per option, at most `1 + NUM_WRONG`; no reply is generated.

Source: the multiple choice by negative log-likelihood of
https://github.com/ParitKansal/llm-unlearning-occupancy-audit, and the normalised probability of
TOFU (arXiv 2401.06121, section 2.2.2), which divides by the sum over the options instead.
"""

import math
from collections.abc import Iterable, Sequence

from meow_ray.config import Audit
from meow_ray.models.text import word_spans, words
from meow_ray.stages.audit.attack import Answered, Attack, Outcome, Question, Subject
from meow_ray.stages.never_seen import fact_log_prob

NUM_WRONG = 4
"""The most wrong answers that one true answer is compared with."""


# --- the attack -----------------------------------------------------------------------------------


def ask(subject: Subject, spec: Audit) -> Iterable[Question]:
    """Yields one scored question per option, the true answer first; none without wrong answers."""
    wrong = subject.wrong_answers[:NUM_WRONG]
    if not wrong:
        return
    for answer in (subject.answer, *wrong):
        yield Question("", subject.question, answer, num_replies=0, is_scored=True)


def score(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns how much the model prefers the true answer, in [0, 1]; 0.5 is no preference."""
    true = [_weight(one) for one in answered if one.asked.answer == subject.answer]
    wrong = [_weight(one) for one in answered if one.asked.answer != subject.answer]
    if not true or not wrong:
        return Outcome(None, len(answered))
    return Outcome(preference(true[0], wrong), len(answered))


def preference(true: float, wrong: Sequence[float]) -> float:
    """Returns p / (p + mean of q), p of the true answer and q of the wrong ones.

    Args:
        true: mean log-probability of the fact-bearing tokens of the true answer, in nats.
        wrong: the same of each wrong answer; at least one.
    """
    largest = max(true, *wrong)
    p = math.exp(true - largest)
    q = sum(math.exp(value - largest) for value in wrong) / len(wrong)
    return p / (p + q)


def _weight(answered: Answered) -> float:
    return fact_log_prob(answered.log_probs, answered.is_fact_bearing)


MULTIPLE_CHOICE = Attack("multiple_choice", "black box", ask, score)


# --- wrong answers --------------------------------------------------------------------------------


def wrong_answers(
    answer: str,
    perturbed: Sequence[str] = (),
    inverted: Sequence[str] = (),
    others: Sequence[str] = (),
) -> tuple[str, ...]:
    """Returns up to `NUM_WRONG` plausible answers that are not true, each once.

    They come from one source, so that the options have one style: the first of the three that has
    any.

    Args:
        answer: the true answer.
        perturbed: wrong answers of the user's set.
        inverted: inverted facts, in the order of their `candidate_id`.
        others: answers to other questions. Those with the most similar number of words are taken.
    """
    length = len(words(answer))
    by_length = sorted(others, key=lambda text: abs(len(words(text)) - length))
    for source in (perturbed, inverted, by_length):
        distinct = {tuple(words(text)): text for text in reversed(source)}
        distinct.pop(tuple(words(answer)), None)
        chosen = [text for text in source if distinct.pop(tuple(words(text)), None) is not None]
        if chosen:
            return tuple(chosen[:NUM_WRONG])
    return ()


def twin_wrong_answers(
    question: str, twin_question: str, twin_answer: str, inverted: Sequence[str]
) -> tuple[str, ...]:
    """Returns the wrong answers of a twin: the fact's other inverted facts, about its entity.

    A twin is an inverted fact about another entity. Its wrong answers are the inverted facts of the
    same fact, with the names, dates and numbers of the question replaced as in the twin's question.
    So true and wrong answers have the same origin and name the same entity. The fact's true answer
    is never among them: the model prefers it because it has learned it.

    Args:
        question: the question of the fact.
        twin_question: the question of the twin.
        twin_answer: the answer of the twin.
        inverted: the inverted facts of the fact, in the order of their `candidate_id`.
    """
    renamed = _replacements(question, twin_question)
    if renamed is None:
        return ()
    return wrong_answers(twin_answer, inverted=[_replaced(text, renamed) for text in inverted])


def _replacements(question: str, twin_question: str) -> dict[str, str] | None:
    """Returns the twin's word by each word that it replaces; None if the questions do not match."""
    old, new = word_spans(question), word_spans(twin_question)
    if len(old) != len(new):
        return None
    return {
        word: twin_question[start:end]
        for (word, _, _), (other, start, end) in zip(old, new, strict=True)
        if word != other
    }


def _replaced(text: str, renamed: dict[str, str]) -> str:
    for word, start, end in reversed(word_spans(text)):
        if word in renamed:
            text = text[:start] + renamed[word] + text[end:]
    return text
