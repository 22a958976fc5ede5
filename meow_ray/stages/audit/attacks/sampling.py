"""The attack that samples many replies to the question."""

from collections.abc import Iterator, Sequence

from meow_ray.config import Audit
from meow_ray.stages.audit.attack import Answered, Attack, Outcome, Question, Subject
from meow_ray.stages.audit.attacks.leaks import largest_leak


def ask_often(subject: Subject, spec: Audit) -> Iterator[Question]:
    """Asks the question for `audit.samples` replies at temperature 1."""
    assert spec.samples != "auto"
    yield Question("", subject.question, subject.answer, num_replies=spec.samples)


def score_best(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns leak@n, the largest leak of all n replies."""
    return largest_leak(subject, answered)


SAMPLING = Attack("sampling", "black box", ask_often, score_best)
"""Samples `audit.samples` replies at temperature 1 and takes the best one.

It is leak@k with k = n (Leak@k, arXiv 2511.04934). A reply that cannot be scored is missing there,
and counts as no leak in the published script.
"""
