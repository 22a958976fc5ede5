"""The stage `guesses`: how probable the generator finds each answer, which it was never taught.

Some facts are easier to guess than others, so that they stay more probable in a model that was
never taught them. The floors of `meow_floor` are those of invented facts and do not tell. The
generator was never taught the facts either: what it says of an answer, compared with what it says
of the twins of the same fact, tells how much the floors of the answer have to be raised.
"""

from typing import Any

from meow_ray.config import Config
from meow_ray.core import tables
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, ROW, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.stages.inputs import GENERATOR, generator_prompt
from meow_ray.stages.invert.stage import generator_spec
from meow_ray.stages.train import objectives, steps
from meow_ray.stages.train.preflight import check_generator

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
        map_rows.BatchWork(steps.guesses_batch),
        context.work,
        "invert",
        config.resources,
    )
    schema, key = SCHEMAS["guesses"], KEYS["guesses"]
    return {"answers": tables.sort_and_write(guessed, context.path(), schema, key)}


# --- the stage ------------------------------------------------------------------------------------


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
    checks=(check_generator,),
)
