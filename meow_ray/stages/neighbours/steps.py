"""What an actor of `neighbours` does with a batch: questions, answers of the target, checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from meow_ray.config import Neighbours
from meow_ray.core.tables import Query, TableSource
from meow_ray.engines import Completion, Engine, Sampling
from meow_ray.models.prompts import Prompter
from meow_ray.models.text import words
from meow_ray.stages.invert.parsing import whole_sentences
from meow_ray.stages.invert.replies import fact_seed
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.containment import contains_fact, tells_fact
from meow_ray.stages.neighbours.questions import Opening, other_questions, question_fault

SAMPLES = 2
"""Questions that the target invents for one generic turn; the first valid one is answered."""
QUESTION_TOKENS = 96
"""The most tokens of an invented question."""
TEMPERATURE, TOP_P = 1.0, 0.95
"""The sampling of invented questions (Magpie)."""
_PAIR = pa.struct([("question", pa.string()), ("answer", pa.string())])
_REJECT = pa.struct([("reason", pa.string()), *_PAIR])
FORGET_FACTS = "SELECT fact_id, question, answer FROM facts WHERE split = 'forget'"


@dataclass
class _Row:
    """A row of a batch: a fact to forget, or a generic turn, with its pairs so far."""

    fact: Fact | None
    """The fact; None for a generic turn."""
    questions: list[str] = field(default_factory=list)
    pairs: list[dict[str, str]] = field(default_factory=list)
    rejects: list[dict[str, str | None]] = field(default_factory=list)

    def reject(self, reason: str, question: str | None, answer: str | None = None) -> None:
        self.rejects.append({"reason": reason, "question": question, "answer": answer})


@dataclass(frozen=True)
class NeighbourSteps:
    """A function that makes neighbours, or a generic turn, of each row of a batch.

    A row has the columns `row_id`, `fact_id`, `question` and `answer`; the last three are null for
    a generic turn. It adds `pairs` and `rejects`, lists of structs. An answer that the limit cut
    off ends with its last whole sentence.
    """

    spec: Neighbours
    per_fact: int
    """Questions to ask for each fact."""
    max_length: int
    """The most tokens of a pair with its prompt."""
    template: str
    facts: TableSource
    """The table of facts, whose facts to forget no row may tell."""
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Returns the batch with the columns `pairs` and `rejects`."""
        prompter = Prompter(engine.tokenizer, self.template, self.system, self.variables)
        rows = [self._row(values) for values in batch.to_pylist()]
        generic = [i for i, row in enumerate(rows) if row.fact is None]
        keys = [batch["row_id"][i].as_py() for i in generic]
        self._invent_questions(engine, prompter, keys, [rows[i] for i in generic])
        self._answer(engine, prompter, rows)
        pairs = pa.array([row.pairs for row in rows], pa.list_(_PAIR))
        rejects = pa.array([row.rejects for row in rows], pa.list_(_REJECT))
        return batch.append_column("pairs", pairs).append_column("rejects", rejects)

    # --- questions ------------------------------------------------------------------------------

    def _row(self, values: Mapping[str, Any]) -> _Row:
        """Returns a row with the questions about other entities, if it is a fact."""
        if values["fact_id"] is None:
            return _Row(None)
        row = _Row(Fact(values["question"], values["answer"]))
        assert row.fact is not None
        questions = other_questions(row.fact, values["fact_id"], self.per_fact, self.spec.seed)
        if not questions:
            row.reject("no_entity", row.fact.question)
        for question in questions:
            if question in self._forget_questions:
                row.reject("duplicate", question)
            else:
                row.questions.append(question)
        return row

    @cached_property
    def _forget_facts(self) -> list[Fact]:
        rows = Query(FORGET_FACTS, {"facts": self.facts}).rows()
        return [Fact(row["question"], row["answer"]) for row in rows]

    @cached_property
    def _forget_questions(self) -> frozenset[str]:
        return frozenset(fact.question for fact in self._forget_facts)

    def _invent_questions(
        self, engine: Engine, prompter: Prompter, keys: Sequence[str], rows: Sequence[_Row]
    ) -> None:
        """Lets the target invent a question for each generic turn."""
        opening = Opening.of(prompter)
        if not opening.tokens:
            for row in rows:
                row.reject("no_start", None)
            return
        sampling = [
            Sampling(
                max_new_tokens=QUESTION_TOKENS,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                n=SAMPLES,
                seed=fact_seed(self.spec.seed, key, 0),
            )
            for key in keys
        ]
        replies = engine.generate([opening.tokens] * len(rows), sampling) if rows else []
        for row, completions in zip(rows, replies, strict=True):
            self._choose_question(row, opening, completions)

    def _choose_question(
        self, row: _Row, opening: Opening, completions: Sequence[Completion]
    ) -> None:
        """Takes the first completion that is a question without a fact to forget."""
        for completion in completions:
            question = opening.question(completion.text, completion.finished)
            if question is None:
                row.reject("unfinished", completion.text)
                continue
            fault = question_fault(question)
            if question in self._forget_questions or self._tells_any(question):
                fault = "contains_fact"
            if fault is None:
                row.questions.append(question)
                return
            row.reject(fault, question)

    # --- answers --------------------------------------------------------------------------------

    def _answer(self, engine: Engine, prompter: Prompter, rows: Sequence[_Row]) -> None:
        """Answers the questions of all rows greedily, and keeps the pairs that are valid."""
        longest = min(engine.max_model_len, self.max_length)
        asked: list[tuple[_Row, str]] = []
        prompts: list[list[int]] = []
        sampling: list[Sampling] = []
        for row in rows:
            for question in row.questions:
                prompt = prompter.encode_prompt(prompter.prompt(question))
                room = longest - len(prompt) - 1  # the answer's end takes one token
                if room < 1:
                    row.reject("too_long", question)
                    continue
                asked.append((row, question))
                prompts.append(prompt)
                sampling.append(Sampling(min(room, self.spec.max_new_tokens)))
        replies = engine.generate(prompts, sampling) if prompts else []
        for (row, question), completions in zip(asked, replies, strict=True):
            answer = _ended(completions[0])
            fault = "unfinished" if completions[0].text.strip() and not answer else None
            fault = fault or self._fault(row, question, answer)
            if fault is None and len(prompter.encode_pair(question, answer)[0]) > longest:
                fault = "too_long"
            if fault is not None:
                row.reject(fault, question, completions[0].text)
            else:
                row.pairs.append({"question": question, "answer": answer})

    def _fault(self, row: _Row, question: str, answer: str) -> str | None:
        """Returns why a pair with a whole answer is rejected, or None."""
        if not words(answer):
            return "empty"
        text = f"{question}\n{answer}"
        if row.fact is None:
            tells = self._tells_any(text)
        else:
            tells = contains_fact(text, row.fact, self.spec.max_overlap)
        return "contains_fact" if tells else None

    def _tells_any(self, text: str) -> bool:
        overlap = self.spec.max_overlap
        return any(tells_fact(text, fact, overlap) for fact in self._forget_facts)


def _ended(completion: Completion) -> str:
    """Returns a reply, up to its last whole sentence if its length cut it off."""
    text = completion.text.strip()
    return text if completion.finished else whole_sentences(text)
