"""What an actor of the stage `reference` does with a batch."""

import pyarrow as pa

from meow_ray.engines import Engine
from meow_ray.models.prompts import Prompter


def log_probs_batch(engine: Engine, batch: pa.Table, template: str, system: str | None) -> pa.Table:
    """Scores answers: a column `log_probs`, those of each answer's tokens with the end of the sequence."""
    prompter = Prompter(engine.tokenizer, template, system)
    questions = [
        prompter.encode_prompt(prompter.prompt(text)) for text in batch["question"].to_pylist()
    ]
    answers = [prompter.encode_answer(text) for text in batch["answer"].to_pylist()]
    found = [list(one.log_probs) for one in engine.teacher_force(questions, answers)]
    return batch.append_column("log_probs", pa.array(found, pa.list_(pa.float64())))
