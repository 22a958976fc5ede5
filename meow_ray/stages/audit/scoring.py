"""What the attacks of an audit work on, and the rows that they give."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from meow_ray.config import Audit, Target
from meow_ray.core.stage import Context
from meow_ray.models.refs import ModelRef
from meow_ray.stages.audit import asking, questions
from meow_ray.stages.audit.attack import Answered, Attack, Group, Outcome, Subject, Tier

TOO_LONG = Outcome(None, 0, reason="too_long")
"""The outcome of questions that a model could not be asked."""


class ScoredRow(NamedTuple):
    """A row of `audit` before its threshold is known, with the evidence."""

    attack: str
    variant: str
    tier: Tier
    model: str
    """`before`, `after` or `retain_model`; of a derived model, the one that it comes from."""
    group: Group
    fact_id: str
    outcome: Outcome
    prompt: str | None = None
    """The question with the start of the reply that got the reply; None without a reply."""
    weights: str | None = None
    """The digest of the weights of a derived model; None if the model itself was asked."""


def groups_asked(model: str) -> tuple[Group, ...]:
    """Returns the groups that a model is asked about: the facts, and `before` also the twins."""
    return ("facts", "twins") if model == "before" else ("facts",)


@dataclass(frozen=True)
class AuditContext:
    """What attacks read that make models or ask in several rounds."""

    context: Context
    spec: Audit
    """The section `audit`, with numbers in the place of `auto`."""
    subjects: Sequence[Subject]
    """The facts to forget, then the twins."""
    models: Mapping[str, ModelRef]
    """`before` and `after`, and `retain_model` if there is one."""
    on_gpu: bool
    """Whether the actors of the audit have GPUs."""

    def runs(self, attack: str) -> bool:
        """Whether the configuration has an attack."""
        return attack in self.spec.attacks

    def asked_of(self, model: str) -> list[Subject]:
        """Returns the subjects that a model is asked about."""
        groups = groups_asked(model)
        return [subject for subject in self.subjects if subject.group in groups]


def scored_row(
    attack: str,
    variant: str,
    tier: Tier,
    model: str,
    subject: Subject,
    outcome: Outcome,
    **evidence: str | None,
) -> ScoredRow:
    """Returns the row of what one attack got from a model about one subject.

    Args:
        attack: the attack.
        variant: its variant.
        tier: what the attacker needs.
        model: the name of the model in the rows.
        subject: the fact or twin.
        outcome: what the attack got.
        **evidence: `prompt` and `weights` of the row, where it has them.
    """
    return ScoredRow(
        attack, variant, tier, model, subject.group, subject.fact_id, outcome, **evidence
    )


FurtherRows = Callable[[AuditContext], Iterable[ScoredRow]]
"""An attack that makes models or asks in several rounds; see `registry.FURTHER`."""


def scored_rows(
    audit: AuditContext,
    model: str,
    ref: ModelRef,
    attacks: Sequence[Attack],
    subjects: Iterable[Subject] | None = None,
    section: Target | None = None,
) -> Iterator[ScoredRow]:
    """Asks a model the questions of attacks, and yields their scores in a fixed order.

    Args:
        audit: the subjects and settings.
        model: the name of the model in the rows.
        ref: the model that is asked, which may be derived from that one.
        attacks: the attacks.
        subjects: what it is asked about; None takes all that `model` is asked about.
        section: how the model is loaded and prompted; None is the section `target`.
    """
    chosen = audit.asked_of(model) if subjects is None else list(subjects)
    table = questions.as_table(questions.questions_of(attacks, chosen, audit.spec))
    if not table.num_rows:
        return
    by_key: dict[tuple[str, str], Subject] = {
        (subject.group, subject.fact_id): subject for subject in chosen
    }
    by_name = {attack.name: attack for attack in attacks}
    answers = asking.ask_once(audit.context, ref, table, section)
    for key, answered in asking.answered(answers):
        attack = by_name[key.attack]
        subject = by_key[key.group, key.fact_id]
        outcome = attack.score(subject, answered) if answered else TOO_LONG
        prompt = prompt_of(outcome, answered)
        yield scored_row(
            attack.name, key.variant, attack.tier, model, subject, outcome, prompt=prompt
        )


def prompt_of(outcome: Outcome, answered: Iterable[Answered]) -> str | None:
    """Returns the question, with the start of the reply, that got an outcome's reply."""
    for each in answered:
        if outcome.reply is not None and outcome.reply in each.replies:
            return each.asked.question + each.asked.start
    return None
