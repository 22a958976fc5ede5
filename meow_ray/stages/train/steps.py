"""What an actor of the stage `reference` does with a batch."""

import pyarrow as pa

from meow_ray.engines import Engine
from meow_ray.models.prompts import Prompter


def log_probs_batch(engine: Engine, batch: pa.Table, template: str, system: str | None) -> pa.Table:
    """Adds the column `log_probs`: those of each answer's tokens and of the end of sequence."""
    prompter = Prompter(engine.tokenizer, template, system)
    questions = batch["question"].to_pylist()
    prompts = [prompter.encode_prompt(prompter.prompt(question)) for question in questions]
    answers = [prompter.encode_answer(answer) for answer in batch["answer"].to_pylist()]
    log_probs = [list(forced.log_probs) for forced in engine.teacher_force(prompts, answers)]
    return batch.append_column("log_probs", pa.array(log_probs, pa.list_(pa.float64())))
