"""What an actor of `paraphrases` does with a batch: ask the generator, check, and add frames."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from meow_ray.config import Paraphrases
from meow_ray.engines import Completion, Sampling
from meow_ray.models import prompts
from meow_ray.models.text import words
from meow_ray.stages.invert.generators import Ask, Generator
from meow_ray.stages.invert.parsing import is_reasoning_only, parse_questions
from meow_ray.stages.invert.replies import fact_seed, reply_schema
from meow_ray.stages.invert.rules import Fact, Proposal
from meow_ray.stages.paraphrases.frames import framed
from meow_ray.stages.paraphrases.rules import fault, generator_fault

SPARE = 2
"""Rewordings to request in addition to those that are missing."""
_REWORDING = pa.struct([("question", pa.string()), ("source", pa.string())])
_REJECT = pa.struct([*_REWORDING, ("attempt", pa.int32()), ("reason", pa.string())])


@dataclass
class _Progress:
    """A fact with the rewordings of its question so far."""

    fact_id: str
    fact: Fact
    rewordings: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)

    def accept(self, question: str, source: str) -> None:
        self.rewordings.append({"question": question, "source": source})

    def reject(self, question: str, source: str, reason: str, attempt: int | None = None) -> None:
        self.rejects.append(
            {"question": question, "source": source, "attempt": attempt, "reason": reason}
        )

    @property
    def taken(self) -> set[tuple[str, ...]]:
        """The words of the question and of its rewordings."""
        texts = [self.fact.question, *(row["question"] for row in self.rewordings)]
        return {tuple(words(text)) for text in texts}


@dataclass(frozen=True)
class ParaphraseSteps:
    """A function that rewords the questions of a batch of `fact_id`, `question` and `answer`.

    It adds `rewordings` and `rejects`, lists of structs, and `left_out`, the settings that the
    generator refused.
    """

    spec: Paraphrases
    number: int
    """The rewordings of each question."""

    def __call__(self, generator: Generator | None, batch: pa.Table) -> pa.Table:
        """Returns the batch with the new columns; without a generator, frames alone reword."""
        facts = [
            _Progress(row["fact_id"], Fact(row["question"], row["answer"]))
            for row in batch.to_pylist()
        ]
        sources = self.spec.sources
        if generator is not None and "generator" in sources:
            self._ask(generator, facts)
        if "rule" in sources:
            for progress in facts:
                self._frame(progress)
        left_out = list(generator.left_out) if generator is not None else []
        columns = {
            "rewordings": pa.array([fact.rewordings for fact in facts], pa.list_(_REWORDING)),
            "rejects": pa.array([fact.rejects for fact in facts], pa.list_(_REJECT)),
            "left_out": pa.array([left_out] * len(facts), pa.list_(pa.string())),
        }
        for name, values in columns.items():
            batch = batch.append_column(name, values)
        return batch

    # --- the generator --------------------------------------------------------------------------

    def _ask(self, generator: Generator, facts: Sequence[_Progress]) -> None:
        """Asks until each fact has its rewordings or the attempts are used up."""
        for attempt in range(self.spec.max_attempts):
            pending = [fact for fact in facts if len(fact.rewordings) < self.number]
            if not pending:
                return
            asks = [self._message(fact, attempt) for fact in pending]
            for progress, replies in zip(pending, generator.ask(asks), strict=True):
                if replies is None:
                    progress.reject("", "generator", "prompt_too_long", attempt)
                else:
                    self._choose(progress, replies, attempt)

    def _message(self, progress: _Progress, attempt: int) -> Ask:
        spec = self.spec
        k = self.number - len(progress.rewordings) + SPARE
        text = prompts.fill(spec.prompt, "paraphrases.prompt", question=progress.fact.question, k=k)
        sampling = Sampling(
            max_new_tokens=spec.max_new_tokens * k,
            temperature=spec.temperature,
            top_p=spec.top_p,
            seed=fact_seed(spec.seed, progress.fact_id, attempt),
            json_schema=reply_schema(k, "questions"),
        )
        return Ask(text, sampling)

    def _choose(self, progress: _Progress, replies: Iterable[Completion], attempt: int) -> None:
        """Takes the valid rewordings of a reply, and records the others."""
        for reply in replies:
            if is_reasoning_only(reply.text, reply.finished):
                progress.reject("", "generator", "only_reasoning", attempt)
            proposals = parse_questions(reply.text, reply.finished, progress.fact.question)
            for proposal in proposals:
                if len(progress.rewordings) == self.number:
                    return
                reason = generator_fault(proposal, progress.fact)
                self._add(progress, proposal, "generator", reason, attempt)

    # --- frames ---------------------------------------------------------------------------------

    def _frame(self, progress: _Progress) -> None:
        """Puts the question into frames until there are enough rewordings."""
        for text in framed(progress.fact.question):
            if len(progress.rewordings) == self.number:
                return
            self._add(progress, Proposal(text, finished=True), "rule")

    def _add(
        self,
        progress: _Progress,
        proposal: Proposal,
        source: str,
        reason: str | None = None,
        attempt: int | None = None,
    ) -> None:
        """Adds a rewording unless there is a reason against it, or it breaks a rule."""
        reason = reason or fault(proposal, progress.fact, self.spec, progress.taken)
        if reason is None:
            progress.accept(proposal.text, source)
        else:
            progress.reject(proposal.text, source, reason, attempt)
