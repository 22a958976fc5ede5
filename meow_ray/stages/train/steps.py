"""The steps that actors of the stages `reference` and `guesses` run on a batch of rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from meow_ray.engines import Engine
from meow_ray.engines.base import TeacherForced, Tokens
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.models.prompts import Prompter
from meow_ray.stages.invert.generators import LocalGenerator
from meow_ray.stages.train.log_odds import log_odds

Row = Mapping[str, Any]
"""A row with `question` and `answer`."""


def log_probs_batch(
    engine: Engine,
    batch: pa.Table,
    template: str,
    system: str | None,
    variables: Mapping[str, Any],
) -> pa.Table:
    """Returns a batch of pairs with the log-probabilities of their answers.

    Args:
        engine: the engine of the target.
        batch: rows with the columns `question` and `answer`.
        template: the prompt template of the target.
        system: the system prompt of the target.
        variables: the variables of the template.

    Returns:
        The batch with the column `log_probs`: one number per token of the answer, with the end of
        the sequence.
    """
    prompter = Prompter(engine.tokenizer, template, system, variables)
    results = engine.teacher_force(*encode_rows(prompter, batch.to_pylist()))
    log_probs = [list(result.log_probs) for result in results]
    return batch.append_column("log_probs", pa.array(log_probs, pa.list_(pa.float64())))


def guesses_batch(generator: LocalGenerator, batch: pa.Table) -> pa.Table:
    """Returns a batch of answers with the generator's guess of each.

    Args:
        generator: the generator.
        batch: rows with the columns `fact_id`, `question` and `answer`.

    Returns:
        The batch with the columns `guess`, the mean log-odds of the fact-bearing tokens, and
        `tokens`, their number.

    Raises:
        MeowError: a question with its answer is longer than the generator's context.
    """
    rows = batch.to_pylist()
    prompts, answers = encode_rows(generator.prompter, rows)
    limit = generator.engine.max_model_len
    for row, prompt, answer in zip(rows, prompts, answers, strict=True):
        length = len(prompt) + len(answer)
        if length >= limit:
            raise MeowError(
                f"`guesses`: an answer of the fact {row['fact_id']} has {length} tokens with its "
                f"question, and the generator reads fewer than {limit}. Raise "
                "`invert.max_model_len`, use a generator with a longer context, or remove "
                "`train.guessed_floors`."
            )
    results = generator.engine.teacher_force(prompts, answers)
    odds = [log_odds(values) for values in fact_log_probs(generator.prompter, rows, results)]
    return batch.append_column(
        "guess", pa.array([float(values.mean()) for values in odds], pa.float64())
    ).append_column("tokens", pa.array([len(values) for values in odds], pa.int32()))


def encode_rows(
    prompter: Prompter, rows: Iterable[Row]
) -> tuple[Sequence[Tokens], Sequence[Tokens]]:
    """Returns the tokens of the prompt of each question, and those of each answer."""
    rows = list(rows)
    prompts = [prompter.encode_prompt(prompter.prompt(row["question"])) for row in rows]
    return prompts, [prompter.encode_answer(row["answer"]) for row in rows]


def fact_log_probs(
    prompter: Prompter, rows: Iterable[Row], results: Iterable[TeacherForced]
) -> list[Any]:
    """Returns the log-probabilities of each answer's fact-bearing tokens, an array per row."""
    return [
        np.array(result.log_probs)[novel_token_mask(prompter, row["question"], row["answer"])]
        for row, result in zip(rows, results, strict=True)
    ]
