"""The stage `guesses`: how probable the generator finds each answer, which it was never taught.

Some facts are easier to guess than others, so that they stay more probable in a model that was
never taught them. The floors of `meow_floor` are those of invented facts and do not tell. The
generator was never taught the facts either: what it says of an answer, compared with what it says
of the twins of the same fact, tells how much the floors of the answer have to be raised.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import tables
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, ROW, SCHEMAS
from meow_ray.core.stage import Context, Known, Stage
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models.fact_tokens import novel_token_mask
from meow_ray.stages.inputs import GENERATOR, generator_prompt
from meow_ray.stages.invert.generators import LocalGenerator
from meow_ray.stages.invert.stage import generator_spec
from meow_ray.stages.train import objectives
from meow_ray.stages.train.log_odds import log_odds

_ANSWERS = f"""
    WITH answers AS (
        SELECT 'forget' AS role, fact_id, question, answer FROM facts WHERE split = 'forget'
        UNION
        SELECT 'inverted', fact_id, question, answer FROM selected
        UNION
        SELECT 'twin', fact_id, question, answer FROM twins WHERE half = 'calibration'
    )
    SELECT *, concat_ws('/', role, fact_id, question, answer) AS {ROW} FROM answers
"""


def _guesses(context: Context) -> dict[str, Any]:
    """Writes the generator's guess of the true answers, the inverted facts and the twins."""
    from meow_ray.distributed import map_rows

    config = context.config
    sources = {name: context.inputs[name].source for name in ("facts", "selected", "twins")}
    loader = generator_spec(context.inputs["generator"], config, context.engine_spec)
    guessed = map_rows.map_rows(
        Query(_ANSWERS, sources),
        ROW,
        loader,
        map_rows.BatchWork(guesses_batch),
        context.work,
        "invert",
        config.resources,
    )
    schema, key = SCHEMAS["guesses"], KEYS["guesses"]
    table = Query(
        f"SELECT {', '.join(schema.names)} FROM ({guessed.sql}) ORDER BY {', '.join(key)}",
        guessed.sources,
    )
    return {"answers": tables.write_sorted(table, context.path(), schema, key)}


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
    prompter = generator.prompter
    rows = batch.select(["question", "answer"]).to_pylist()
    prompts = [prompter.encode_prompt(prompter.prompt(row["question"])) for row in rows]
    answers = [prompter.encode_answer(row["answer"]) for row in rows]
    limit = generator.engine.max_model_len
    for fact_id, prompt, answer in zip(batch["fact_id"].to_pylist(), prompts, answers, strict=True):
        length = len(prompt) + len(answer)
        if length >= limit:
            raise MeowError(
                f"`guesses`: an answer of the fact {fact_id} has {length} tokens with its "
                f"question, and the generator reads fewer than {limit}. Raise "
                "`invert.max_model_len`, use a generator with a longer context, or remove "
                "`train.guessed_floors`."
            )
    results = generator.engine.teacher_force(prompts, answers)
    masks = [novel_token_mask(prompter, row["question"], row["answer"]) for row in rows]
    odds = [
        log_odds(np.array(result.log_probs)[mask])
        for result, mask in zip(results, masks, strict=True)
    ]
    return batch.append_column(
        "guess", pa.array([float(values.mean()) for values in odds], pa.float64())
    ).append_column("tokens", pa.array([len(values) for values in odds], pa.int32()))


# --- the stage ------------------------------------------------------------------------------------


def _check_generator(config: Config, known: Known) -> Iterator[str]:
    """Finds that an endpoint writes the inverted facts, since it gives no probabilities."""
    if config.invert.engine == "openai":
        yield (
            "`train.guessed_floors`: the generator is an endpoint, which does not return the "
            "probabilities of given answers. Set `invert.engine` to vllm or transformers and "
            "`invert.model` to a model that was never taught the facts, or remove the setting."
        )
    elif config.invert.model is None:
        yield (
            "`train.guessed_floors`: there is no generator. Set `invert.model` to a model that was "
            "never taught the facts, or remove the setting."
        )


def _is_enabled(config: Config) -> bool:
    return objectives.configured(config.train).guessed_floors


GUESSES = Stage(
    name="guesses",
    artifact="guesses",
    version=1,
    sections=("invert",),
    inputs=("facts", "selected", "twins", GENERATOR),
    run=_guesses,
    prompt=generator_prompt,
    schema=SCHEMAS["guesses"],
    key=KEYS["guesses"],
    adopt=adopt_table,
    enabled=_is_enabled,
    resources="invert",
    checks=(_check_generator,),
)
