"""The rows of the attacks `quantise`, `prune` and `relearn`."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.schema import ROW
from meow_ray.stages.audit.attack import Outcome, Tier
from meow_ray.stages.audit.derived.bench import (
    BenchSpec,
    DerivedSteps,
    Job,
    asked_subjects,
    jobs_of,
    variants,
)
from meow_ray.stages.audit.reasons import Reason
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow, scored_row
from meow_ray.stages.inputs import target_prompt

VERSION = 2
"""Raised whenever a derived model of the same model gives other answers."""

TIERS: dict[str, Tier] = {
    "quantise": "static weights",
    "prune": "static weights",
    "relearn": "weights and compute",
}
"""What an attacker needs for each attack that derives models."""
_SETTINGS = {
    "quantise": ("quantise",),
    "prune": ("prune", "sparsities", "recovery_steps", "relearn"),
    "relearn": ("relearn",),
}
"""The fields of the section `audit` that each attack reads, apart from seed and length."""

_JOBS_SCHEMA = pa.schema(
    [
        (ROW, pa.string()),
        *((name, pa.string()) for name in ("attack", "kind", "model", "group")),
        ("taught", pa.int32()),
    ]
)


def quantise(audit: AuditContext) -> Iterator[ScoredRow]:
    """Rounds the weights of each model to fewer bits, and asks it; see `derived.quantise`.

    Variants: the formats of `audit.quantise`. Budget: two greedy replies per fact and format, to
    the question and to the question with half of the answer.
    """
    return _rows(audit, "quantise")


def prune(audit: AuditContext) -> Iterator[ScoredRow]:
    """Sets the least important weights of each model to 0, and asks it; see `derived.prune`.

    Variants: `wanda 30 %` and so on; with `audit.recovery_steps` also `wanda 30 %, recovery 20`,
    after training on unrelated text with the pruned weights held at 0. Budget: as `quantise`.
    """
    return _rows(audit, "prune")


def relearn_rows(audit: AuditContext) -> Iterator[ScoredRow]:
    """Teaches each model half of the facts and asks for the others; see `derived.relearn`.

    Variants: `facts, step 25` and so on, and `unrelated, step 25` after training on unrelated text,
    which asks for all facts. The control is the retain model, taught and asked like the others;
    without one it is `before`, taught half of the twins and asked for the other half. Budget: the
    training steps, and two greedy replies per fact.
    """
    return _rows(audit, "relearn")


def _rows(audit: AuditContext, attack: str) -> Iterator[ScoredRow]:
    """Does the jobs of an attack in actors; yields a row per variant, model and subject.

    What could not be measured has a reason and no score, and is a warning of the run.
    """
    from meow_ray.distributed import map_rows, progress

    context = audit.context
    config = context.config
    asked = {model: audit.asked_of(model) for model in audit.models}
    spec = BenchSpec(
        engines={
            model: context.engine_spec(ref, config.target, config.resources.audit)
            for model, ref in audit.models.items()
        },
        subjects=asked,
        audit=audit.spec,
        template=config.target.template,
        system=config.target.system,
        variables=config.target.template_variables,
    )
    jobs = list(jobs_of(attack, asked, audit.spec))
    if not jobs:
        return
    one_at_a_time = config.resources.audit.model_copy(update={"batch_size": 1})
    resources = config.resources.model_copy(update={"audit": one_at_a_time})
    work = map_rows.BatchWork(DerivedSteps().generate)
    with context.shared_work(f"audit-{storage.json_digest(_key(audit, attack))[:32]}") as folder:
        done = map_rows.map_rows(_table(jobs), ROW, spec, work, folder, "audit", resources)
        found = sorted(done.rows(), key=lambda row: str(row[ROW]))
    warnings: dict[str, None] = {}
    for row in found:
        job = Job(**{name: row[name] for name in Job._fields})
        if row["reason"]:
            warnings[f"{attack}, {job.kind}, {job.model}: {row['detail']}."] = None
        yield from _rows_of_job(audit, job, row["results"], row["reason"])
    for warning in warnings:
        progress.warn("audit", f"not measured: {warning}")


def _rows_of_job(
    audit: AuditContext, job: Job, results: list[dict[str, Any]], reason: Reason | None
) -> Iterator[ScoredRow]:
    """Yields the rows of a job; subjects without a result have the reason and no score."""
    by_key = {(each["variant"], each["group"], each["fact_id"]): each for each in results}
    for variant in variants(job, audit.spec):
        for subject in asked_subjects(job, audit.asked_of(job.model), audit.spec):
            result = by_key.get((variant, subject.group, subject.fact_id))
            outcome = Outcome(None, 0, reason=reason)
            if result:
                outcome = Outcome(
                    result["score"], result["attempts"], result["reply"], reason=result["reason"]
                )
            evidence = {name: result[name] for name in ("prompt", "weights")} if result else {}
            yield scored_row(
                job.attack, variant, TIERS[job.attack], job.model, subject, outcome, **evidence
            )


def _table(jobs: list[Job]) -> pa.Table:
    """Returns jobs as a table whose order keeps those of a model together."""
    rows = [{ROW: f"{number:06}", **job._asdict()} for number, job in enumerate(jobs)]
    return pa.Table.from_pylist(rows, schema=_JOBS_SCHEMA)


def _key(audit: AuditContext, attack: str) -> dict[str, Any]:
    """Returns what decides the results of an attack."""
    config = audit.context.config
    spec = audit.spec.spec()
    return {
        "version": VERSION,
        "attack": attack,
        "models": {model: ref.digest for model, ref in audit.models.items()},
        "on_gpu": audit.on_gpu,  # what needs a GPU is missing without one
        "subjects": storage.json_digest(
            [[s.group, s.fact_id, s.question, s.answer] for s in audit.subjects]
        ),
        "target": config.target.spec(),
        "prompt": target_prompt(config, audit.context.inputs),
        "audit": {name: spec[name] for name in (*_SETTINGS[attack], "max_new_tokens", "seed")},
    }
