"""What actors do with a batch of questions and answers."""

import pyarrow as pa

from meow_ray import metrics
from meow_ray.config import Memo
from meow_ray.engines import Engine, Sampling
from meow_ray.prompts import Prompter
from meow_ray.scoring import MemoSteps


def evaluate_batch(
    engine: Engine, batch: pa.Table, spec: Memo, template: str, system: str | None, max_new_tokens: int
) -> pa.Table:
    """Answers questions greedily and scores the true answers: columns generated, probability, memo."""
    rows = batch.to_pylist()
    questions, answers = _encoded(engine, batch, template, system)
    replies = engine.generate(questions, [Sampling(max_new_tokens)] * len(rows))
    probabilities = [metrics.probability(one.log_probs) for one in engine.teacher_force(questions, answers)]
    scored = [i for i, row in enumerate(rows) if row["with_memo"]]
    pairs = [(rows[i]["question"], rows[i]["answer"]) for i in scored]
    found = dict(zip(scored, MemoSteps(spec, template, system).score(engine, pairs), strict=True))
    memos = [found[i]["memo"] if i in found else None for i in range(len(rows))]
    out = batch.append_column("generated", pa.array([reply[0].text for reply in replies], pa.string()))
    out = out.append_column("probability", pa.array(probabilities, pa.float64()))
    return out.append_column("memo", pa.array(memos, pa.float64()))


def log_probs_batch(engine: Engine, batch: pa.Table, template: str, system: str | None) -> pa.Table:
    """Scores answers: a column `log_probs`, those of each answer's tokens with the end of the sequence."""
    questions, answers = _encoded(engine, batch, template, system)
    found = [list(one.log_probs) for one in engine.teacher_force(questions, answers)]
    return batch.append_column("log_probs", pa.array(found, pa.list_(pa.float64())))


def _encoded(
    engine: Engine, batch: pa.Table, template: str, system: str | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Returns the tokens of prompts and answers."""
    prompter = Prompter(engine.tokenizer, template, system)
    questions = [prompter.encode_prompt(prompter.prompt(text)) for text in batch["question"].to_pylist()]
    return questions, [prompter.encode_answer(text) for text in batch["answer"].to_pylist()]
