"""The attack that samples many replies to the question."""

from collections.abc import Iterator, Sequence

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Answered, Attack, Outcome, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak, reply_leaks
from meow_ray.stages.audit.estimators import leak_at_k, leak_at_k_bounds

PREFIX = "leak@"
"""How the variants begin; the number of replies that an attacker reads follows."""


def budgets(samples: int) -> list[int]:
    """Returns the numbers of replies for which the leak is estimated: 1, 4, 16, … and all."""
    powers = [4**power for power in range(samples.bit_length()) if 4**power < samples]
    return [*powers, samples]


def ask_often(subject: Subject, spec: Audit) -> Iterator[Question]:
    """Asks the question for `audit.samples` replies at temperature 1, which all variants read."""
    assert spec.samples != "auto"
    for k in budgets(spec.samples):
        yield Question(f"{PREFIX}{k}", subject.question, subject.answer, num_replies=spec.samples)


def score_samples(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns leak@k, the expected largest leak of k replies, with its bounds."""
    (sampled,) = answered
    k = int(sampled.asked.variant.removeprefix(PREFIX))
    best = largest_leak(subject, answered)
    leaks = [score for score, _ in reply_leaks(subject, answered) if score is not None]
    if len(leaks) < k:
        return Outcome(None, best.attempts, reason="nothing_to_leak")
    low, high = leak_at_k_bounds(leaks, k)
    return Outcome(leak_at_k(leaks, k), best.attempts, best.reply, low, high)


SAMPLING = Attack("sampling", "black box", ask_often, score_samples)
"""Samples `audit.samples` replies at temperature 1, and estimates leak@k from all of them.

leak@k (arXiv 2511.04934) is what an attacker expects from the best of k replies. A reply that
cannot be scored is missing, and counts as no leak in the published script. The bounds hold with
95 % for every distribution of replies (Dvoretzky-Kiefer-Wolfowitz; arXiv 2410.03523).
"""
