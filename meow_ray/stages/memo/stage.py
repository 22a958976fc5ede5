"""The stages `memo` and `remain`, which score answers with MEMO.

`memo` scores all answers on the target. `remain` runs between two rounds: it scores the true
answers on the tuned model and keeps the facts that this model still has memorised.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS, TRUE_ANSWER
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.models.text import TOKENIZER
from meow_ray.stages.inputs import TARGET, model_ref, target_prompt
from meow_ray.stages.memo import summary
from meow_ray.stages.memo.bounds import Choice
from meow_ray.stages.memo.preflight import CHECKS
from meow_ray.stages.memo.steps import BOUNDS_NAMES, MemoSteps, score_columns
from meow_ray.stages.model_checks import check_target, check_target_engine

_FACTS_TO_SCORE = f"""
    WITH
    -- one row per fact: its true answer and the candidates in order
    facts AS (
        SELECT
            fact_id,
            any_value(question) AS question,
            any_value(answer) AS answer,
            list(candidate_id::INTEGER ORDER BY candidate_id) FILTER (WHERE candidate_id >= 0)
                AS candidate_ids,
            list(inverted_answer ORDER BY candidate_id) FILTER (WHERE candidate_id >= 0)
                AS inverted_answers,
            sum(strlen(coalesce(inverted_answer, ''))) AS inverted_length
        FROM candidates
        GROUP BY fact_id
    )
    SELECT
        fact_id,
        question,
        list_prepend({TRUE_ANSWER}::INTEGER, candidate_ids) AS candidate_ids,
        list_prepend(answer, inverted_answers) AS texts
    FROM facts
    ORDER BY strlen(answer) + inverted_length DESC, fact_id
"""
"""Facts with all their answers, the true one first; facts with the longest texts come first."""

_FACTS_TO_CHECK = f"""
    SELECT fact_id, question, [{TRUE_ANSWER}::INTEGER] AS candidate_ids, [answer] AS texts
    FROM facts
    WHERE split = 'forget'
    ORDER BY strlen(answer) DESC, fact_id
"""
"""The facts to forget with their true answers, in the same form; the longest answers come first."""


def _memo(context: Context) -> dict[str, Any]:
    """Scores the true answer and all candidates of each fact on the target."""
    from meow_ray.distributed import cluster

    config = context.config
    candidates = context.inputs["candidates"]
    cluster.connect()
    if candidates.manifest is None:  # a user's own table
        cluster.call(
            checks.check_keys, candidates.source, "candidates", storage.display(candidates.uri)
        )
    facts = Query(_FACTS_TO_SCORE, {"candidates": candidates.source})
    choice = None
    if _depends_on_select(config):
        order = config.select.order
        assert order != "random", "refused before the run"
        choice = Choice(config.select.top_k, order)
    scored = _score_facts(context, facts, model="target", choice=choice)
    columns = score_columns(config.memo, choice)
    figures = cluster.call(_write_memo, scored, columns, context.path())
    return {
        **figures,
        "exact": config.memo.exact,
        "tokenizer": TOKENIZER,
        "dtype": config.target.dtype,
        "max_new_tokens": config.memo.max_new_tokens,
        "window": config.memo.window,
        "stride": config.memo.step,
    }


def _score_facts(context: Context, facts: Query, model: str, choice: Choice | None = None) -> Query:
    """Scores facts on Ray.

    Args:
        context: of the stage.
        facts: the facts with all answers to score.
        model: the input that is the model.
        choice: what `select` will choose; None scores all answers.

    Returns:
        The facts with the columns that `MemoSteps.finish` adds.
    """
    from meow_ray.distributed import map_rows

    config = context.config
    target = config.target
    steps = MemoSteps(
        config.memo, target.template, target.system, target.template_variables, choice
    )
    engine = context.engine_spec(
        model_ref(context.inputs[model]), config.target, config.resources.memo
    )
    work = map_rows.BatchWork(
        generate=steps.generate,
        prepare=steps.prepare,
        finish=steps.finish,
        model=engine.model,
        observe=steps.figures,
    )
    return map_rows.map_rows(facts, "fact_id", engine, work, context.work, "memo", config.resources)


def _write_memo(scored: Query, columns: Sequence[str], path: str) -> dict[str, Any]:
    """Writes the table `memo`, one row per answer; returns the figures for the manifest."""
    scores = ", ".join(f"score.{name} AS {name}" for name in columns)
    answers = f"""
        WITH
        facts AS ({scored.sql}),
        -- one row per answer with the struct of its scores
        answers AS (
            SELECT
                fact_id,
                question,
                unnest(candidate_ids) AS candidate_id,
                unnest(texts) AS text,
                unnest(scores) AS score
            FROM facts
        )
        SELECT fact_id, candidate_id, question, text, {scores}
        FROM answers
        ORDER BY fact_id, candidate_id
    """
    generations = f"SELECT sum(generations)::BIGINT AS total FROM ({scored.sql})"
    tables.write_sorted(Query(answers, scored.sources), path, SCHEMAS["memo"], KEYS["memo"])
    total = Query(generations, scored.sources).rows()[0]["total"]
    has_bounds = set(BOUNDS_NAMES) <= set(columns)
    return summary.summarize([path], has_bounds=has_bounds) | {"generations": total or 0}


def _remain(context: Context) -> dict[str, Any]:
    """Writes the facts that the tuned model still has memorised, and the retain set."""
    config = context.config
    facts = context.inputs["facts"]
    scored = _score_facts(context, Query(_FACTS_TO_CHECK, {"facts": facts.source}), model="model")
    scores = Query(
        f"SELECT fact_id, scores[1].memo AS memo FROM ({scored.sql})", scored.sources
    ).rows()
    threshold = config.pipeline.threshold
    memorised = sorted(
        row["fact_id"] for row in scores if row["memo"] is not None and row["memo"] > threshold
    )
    table = facts.table
    is_retain = pc.equal(table["split"], "retain")
    is_memorised = pc.is_in(table["fact_id"], pa.array(memorised, pa.string()))
    context.write(table.filter(pc.or_(is_retain, is_memorised)))
    return {"facts": len(scores), "above": len(memorised), "threshold": threshold}


def _prompt(config: Config, inputs: Mapping[str, Artifact]) -> str | None:
    """Returns the digest of a prompt that changes by itself; raw prompts do not."""
    return target_prompt(config, inputs) if config.memo.template == "target" else None


def _prompt_of_tuned(config: Config, inputs: Mapping[str, Artifact]) -> str | None:
    """Returns the same for the tuned model, which has the target's template."""
    return _prompt(config, {"target": inputs["model"]})


def _depends_on_select(config: Config) -> bool:
    return config.memo.exact == "selection"


def _choice_settings(config: Config) -> tuple[str, ...]:
    """Returns the settings of `select` that decide which answers get an exact score, if any do."""
    return ("select.top_k", "select.order") if _depends_on_select(config) else ()


def _has_rounds(config: Config) -> bool:
    return config.pipeline.rounds > 1


MEMO = Stage(
    name="memo",
    artifact="memo",
    version=3,
    sections=("memo", "target"),
    more_sections=_choice_settings,
    inputs=("candidates", TARGET),
    run=_memo,
    prompt=_prompt,
    schema=SCHEMAS["memo"],
    key=KEYS["memo"],
    adopt=adopt_table,
    resources="memo",
    checks=CHECKS,
)

REMAIN = Stage(
    name="remain",
    artifact="remaining",
    version=2,
    sections=("memo", "target", "pipeline.threshold"),
    inputs=("facts", "model"),
    run=_remain,
    prompt=_prompt_of_tuned,
    schema=SCHEMAS["remaining"],
    key=KEYS["remaining"],
    adopt=adopt_table,
    enabled=_has_rounds,
    resources="memo",
    checks=(check_target, check_target_engine),
)
