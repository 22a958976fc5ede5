"""The score of attacks that read replies: the share of the answer that a reply gives away."""

from collections.abc import Iterator, Sequence

from meow_ray.stages.audit.attack import Answered, Outcome, Question, Subject
from meow_ray.stages.evaluate.metrics import leak


def reply_leak(subject: Subject, asked: Question, reply: str) -> float | None:
    """Returns the share of the answer's novel words in a reply, in [0, 1].

    Words that the prompt has are not novel: those of the question, of what the attack adds to it,
    of the system prompt and of the start of the reply. None if no word of the answer is left.
    """
    prompt = (subject.question, asked.question, asked.system or "", asked.start)
    return leak(" ".join(prompt), subject.answer, reply)


def reply_leaks(
    subject: Subject, answered: Sequence[Answered]
) -> Iterator[tuple[float | None, str]]:
    """Yields the leak of each reply, with the reply."""
    for each in answered:
        for reply in each.replies:
            yield reply_leak(subject, each.asked, reply), reply


def largest_leak(subject: Subject, answered: Sequence[Answered]) -> Outcome:
    """Returns the largest leak of all replies; the first one wins a tie.

    Without replies, the prompts were too long.
    """
    leaks = list(reply_leaks(subject, answered))
    measured = [(score, reply) for score, reply in leaks if score is not None]
    if not measured:
        return Outcome(None, len(leaks), reason="nothing_to_leak" if leaks else "too_long")
    score, reply = max(measured, key=lambda pair: pair[0])
    return Outcome(score, len(leaks), reply)
