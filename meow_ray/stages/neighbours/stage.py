"""The stage `neighbours`, in which the target answers the forget questions about other entities.

Such neighbours lose most when a model forgets, and retain best (arXiv 2502.11441).
"""

from math import ceil
from typing import Any

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import MAIN, REJECTS_FILE
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, PAIR_REJECTS_SCHEMA, ROW, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query, TableSource
from meow_ray.stages.inputs import TARGET, model_ref, target_prompt
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.model_checks import check_target, check_target_engine
from meow_ray.stages.neighbours.questions import other_questions
from meow_ray.stages.neighbours.steps import FORGET_FACTS, NeighbourSteps

SPARE = 1.5
"""Questions to ask for each row that is wanted, since some answers are rejected."""

_ROWS_TO_ASK = f"""
    WITH forget_facts AS ({FORGET_FACTS})
    SELECT * FROM (
        SELECT fact_id AS {ROW}, fact_id, question, answer FROM forget_facts
        UNION ALL
        SELECT {ROW}, NULL, NULL, NULL FROM turns
    )
    ORDER BY strlen(question) + strlen(answer) DESC NULLS LAST, {ROW}
"""
"""The facts to forget, the longest first, and the generic turns."""


def _neighbours(context: Context) -> dict[str, Any]:
    from meow_ray.distributed import cluster, map_rows

    config = context.config
    spec, target = config.neighbours, config.target
    facts = context.inputs["facts"]
    if facts.manifest is None:  # a user's own table
        checks.check_keys(facts.source, "facts", storage.display(facts.uri))
    wanted = neighbours_per_fact(facts.source, config)
    steps = NeighbourSteps(
        spec=spec,
        per_fact=ceil(SPARE * wanted),
        max_length=config.train.max_length,
        template=target.template,
        facts=facts.source,
        system=target.system,
        variables=target.template_variables,
    )
    engine = context.engine_spec(model_ref(context.inputs["target"]), target, config.resources.memo)
    turns = [f"generic/{number:06}" for number in range(ceil(SPARE * spec.generic))]
    rows = Query(
        _ROWS_TO_ASK,
        {"facts": facts.source, "turns": pa.table({ROW: pa.array(turns, pa.string())})},
    )
    work = map_rows.BatchWork(steps)
    asked = map_rows.map_rows(rows, ROW, engine, work, context.work, "memo", config.resources)
    paths = {name: context.path(name) for name in (MAIN, REJECTS_FILE)}
    return cluster.call(write_neighbours, asked, wanted, spec.generic, paths)


def neighbours_per_fact(facts: TableSource, config: Config) -> int:
    """Returns how many neighbours each fact needs, so that there are at least `minimum` in total.

    Facts whose question has no entity do not count.
    """
    spec = config.neighbours
    few = Query(f"{FORGET_FACTS} LIMIT {spec.minimum + 1}", {"facts": facts}).rows()
    if len(few) > spec.minimum:
        return spec.per_fact
    with_entity = [
        row
        for row in few
        if other_questions(Fact(row["question"], row["answer"]), row["fact_id"], 1, spec.seed)
    ]
    return max(spec.per_fact, ceil(spec.minimum / max(1, len(with_entity))))


# --- the tables -----------------------------------------------------------------------------------

_PAIRS = """
    -- one row per pair of a fact; the spare ones are left out
    neighbour_pairs AS (
        SELECT fact_id, number AS neighbour_id, 'neighbour' AS kind, pair.question AS question,
            pair.answer AS answer
        FROM numbered
        WHERE fact_id IS NOT NULL AND number < {wanted}
    ),
    -- one row per generic turn, with its position among those of the same question
    generic_turns AS (
        SELECT *, row_number() OVER (PARTITION BY pair.question ORDER BY row_id) AS repetition
        FROM numbered
        WHERE fact_id IS NULL
    ),
    generic_pairs AS (
        SELECT '' AS fact_id, row_number() OVER (ORDER BY row_id) - 1 AS neighbour_id,
            'generic' AS kind, pair.question AS question, pair.answer AS answer
        FROM generic_turns
        WHERE repetition = 1
        ORDER BY row_id
        LIMIT {generic}
    ),
    all_rejects AS (
        SELECT coalesce(fact_id, '') AS fact_id, row_id, number, reject.reason AS reason,
            reject.question AS question, reject.answer AS answer
        FROM rejected
        UNION ALL
        SELECT '', row_id, number, 'duplicate', pair.question, pair.answer
        FROM generic_turns
        WHERE repetition > 1
    )
"""


def write_neighbours(
    asked: Query, wanted: int, generic: int, paths: dict[str, str]
) -> dict[str, Any]:
    """Writes the tables of `neighbours`; returns the figures for the manifest.

    Args:
        asked: one row per fact or generic turn, with the columns that `NeighbourSteps` adds.
        wanted: the most neighbours of a fact.
        generic: the most generic turns.
        paths: URIs of the tables, by the names of the artifact's files.
    """
    common = f"""
        WITH asked AS NOT MATERIALIZED ({asked.sql}),
        numbered AS (  -- one row per pair
            SELECT fact_id, {ROW}, unnest(pairs) AS pair, unnest(range(len(pairs))) AS number
            FROM asked
        ),
        rejected AS (  -- one row per rejected pair
            SELECT fact_id, {ROW}, unnest(rejects) AS reject, unnest(range(len(rejects))) AS number
            FROM asked
        ),
        {_PAIRS.format(wanted=wanted, generic=generic)}
    """
    pairs = f"""{common}
        SELECT * FROM (SELECT * FROM neighbour_pairs UNION ALL SELECT * FROM generic_pairs)
        ORDER BY fact_id, neighbour_id
    """
    rejects = f"""{common}
        SELECT fact_id, row_number() OVER (
                PARTITION BY fact_id ORDER BY {ROW}, number, reason
            ) - 1 AS number, reason, question, answer
        FROM all_rejects
        ORDER BY fact_id, number
    """
    schema, key = SCHEMAS["neighbours"], KEYS["neighbours"]
    tables.write_sorted(Query(pairs, asked.sources), paths[MAIN], schema, key)
    tables.write_sorted(
        Query(rejects, asked.sources),
        paths[REJECTS_FILE],
        PAIR_REJECTS_SCHEMA,
        ("fact_id", "number"),
    )
    totals = f"""{common}
        SELECT
            (SELECT count(*) FROM asked WHERE fact_id IS NOT NULL) AS facts,
            (SELECT count(DISTINCT fact_id) FROM neighbour_pairs) AS facts_with_any,
            (SELECT count(*) FROM neighbour_pairs) AS neighbours,
            (SELECT count(*) FROM generic_pairs) AS generic
    """
    figures = Query(totals, asked.sources).rows()[0]
    reasons = Query(
        f"{common} SELECT reason, count(*) AS n FROM all_rejects GROUP BY 1 ORDER BY n DESC, 1",
        asked.sources,
    ).rows()
    return {
        "facts": figures["facts"],
        "facts_with_none": figures["facts"] - figures["facts_with_any"],
        "per_fact": wanted,
        "neighbours": figures["neighbours"],
        "generic": figures["generic"],
        "rejected_by_reason": {row["reason"]: row["n"] for row in reasons},
    }


NEIGHBOURS = Stage(
    name="neighbours",
    artifact="neighbours",
    version=1,
    sections=("neighbours", "target", "train.max_length"),
    inputs=("facts", TARGET),
    run=_neighbours,
    prompt=target_prompt,
    schema=SCHEMAS["neighbours"],
    key=KEYS["neighbours"],
    adopt=adopt_table,
    resources="memo",
    checks=(check_target, check_target_engine),
)
