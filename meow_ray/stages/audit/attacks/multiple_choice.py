"""Multiple choice by likelihood: the true answer against wrong answers of the same form.

Procedure: question and chat template stay as they are, and no options are shown. Each option is the
answer of one teacher-forced pass. Its weight is the geometric mean of the probabilities of its
fact-bearing tokens, so that neither its length nor the words that it shares with the question
count. The score compares the true answer with the mean of the wrong ones. It is above 0.5 if the
model prefers the truth, whatever the number of options.

A twin is compared in the same way, with wrong answers that name its own entity; see `subjects`.

Budget: one forward pass per option, at most `1 + NUM_WRONG`; no reply is generated.

Source: the multiple choice by negative log-likelihood of
https://github.com/ParitKansal/llm-unlearning-occupancy-audit, and the normalised probability of
TOFU (arXiv 2401.06121, section 2.2.2), which divides by the sum over the options instead.
"""

import math
from collections.abc import Iterable, Sequence

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Answered, Attack, Outcome, Question, Subject
from meow_ray.stages.never_seen import fact_log_prob

NUM_WRONG = 4
"""The most wrong answers that one true answer is compared with."""


def ask(subject: Subject, spec: Audit) -> Iterable[Question]:
    """Yields one scored question per option, the true answer first; none without wrong answers."""
    wrong = subject.wrong_answers[:NUM_WRONG]
    if not wrong:
        return
    for answer in (subject.answer, *wrong):
        yield Question("", subject.question, answer, num_replies=0, is_scored=True)


def score(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns how much the model prefers the true answer, in [0, 1]; 0.5 is no preference.

    Options that are too long for the model are not compared.
    """
    true = [_weight(one) for one in answered if one.asked.answer == subject.answer]
    wrong = [_weight(one) for one in answered if one.asked.answer != subject.answer]
    if not true or not wrong:
        return Outcome(None, len(answered), reason="too_long")
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


MULTIPLE_CHOICE = Attack("multiple_choice", "black box", ask, score, "no_wrong_answers")
