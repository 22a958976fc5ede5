"""What an actor of `audit` does with a batch of questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from meow_ray.core.schema import ROW
from meow_ray.engines import Engine, Sampling, force_to_any_end
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import Prompter

ANSWERS_SCHEMA = pa.schema(
    [
        ("replies", pa.list_(pa.string())),
        ("log_probs", pa.list_(pa.float64())),
        ("is_greedy", pa.list_(pa.bool_())),
        ("is_fact_bearing", pa.list_(pa.bool_())),
    ]
)
"""The columns that `AuditSteps` adds to a table of questions. All are null in a row whose prompt
does not fit into the model's context; otherwise those are null that the question does not ask."""

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class AuditSteps:
    """Asks a model the questions of a batch; see `questions.CONTENT` for its columns."""

    max_new_tokens: int
    seed: int
    """The seed of sampled replies; each question has its own, which its content decides."""
    template: str
    """`target.template`, by which a question becomes a prompt."""
    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """`target.template_variables`."""

    def generate(self, engine: Engine, batch: pa.Table) -> pa.Table:
        """Adds the columns of `ANSWERS_SCHEMA` to a batch."""
        rows = batch.to_pylist()
        prompter = Prompter(engine.tokenizer, self.template, self.system, self.variables)
        prompts = [encode_question(prompter, row) for row in rows]
        answers = [_answer_tokens(prompter, row) for row in rows]
        values: list[dict[str, Any]] = [{} for _ in rows]
        fitting = [
            number
            for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
            if len(prompt) + max(len(answer), 1) < engine.max_model_len
        ]
        self._add_replies(engine, rows, prompts, fitting, values)
        _add_probabilities(engine, prompter, rows, prompts, answers, fitting, values)
        for name in ANSWERS_SCHEMA.names:
            column = [row.get(name) for row in values]
            batch = batch.append_column(name, pa.array(column, ANSWERS_SCHEMA.field(name).type))
        return batch

    def _add_replies(
        self,
        engine: Engine,
        rows: Rows,
        prompts: Sequence[list[int]],
        fitting: Sequence[int],
        values: Sequence[dict[str, Any]],
    ) -> None:
        asked = [number for number in fitting if rows[number]["num_replies"]]
        replies = engine.generate(
            [prompts[number] for number in asked],
            [self._sampling(rows[number]) for number in asked],
        )
        for number, completions in zip(asked, replies, strict=True):
            values[number]["replies"] = [completion.text for completion in completions]

    def _sampling(self, row: Mapping[str, Any]) -> Sampling:
        """Returns how a question is answered: greedily if it wants one reply, else sampled."""
        if row["num_replies"] == 1:
            return Sampling(self.max_new_tokens)
        seed = (int(row[ROW][:8], 16) + self.seed) % 2**31
        return Sampling(self.max_new_tokens, temperature=1.0, n=row["num_replies"], seed=seed)


def _add_probabilities(
    engine: Engine,
    prompter: Prompter,
    rows: Rows,
    prompts: Sequence[list[int]],
    answers: Sequence[list[int]],
    fitting: Sequence[int],
    values: Sequence[dict[str, Any]],
) -> None:
    """Adds what one teacher-forced pass over the scored answers tells."""
    scored = [number for number in fitting if answers[number]]
    passes = force_to_any_end(
        engine, [prompts[number] for number in scored], [answers[number] for number in scored]
    )
    for number, forced in zip(scored, passes, strict=True):
        row = rows[number]
        known = f"{row['question']} {row['start']}"
        mask = novel_token_mask(prompter, known, row["answer"])
        values[number] |= {
            "log_probs": forced.log_probs,
            "is_greedy": forced.is_greedy,
            "is_fact_bearing": mask[: len(forced.log_probs)],
        }


def _answer_tokens(prompter: Prompter, row: Mapping[str, Any]) -> list[int]:
    """Returns the tokens whose probability is measured; none if the question is not scored.

    Plain text goes on after the answer, so its answer has no end.
    """
    if not row["is_scored"]:
        return []
    tokens = prompter.encode_answer(row["answer"])
    return tokens if row["is_chat"] else tokens[:-1]


def encode_question(prompter: Prompter, row: Mapping[str, Any]) -> list[int]:
    """Returns the tokens of a question with the start of the reply.

    A model that takes no system prompt gets its text before the question: a chat template that
    refuses one, and every other template.
    """
    question, start, system = row["question"], row["start"], row["system"]
    if not row["is_chat"]:
        plain = replace(prompter, template="")
        return plain.encode_prompt(question + start)
    if system is None:
        return prompter.encode_prompt(prompter.prompt(question) + start)
    if prompter.template == "chat":
        try:
            text = replace(prompter, system=system).prompt(question)
        except MeowError:
            pass
        else:
            return prompter.encode_prompt(text + start)
    return prompter.encode_prompt(prompter.prompt(f"{system}\n\n{question}") + start)
