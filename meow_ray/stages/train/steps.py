"""The step that an actor of the stage `reference` runs on a batch of rows."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from meow_ray.engines import Engine
from meow_ray.models.prompts import Prompter


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
    prompts = [
        prompter.encode_prompt(prompter.prompt(question))
        for question in batch["question"].to_pylist()
    ]
    answers = [prompter.encode_answer(answer) for answer in batch["answer"].to_pylist()]
    results = engine.teacher_force(prompts, answers)
    log_probs = [list(result.log_probs) for result in results]
    return batch.append_column("log_probs", pa.array(log_probs, pa.list_(pa.float64())))
