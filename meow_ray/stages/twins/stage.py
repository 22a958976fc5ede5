"""The stage `twins`, which makes facts that no model has seen from the inverted facts."""

from collections import Counter
from typing import Any

import pyarrow as pa

from meow_ray.core import checks, storage
from meow_ray.core.manifest import REJECTS_FILE
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, PAIR_REJECTS_SCHEMA, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.twins.making import (
    HALVES,
    FactWithCandidates,
    Twinned,
    make_twins,
    twins_per_half,
)
from meow_ray.stages.twins.preflight import CHECKS

_FACTS_WITH_CANDIDATES = """
    WITH forget_facts AS (
        SELECT fact_id, question, answer FROM facts WHERE split = 'forget'
    ),
    answered AS (
        SELECT fact_id, candidate_id, inverted_answer
        FROM candidates
        WHERE candidate_id >= 0 AND inverted_answer IS NOT NULL
    )
    SELECT
        fact_id,
        any_value(question) AS question,
        any_value(answer) AS answer,
        list(candidate_id ORDER BY candidate_id)
            FILTER (WHERE candidate_id IS NOT NULL) AS candidate_ids,
        list(inverted_answer ORDER BY candidate_id)
            FILTER (WHERE candidate_id IS NOT NULL) AS inverted_answers
    FROM forget_facts LEFT JOIN answered USING (fact_id)
    GROUP BY fact_id
    ORDER BY fact_id
"""


def _twins(context: Context) -> dict[str, Any]:
    spec = context.config.twins
    sources = {}
    for name in ("facts", "candidates"):
        artifact = context.inputs[name]
        if artifact.manifest is None:  # a user's own table
            checks.check_keys(artifact.source, name, storage.display(artifact.uri))
        sources[name] = artifact.source
    facts = [_with_candidates(row) for row in Query(_FACTS_WITH_CANDIDATES, sources).rows()]
    per_half = twins_per_half(facts, spec)
    made = make_twins(facts, per_half, spec)
    figures = _figures(made, len(facts), per_half)
    _check_halves(figures)
    context.write(pa.Table.from_pylist(made.twins, schema=SCHEMAS["twins"]))
    context.write(pa.Table.from_pylist(made.rejects, schema=PAIR_REJECTS_SCHEMA), REJECTS_FILE)
    return figures


def _with_candidates(row: dict[str, Any]) -> FactWithCandidates:
    numbers, texts = row["candidate_ids"] or [], row["inverted_answers"] or []
    return FactWithCandidates(
        fact_id=row["fact_id"],
        fact=Fact(row["question"], row["answer"]),
        candidates=list(zip(numbers, texts, strict=True)),
    )


def _figures(made: Twinned, num_facts: int, per_half: int) -> dict[str, Any]:
    """Returns the figures for the manifest."""
    by_half = Counter(row["half"] for row in made.twins)
    by_reason = Counter(row["reason"] for row in made.rejects)
    return {
        "facts": num_facts,
        "facts_with_none": num_facts - len({row["fact_id"] for row in made.twins}),
        "per_half": per_half,
        **{half: by_half[half] for half in HALVES},
        "rejected_by_reason": dict(by_reason.most_common()),
    }


def _check_halves(figures: dict[str, Any]) -> None:
    """Raises MeowError if a half has no twin."""
    for half in HALVES:
        if not figures[half]:
            reasons = figures["rejected_by_reason"] or "no inverted facts for it"
            raise MeowError(
                f"`twins`: the half {half} has no twin (rejected: {reasons}). Write questions that "
                "name somebody or something, and at least two inverted facts per fact "
                "(`invert.num_candidates`), or give --input twins=URI."
            )


TWINS = Stage(
    name="twins",
    artifact="twins",
    version=1,
    sections=("twins",),
    inputs=("facts", "candidates"),
    run=_twins,
    schema=SCHEMAS["twins"],
    key=KEYS["twins"],
    checks=CHECKS,
    adopt=adopt_table,
)
