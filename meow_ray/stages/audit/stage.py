"""The stage `audit`: attacks the tuned model and the controls, and gives verdicts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from meow_ray.config import Audit, Config
from meow_ray.core import storage
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import (
    AUDIT_SUMMARY_SCHEMA,
    KEYS,
    REPLIES_SCHEMA,
    SCHEMAS,
    VERDICTS_SCHEMA,
)
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.core.tables import Query
from meow_ray.models.refs import ModelRef
from meow_ray.stages.audit import hints, own, registry, reply_judge
from meow_ray.stages.audit.attack import Subject
from meow_ray.stages.audit.attacks.probabilities import VERBATIM
from meow_ray.stages.audit.derived.digests import is_converted, loaded_weights
from meow_ray.stages.audit.judging import Judged, key_of
from meow_ray.stages.audit.missing import settled, unasked_rows
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow, scored_rows
from meow_ray.stages.audit.subjects import subjects_of
from meow_ray.stages.audit.verdicts import AuditRow, Judgement, judge
from meow_ray.stages.audit.writing import ATTACKER
from meow_ray.stages.evaluate.sets import check_sets, read_sets
from meow_ray.stages.evaluate.stage import RETAIN_MODEL, SETS
from meow_ray.stages.inputs import COLUMNS, GENERATOR, TARGET, model_ref, target_prompt
from meow_ray.stages.memo.extraction import extraction_probability
from meow_ray.stages.model_checks import check_target, check_target_engine
from meow_ray.stages.paraphrases.stage import OF_GENERATOR
from meow_ray.stages.train import objectives

SUMMARY_FILE = "audit_summary.parquet"
"""Second table of `audit`: one row per attack and variant."""
VERDICTS_FILE = "verdicts.parquet"
"""Third table of `audit`: one row per fact and tier."""
REPLIES_FILE = "replies.parquet"
"""Fourth table of `audit`: the best replies. It holds text of facts."""

SAMPLES = (100, 10_000, 1_000_000)
"""Numbers of sampled replies for which the summary has (n, p)-extraction."""

MODELS = ("before", "after", "retain_model")
"""The models, in the order in which they are asked."""


def _audit(context: Context) -> dict[str, Any]:
    """Runs all attacks on all models, judges, and writes the tables."""
    from meow_ray.distributed import cluster, progress

    cluster.connect()
    audit = _audit_context(context)
    shortage = hints.shortage(audit.subjects, "retain_model" in audit.models, audit.spec)
    if shortage:
        progress.warn("audit", shortage)
    sending = reply_judge.hint(context.config)
    if sending:
        progress.warn("audit", sending)
    rows = sorted(map(_settled, _all_rows(audit)), key=key_of)
    judged = reply_judge.judge_replies(audit, rows)
    rows = sorted([*rows, *map(_settled, judged.rows)], key=key_of)
    judgement = judge([_judged(row) for row in rows], audit.spec)
    _write(context, rows, judgement, judged)
    return {
        **_figures(audit, rows, judgement),
        **reply_judge.figures(audit, judged),
        "loaded_weights": _loaded_weights(audit),
    }


def _settled(row: ScoredRow) -> ScoredRow:
    """Returns a row with a finite score or a reason."""
    return row._replace(outcome=settled(row.outcome))


def _all_rows(audit: AuditContext) -> Iterator[ScoredRow]:
    """Yields the rows of all attacks of the configuration.

    Attacks that ask questions are asked together, so that each model is loaded once for them.
    """
    sources = audit.context.inputs[own.OWN_ATTACKS.name].value
    asking = registry.asking_attacks(audit.spec, sources)
    answered = [
        row for model, ref in audit.models.items() for row in scored_rows(audit, model, ref, asking)
    ]
    yield from answered
    yield from unasked_rows(audit, asking, answered)
    for name, further in registry.FURTHER.items():
        if audit.runs(name):
            yield from further(audit)


# --- what is asked --------------------------------------------------------------------------------


def _audit_context(context: Context) -> AuditContext:
    from meow_ray.distributed import placement

    config = context.config
    on_gpu = placement.gpus_per_actor("audit", config.resources) > 0
    spec = resolved(config.audit, on_gpu)
    models = _models(context)
    return AuditContext(
        context=context,
        spec=spec,
        subjects=_subjects(context, spec, with_twins="retain_model" not in models),
        models=models,
        on_gpu=on_gpu,
    )


def resolved(spec: Audit, on_gpu: bool) -> Audit:
    """Returns the section with numbers in the place of `auto`."""
    attacker = spec.attacker
    auto: dict[str, Any] = {}
    if attacker.prompts == "auto":
        auto["prompts"] = 24 if on_gpu else 4
    if attacker.rounds == "auto":
        auto["rounds"] = 3 if on_gpu else 2
    changes: dict[str, Any] = {"attacker": attacker.model_copy(update=auto)}
    if spec.samples == "auto":
        changes["samples"] = 64 if on_gpu else 16
    return spec.model_copy(update=changes)


def _models(context: Context) -> dict[str, ModelRef]:
    """Returns the models by name; results of a retain model, read from a file, are no model."""
    before, after, retain = MODELS
    models = {
        before: model_ref(context.inputs["target"]),
        after: model_ref(context.inputs["model"]),
    }
    given = context.inputs[RETAIN_MODEL.name].value
    if isinstance(given, ModelRef):
        models[retain] = given
    return models


def _subjects(context: Context, spec: Audit, with_twins: bool) -> list[Subject]:
    """Returns the facts and, if they are the control, the twins."""
    inputs = context.inputs
    facts = inputs["facts"].source
    sets = read_sets(inputs[SETS.name].value, context.config)
    check_sets(Query("SELECT * FROM facts", {"facts": facts}), sets)
    twins = inputs["twins"]
    has_twins = twins.manifest is not None or twins.value is not None
    subjects = subjects_of(
        facts=facts,
        forget_set=sets.get("forget"),
        paraphrases=inputs["paraphrases"].source if "paraphrases" in inputs else None,
        twins=twins.source if has_twins else None,
        spec=spec,
    )
    return [subject for subject in subjects if with_twins or subject.group == "facts"]


# --- the tables -----------------------------------------------------------------------------------


def _judged(row: ScoredRow) -> AuditRow:
    return AuditRow(
        attack=row.attack,
        variant=row.variant,
        tier=row.tier,
        model=row.model,
        group=row.group,
        fact_id=row.fact_id,
        attempts=row.outcome.attempts,
        score=row.outcome.score,
        reason=row.outcome.reason,
    )


def _write(
    context: Context, rows: Sequence[ScoredRow], judgement: Judgement, judged: Judged
) -> None:
    """Writes the rows of `audit`, the summary, the verdicts and the best replies.

    An audit with a judge has a further column `judged`: what the judge says of the row's reply.
    """
    written = []
    replies = []
    for row in rows:
        reply = None
        if row.outcome.reply is not None:
            reply = storage.json_digest(key_of(row))[:16]
            replies.append({"reply": reply, "prompt": row.prompt, "text": row.outcome.reply})
        plain = _judged(row)
        written.append(
            plain._asdict()
            | {"low": row.outcome.low, "high": row.outcome.high}
            | {"extracted": judgement.extracted(plain), "reply": reply, "weights": row.weights}
        )
    table = pa.Table.from_pylist(written, schema=SCHEMAS["audit"])
    if context.config.audit.judge is not None:
        verdicts = [judged.by_row.get(key_of(row)) for row in rows]
        table = table.append_column("judged", pa.array(verdicts, pa.bool_()))
    context.write(table)
    for name, values, schema in (
        (SUMMARY_FILE, judgement.summary, AUDIT_SUMMARY_SCHEMA),
        (VERDICTS_FILE, judgement.verdicts, VERDICTS_SCHEMA),
        (REPLIES_FILE, replies, REPLIES_SCHEMA),
    ):
        context.write(pa.Table.from_pylist(list(values), schema=schema), name)


def _figures(
    audit: AuditContext, rows: Sequence[ScoredRow], judgement: Judgement
) -> dict[str, Any]:
    """Returns the figures for the manifest."""
    by_tier: dict[str, Counter[str]] = {}
    for verdict in judgement.verdicts:
        by_tier.setdefault(verdict["tier"], Counter())[verdict["verdict"]] += 1
    groups = Counter(subject.group for subject in audit.subjects)
    control = "retain_model" if "retain_model" in audit.models else "twins"
    return {
        "verdicts": {tier: dict(sorted(counts.items())) for tier, counts in by_tier.items()},
        "facts": groups["facts"],
        "twins": groups["twins"],
        "control": control if control in audit.models or groups["twins"] else None,
        "attacks": sorted({row.attack for row in rows}),
        "samples": audit.spec.samples,
        "extractable": _extractable(rows),
        "not_measured": Counter(row.outcome.reason for row in rows if row.outcome.reason),
    }


def _loaded_weights(audit: AuditContext) -> dict[str, str]:
    """Returns the digests of the weights of models that are merged or converted when loaded."""
    from meow_ray.distributed import cluster

    resources = audit.context.config.resources.audit
    options: dict[str, Any] = {"cpus": resources.cpus_per_actor, "labels": resources.node_labels}
    return {
        model: cluster.call(loaded_weights, ref, **options)
        for model, ref in audit.models.items()
        if is_converted(ref)
    }


def _extractable(rows: Sequence[ScoredRow]) -> dict[str, dict[str, float]]:
    """Returns the share of facts that some numbers of samples bring with a probability of 0.5.

    The numbers of samples are those of `SAMPLES`, by model. This is (n, p)-extraction, which needs
    no sample: the probability of an answer comes from one teacher-forced pass.
    """
    log_probs: dict[str, list[float]] = {}
    for row in rows:
        is_measured = row.group == "facts" and row.outcome.score is not None
        if is_measured and (row.attack, row.variant) == VERBATIM:
            assert row.outcome.score is not None
            log_probs.setdefault(row.model, []).append(min(row.outcome.score, 0.0))
    return {
        model: {
            str(number): sum(extraction_probability(value, number) >= 0.5 for value in values)
            / len(values)
            for number in SAMPLES
        }
        for model, values in log_probs.items()
    }


# --- the stage ------------------------------------------------------------------------------------


def _inputs(config: Config) -> tuple[Input, ...]:
    paraphrases = ("paraphrases",) if objectives.configured(config.train).paraphrases else ()
    return (
        "facts",
        SETS,
        TARGET,
        RETAIN_MODEL,
        "model",
        "twins" if hints.makes_twins(config) else hints.GIVEN_TWINS,
        *paraphrases,
        own.OWN_ATTACKS,
        *((ATTACKER,) if "attacker" in config.audit.attacks else ()),
        *((GENERATOR,) if "languages" in config.audit.attacks else ()),
        *((reply_judge.JUDGE_MODEL,) if config.audit.judge is not None else ()),
    )


AUDIT = Stage(
    name="audit",
    artifact="audit",
    version=1,
    sections=("audit", "target", *COLUMNS, *OF_GENERATOR),
    inputs=_inputs,
    run=_audit,
    schema=SCHEMAS["audit"],
    key=KEYS["audit"],
    adopt=adopt_table,
    enabled=lambda config: config.pipeline.audit,
    resources="audit",
    checks=(check_target, check_target_engine, reply_judge.check_judge),
    prompt=target_prompt,
)
