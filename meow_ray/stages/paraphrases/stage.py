"""The stage `paraphrases`, which rewords the questions of the facts to forget.

A model that unlearns one wording of a question still answers others (ReLearn, arXiv 2502.11190;
JensUn, arXiv 2509.02820).
"""

from collections.abc import Callable, Mapping
from typing import Any

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import MAIN, REJECTS_FILE, Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, PARAPHRASE_REJECTS_SCHEMA, SCHEMAS
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.core.tables import Query
from meow_ray.stages.inputs import GENERATOR, generator_prompt
from meow_ray.stages.invert.stage import generator_spec
from meow_ray.stages.paraphrases.preflight import CHECKS, has_generator
from meow_ray.stages.paraphrases.steps import ParaphraseSteps

COUNT = "num_paraphrases"
"""The input with the number of rewordings of each question."""

_FORGET_FACTS = """
    SELECT fact_id, question, answer FROM facts WHERE split = 'forget'
    ORDER BY strlen(question) DESC, fact_id
"""
"""The facts to forget, the longest question first."""


def _paraphrases(context: Context) -> dict[str, Any]:
    from meow_ray.distributed import cluster

    facts = context.inputs["facts"]
    if facts.manifest is None:  # a user's own table
        checks.check_keys(facts.source, "facts", storage.display(facts.uri))
    number = context.inputs[COUNT].value
    steps = ParaphraseSteps(context.config.paraphrases, number)
    rows = Query(_FORGET_FACTS, {"facts": facts.source})
    paths = {name: context.path(name) for name in (MAIN, REJECTS_FILE)}
    if not has_generator(context.config, context.inputs.get("generator")):
        with rows.batches() as reader:
            framed = steps(None, reader.read_all())
        return write_paraphrases(Query("SELECT * FROM framed", {"framed": framed}), number, paths)
    return cluster.call(write_paraphrases, _asked(context, steps, rows), number, paths)


def _asked(context: Context, steps: ParaphraseSteps, rows: Query) -> Query:
    """Sends the questions through the generator's actors."""
    from meow_ray.distributed import map_rows

    config = context.config
    loader = generator_spec(context.inputs["generator"], config, context.engine_spec)
    work = map_rows.BatchWork(steps)
    return map_rows.map_rows(
        rows, "fact_id", loader, work, context.work, "invert", config.resources
    )


# --- the tables -----------------------------------------------------------------------------------

_REWORDED = """
    reworded AS (  -- one row per rewording; those of a fact count from 1
        SELECT
            fact_id,
            unnest(range(1, len(rewordings) + 1)) AS paraphrase_id,
            unnest(rewordings) AS rewording
        FROM asked
    ),
    rejected AS (  -- one row per rejected rewording; those of a fact count from 0
        SELECT fact_id, unnest(range(len(rejects))) AS number, unnest(rejects) AS reject
        FROM asked
    )
"""


def write_paraphrases(asked: Query, wanted: int, paths: Mapping[str, str]) -> dict[str, Any]:
    """Writes the tables of `paraphrases`; returns the figures for the manifest.

    Args:
        asked: one row per fact, with `fact_id` and the columns that `ParaphraseSteps` adds.
        wanted: the number of rewordings that a question should have.
        paths: URIs of the tables, by the names of the artifact's files.
    """

    def query(sql: str) -> Query:
        common = f"WITH asked AS NOT MATERIALIZED ({asked.sql}), {_REWORDED}"
        return Query(f"{common} {sql}", asked.sources)

    def counts(column: str, table: str) -> dict[str, int]:
        rows = query(
            f"SELECT {column} AS name, count(*) AS n FROM {table} GROUP BY 1 ORDER BY n DESC, 1"
        ).rows()
        return {row["name"]: row["n"] for row in rows}

    reworded = query("""
        SELECT fact_id, paraphrase_id, rewording.question AS question, rewording.source AS source
        FROM reworded
        ORDER BY fact_id, paraphrase_id
    """)
    rejected = query("""
        SELECT fact_id, number, reject.source AS source, reject.attempt AS attempt,
            reject.reason AS reason, reject.question AS question
        FROM rejected
        ORDER BY fact_id, number
    """)
    tables.write_sorted(reworded, paths[MAIN], SCHEMAS["paraphrases"], KEYS["paraphrases"])
    tables.write_sorted(
        rejected, paths[REJECTS_FILE], PARAPHRASE_REJECTS_SCHEMA, ("fact_id", "number")
    )
    totals = query(f"""
        SELECT count(*) AS facts, count(*) FILTER (WHERE len(rewordings) < {wanted}) AS facts_short
        FROM asked
    """).rows()[0]
    return {
        **totals,
        "by_source": counts("rewording.source", "reworded"),
        "rejected_by_reason": counts("reject.reason", "rejected"),
        "left_out": counts("name", "(SELECT unnest(left_out) AS name FROM asked)"),
    }


# --- the stage ------------------------------------------------------------------------------------


def paraphrases_stage(number: Callable[[Config], int]) -> Stage:
    """Returns the stage.

    Args:
        number: returns the rewordings of each question under a configuration; with 0, the
            configuration does not have the stage.
    """

    def count(config: Config, verify: bool) -> Artifact:
        return Artifact(COUNT, "", str(number(config)), value=number(config))

    def inputs(config: Config) -> tuple[Input, ...]:
        asks = "generator" in config.paraphrases.sources
        return ("facts", OutsideInput(COUNT, count), *((GENERATOR,) if asks else ()))

    return Stage(
        name="paraphrases",
        artifact="paraphrases",
        version=1,
        sections=("paraphrases", *OF_GENERATOR),
        inputs=inputs,
        run=_paraphrases,
        schema=SCHEMAS["paraphrases"],
        key=KEYS["paraphrases"],
        adopt=adopt_table,
        enabled=lambda config: number(config) > 0,
        resources="invert",
        uses_gpus=_runs_generator_here,
        checks=CHECKS,
        prompt=_prompt,
    )


OF_GENERATOR = tuple(
    f"invert.{name}"
    for name in (
        "engine",
        "base_url",
        "model",
        "api_key_env",
        "structured",
        "template_variables",
        "dtype",
        "max_model_len",
        "trust_remote_code",
    )
)
"""The settings with which the generator is loaded."""


def _runs_generator_here(config: Config) -> bool:
    return "generator" in config.paraphrases.sources and config.invert.engine != "openai"


def _prompt(config: Config, inputs: Mapping[str, Artifact]) -> str | None:
    return generator_prompt(config, inputs) if "generator" in inputs else None
