"""The stages `memo` and `remain`: they score answers with MEMO, before and between rounds."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS, TRUE_ANSWER
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.stages.inputs import TARGET, model_ref
from meow_ray.stages.memo import summary
from meow_ray.stages.memo.steps import SCORE_NAMES, MemoSteps

_FACTS_TO_SCORE = f"""
    SELECT fact_id, any_value(question) AS question,
        list_prepend({TRUE_ANSWER}::INTEGER, list(candidate_id::INTEGER ORDER BY candidate_id)
            FILTER (WHERE candidate_id >= 0)) AS candidate_ids,
        list_prepend(any_value(answer), list(inverted_answer ORDER BY candidate_id)
            FILTER (WHERE candidate_id >= 0)) AS texts
    FROM candidates GROUP BY fact_id
    ORDER BY strlen(any_value(answer)) + sum(strlen(coalesce(inverted_answer, ''))) DESC, fact_id
"""
"""One row a fact with all its answers, the true one first; the longest work first."""


def _memo(context: Context) -> dict[str, Any]:
    from meow_ray.distributed import cluster

    config, candidates = context.config, context.inputs["candidates"]
    cluster.connect()
    if candidates.manifest is None:
        cluster.call(
            checks.check_keys, candidates.source, "candidates", storage.display(candidates.uri)
        )
    found = _scored(context, Query(_FACTS_TO_SCORE, {"candidates": candidates.source}), "target")
    names = [*SCORE_NAMES, *config.memo.comparators]
    return {
        **cluster.call(_write_memo, found, names, context.path()),
        "dtype": config.target.dtype,
        "max_new_tokens": config.memo.max_new_tokens,
        "window": config.memo.window,
        "stride": config.memo.step,
    }


def _scored(context: Context, rows: Query, model: str) -> Query:
    """Scores facts, each a row with its answers, on the input that is named."""
    from meow_ray.distributed import map_rows

    config = context.config
    steps = MemoSteps(config.memo, config.target.template, config.target.system)
    engine = context.engine_spec(
        model_ref(context.inputs[model]), config.target, config.resources.memo
    )
    work = map_rows.BatchWork(
        steps.generate, steps.prepare, steps.finish, engine.model, steps.figures
    )
    return map_rows.map_rows(rows, "fact_id", engine, work, context.work, "memo", config.resources)


def _write_memo(found: Query, names: Sequence[str], path: str) -> dict[str, Any]:
    """Writes the answers of scored facts, one a row; returns the figures for the manifest."""
    scores = ", ".join(f"score.{name} AS {name}" for name in names)
    answers = f"""
        SELECT fact_id, candidate_id, question, text, {scores} FROM (
            SELECT fact_id, question, unnest(candidate_ids) AS candidate_id, unnest(texts) AS text,
                unnest(scores) AS score FROM ({found.sql}))
        ORDER BY fact_id, candidate_id
    """
    tables.write(Query(answers, found.sources), path, SCHEMAS["memo"], KEYS["memo"])
    generations = Query(
        f"SELECT sum(generations)::BIGINT AS n FROM ({found.sql})", found.sources
    ).rows()[0]["n"]
    return summary.summarize([path]) | {"generations": generations or 0}


def _remain(context: Context) -> dict[str, Any]:
    """Keeps the facts that a tuned model still has memorised, and the retain set."""
    config, facts = context.config, context.inputs["facts"]
    found = _scored(context, Query(_FACTS_TO_CHECK, {"facts": facts.source}), "model")
    scores = Query(
        f"SELECT fact_id, scores[1].memo AS memo FROM ({found.sql})", found.sources
    ).rows()
    above = {
        row["fact_id"]
        for row in scores
        if row["memo"] is not None and row["memo"] > config.pipeline.threshold
    }
    table = facts.table
    kept = pc.or_(
        pc.equal(table["split"], "retain"),
        pc.is_in(table["fact_id"], pa.array(sorted(above), pa.string())),
    )
    context.write(table.filter(kept))
    return {"facts": len(scores), "above": len(above), "threshold": config.pipeline.threshold}


_FACTS_TO_CHECK = f"""
    SELECT fact_id, question, [{TRUE_ANSWER}::INTEGER] AS candidate_ids, [answer] AS texts
    FROM facts WHERE split = 'forget' ORDER BY strlen(answer) DESC, fact_id
"""


MEMO = Stage(
    name="memo",
    artifact="memo",
    version=2,
    sections=("memo", "target"),
    inputs=("candidates", TARGET),
    run=_memo,
    schema=SCHEMAS["memo"],
    key=KEYS["memo"],
    adopt=adopt_table,
    resources="memo",
)


def _has_rounds(config: Config) -> bool:
    return config.pipeline.rounds > 1


REMAIN = Stage(
    name="remain",
    artifact="remaining",
    version=1,
    sections=("memo", "target", "pipeline.threshold"),
    inputs=("facts", "model"),
    run=_remain,
    schema=SCHEMAS["remaining"],
    key=KEYS["remaining"],
    adopt=adopt_table,
    enabled=_has_rounds,
    resources="memo",
)
