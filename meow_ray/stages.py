"""The stages: each glues pure functions to the cluster and writes one artefact."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray import (
    aggregation,
    candidates,
    checks,
    harness,
    inverting,
    memo,
    models,
    selection,
    storage,
    suites,
    tables,
    training,
)
from meow_ray import facts as facts_module
from meow_ray.config import Config
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.evaluation import EvaluateSteps
from meow_ray.facts import read_sources, rejects_text
from meow_ray.generators import EndpointSpec, LocalSpec, endpoint_spec
from meow_ray.inputs import engine_spec, model_ref
from meow_ray.inverting import InvertSteps
from meow_ray.models import ModelRef
from meow_ray.objectives import ObjectiveSpec
from meow_ray.schema import KEYS, ROW, SCHEMAS, TRUE_ANSWER
from meow_ray.scoring import SCORE_NAMES, MemoSteps
from meow_ray.sets import check_reference, check_sets, read_passages, read_sets
from meow_ray.stage import EXAMPLES, MAIN, REJECTS, SHORTFALL, Artifact, Context, Stage
from meow_ray.tables import Query

# --- ingest -----------------------------------------------------------------------------------------------------------


def _ingest(context: Context) -> dict[str, Any]:
    config, data = context.config, context.inputs["data"].value
    limits = [_limit(context, "target", config.target.max_model_len)]
    if isinstance(context.inputs["generator"].value, ModelRef):
        limits.append(_limit(context, "generator", config.invert.max_model_len))

    def too_long(question: str, answer: str) -> str | None:
        for name, tokenizer, limit in limits:
            count = len(tokenizer(f"{question} {answer}")["input_ids"])
            if count > limit:
                return f"too long: {count} tokens, the {name} model reads {limit} besides its prompt"
        return None

    forget = read_sources([data["forget"]], config)
    retain = read_sources([data["retain"]], config) if data["retain"] else []
    table, rejects = facts_module.build(forget, retain, too_long)
    context.write(rejects, REJECTS)
    if rejects.num_rows and config.ingest.on_reject == "fail":
        place = storage.join(context.work, REJECTS)
        storage.write_table(rejects, place)
        raise MeowError(
            f"{rejects_text(rejects)}\nMend these rows, or set ingest.on_reject=skip to go on without them. "
            f"All of them are in {storage.display(place)}."
        )
    if not pc.any(pc.equal(table["split"], "forget")).as_py():
        raise MeowError(f"{data['forget'].path}: no row is left to forget, all {rejects.num_rows} were rejected.")
    context.write(table)
    splits = Counter(table["split"].to_pylist())
    return {"forget": splits["forget"], "retain": splits["retain"], "rejected": rejects.num_rows}


PROMPT_RESERVE = 128
"""Tokens of a model's context that are kept for templates around a fact."""


def _limit(context: Context, name: str, max_model_len: int | None) -> tuple[str, Any, int]:
    ref = model_ref(context.inputs[name])
    length = models.context_length(ref, max_model_len)
    return name, models.load_tokenizer(ref), length - min(PROMPT_RESERVE, length // 4)


# --- invert -----------------------------------------------------------------------------------------------------------


def generator_spec(generator: Artifact, config: Config) -> LocalSpec | EndpointSpec:
    """Says how an actor of `invert` loads its generator."""
    spec, resources = config.invert, config.resources.invert
    if spec.engine == "openai":
        return endpoint_spec(spec.base_url, spec.model, spec.api_key_env, spec.structured, resources)
    if not isinstance(generator.value, ModelRef):
        raise MeowError(
            "`invert.model` is not set: name the model that writes inverted facts, or give --input candidates=."
        )
    return LocalSpec(engine_spec(model_ref(generator), spec, resources))


def _invert(context: Context) -> dict[str, Any]:
    from meow_ray import ray_cluster, ray_data

    config, facts, generator = context.config, context.inputs["facts"], context.inputs["generator"]
    spec, loader = config.invert, generator_spec(generator, config)
    # what is asked does not depend on what happens to facts with too few answers
    key = {"facts": facts.digest, "generator": generator.digest, "version": INVERT.version}
    folder = storage.join(
        context.scratch, f"invert-{storage.json_digest(key | spec.spec() | {'on_shortfall': None})[:32]}"
    )

    def ask(work: ray_data.Work, rows: Query, name: str) -> Query:
        place = storage.join(folder, name)
        return ray_data.map_rows(rows, "fact_id", loader, work, place, "invert", config.resources)

    rows = Query(_FACTS_TO_INVERT, {"facts": facts.source})
    style, tried = ("chat" if spec.engine == "openai" else spec.style), None
    if style == "auto":
        first = Query(f"SELECT * FROM ({rows.sql}) ORDER BY fact_id LIMIT {spec.probe_facts}", rows.sources)
        probed = ask(ray_data.Work(partial(inverting.probe, spec=spec)), first, "probe")
        sums = ", ".join(f"sum(least({name}, {spec.num_candidates}))::INT AS {name}" for name in ("chat", "prefill"))
        tried = Query(f"SELECT {sums} FROM ({probed.sql})", probed.sources).rows()[0]
        style = "prefill" if tried["prefill"] > tried["chat"] else "chat"
    judge = None
    if spec.judge == "endpoint":
        judge = endpoint_spec(
            spec.judge_base_url, spec.judge_model, spec.judge_api_key_env, True, config.resources.invert
        )
    steps = InvertSteps(spec, style, facts.source, judge)
    found = ask(ray_data.Work(steps, observe=steps.figures), rows, "asked")
    paths = {name: context.path(name) for name in (MAIN, REJECTS, SHORTFALL)}
    label = spec.model if spec.engine == "openai" else _label(model_ref(generator))
    summary = ray_cluster.call(candidates.write, found, spec.num_candidates, spec.on_shortfall, label, paths)
    storage.remove(folder)
    return {"style": style, "probe": tried, **summary}


def _label(ref: ModelRef) -> str:
    return ref.uri if ref.commit else PurePosixPath(ref.uri).name


_FACTS_TO_INVERT = """
    SELECT fact_id, question, answer FROM facts WHERE split = 'forget'
    ORDER BY strlen(question) + strlen(answer) DESC, fact_id
"""


# --- memo -------------------------------------------------------------------------------------------------------------

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
    from meow_ray import ray_cluster

    config, candidates = context.config, context.inputs["candidates"]
    ray_cluster.connect()
    if candidates.manifest is None:
        ray_cluster.call(checks.check_keys, candidates.source, "candidates", storage.display(candidates.uri))
    found = _scored(context, Query(_FACTS_TO_SCORE, {"candidates": candidates.source}), "target")
    names = [*SCORE_NAMES, *config.memo.comparators]
    return {
        **ray_cluster.call(_write_memo, found, names, context.path()),
        "dtype": config.target.dtype,
        "max_new_tokens": config.memo.max_new_tokens,
        "window": config.memo.window,
        "stride": config.memo.step,
    }


def _scored(context: Context, rows: Query, model: str) -> Query:
    """Scores facts, each a row with its answers, on the input that is named."""
    from meow_ray import ray_data

    config = context.config
    steps = MemoSteps(config.memo, config.target.template, config.target.system)
    engine = engine_spec(model_ref(context.inputs[model]), config.target, config.resources.memo)
    work = ray_data.Work(steps.generate, steps.prepare, steps.finish, engine.model, steps.figures)
    return ray_data.map_rows(rows, "fact_id", engine, work, context.work, "memo", config.resources)


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
    generations = Query(f"SELECT sum(generations)::BIGINT AS n FROM ({found.sql})", found.sources).rows()[0]["n"]
    return memo.summarize([path]) | {"generations": generations or 0}


def _remain(context: Context) -> dict[str, Any]:
    """Keeps the facts that a tuned model still has memorised, and the retain set."""
    config, facts = context.config, context.inputs["facts"]
    found = _scored(context, Query(_FACTS_TO_CHECK, {"facts": facts.source}), "model")
    scores = Query(f"SELECT fact_id, scores[1].memo AS memo FROM ({found.sql})", found.sources).rows()
    above = {row["fact_id"] for row in scores if row["memo"] is not None and row["memo"] > config.pipeline.threshold}
    table = facts.table
    kept = pc.or_(pc.equal(table["split"], "retain"), pc.is_in(table["fact_id"], pa.array(sorted(above), pa.string())))
    context.write(table.filter(kept))
    return {"facts": len(scores), "above": len(above), "threshold": config.pipeline.threshold}


_FACTS_TO_CHECK = f"""
    SELECT fact_id, question, [{TRUE_ANSWER}::INTEGER] AS candidate_ids, [answer] AS texts
    FROM facts WHERE split = 'forget' ORDER BY strlen(answer) DESC, fact_id
"""


# --- select -----------------------------------------------------------------------------------------------------------


def _select(context: Context) -> dict[str, Any]:
    memo_table = context.inputs["memo"]
    if memo_table.manifest is None:
        checks.check_keys(memo_table.source, "memo", storage.display(memo_table.uri))
    query = selection.select(memo_table.source, context.config.select)
    tables.write(query, context.path(), SCHEMAS["selected"], ("fact_id", "rank"))
    return selection.summarize(memo_table.source, [context.path()], context.config.select)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def _check_evaluate(config: Config, inputs: Mapping[str, Artifact]) -> None:
    """Refuses what would be refused, or fail, once all models have been asked."""
    harness.check(config.evaluate.lm_eval)
    read_passages(inputs["text"])
    sets, reference = read_sets(inputs["sets"].value, config), inputs["retain_model"]
    if isinstance(reference.value, dict):
        check_reference(sets.get("forget"), reference.value, storage.display(reference.uri))
    if "facts" in inputs:
        check_sets(Query("SELECT * FROM facts", {"facts": inputs["facts"].source}), sets)


def _evaluate(context: Context) -> dict[str, Any]:
    from meow_ray import ray_cluster, ray_data

    config, spec, retain_model = context.config, context.config.evaluate, context.inputs["retain_model"]
    models_of = {"before": context.inputs["target"], "after": context.inputs["model"]}
    if isinstance(retain_model.value, ModelRef):
        models_of[aggregation.REFERENCE] = retain_model
    # what the models are asked does not depend on how it is summed up
    key: dict[str, Any] = {name: context.inputs[name].digest for name in ("facts", "sets", "text", "task_folder")}
    key |= {"version": EVALUATE.version, "target": config.target.spec(), "memo": config.memo.spec()}
    key["columns"] = [config.ingest.question_columns, config.ingest.answer_columns]
    key["evaluate"] = spec.spec() | {"bootstrap_resamples": None}
    rows = storage.join(context.scratch, f"evaluate-{storage.json_digest(key)[:32]}.parquet")
    ray_cluster.connect()
    if not storage.exists(rows):
        sets, passages = read_sets(context.inputs["sets"].value, config), read_passages(context.inputs["text"])
        ray_cluster.call(suites.write_rows, context.inputs["facts"].source, sets, passages, spec, rows)
    steps = EvaluateSteps(spec, config.memo, config.target.template, config.target.system)
    order = Query(f"SELECT * FROM rows ORDER BY strlen(question) + strlen(answer) DESC, {ROW}", {"rows": [rows]})
    found, scores = {}, []
    for name, model in models_of.items():
        ref = model_ref(model)
        folder = storage.join(context.scratch, f"evaluate-{storage.json_digest(key | {'model': ref.digest})[:32]}")
        engine = engine_spec(ref, config.target, config.resources.evaluate)
        work = ray_data.Work(steps.generate, finish=steps.finish, model=engine.model)
        found[name] = ray_data.map_rows(order, ROW, engine, work, folder, "evaluate", config.resources)
        scores += [row | {"model": name} for row in _task_scores(context, engine, folder)]
    paths = (context.path(EXAMPLES), context.path())
    results = retain_model.value if isinstance(retain_model.value, dict) else None
    selected = context.inputs["selected"].source
    return ray_cluster.call(aggregation.write, found, selected, spec, results, scores, paths)


def _task_scores(context: Context, engine: EngineSpec, folder: str) -> list[dict[str, Any]]:
    """Returns what lm-evaluation-harness says of a model; kept in the folder of its work."""
    from meow_ray import placement, ray_cluster

    spec, resources, done = context.config.evaluate, context.config.resources, storage.join(folder, "lm_eval")
    if not spec.lm_eval.tasks:
        return []
    if not storage.exists(done):
        arguments = (engine, spec.lm_eval, storage.display(context.inputs["task_folder"].uri) or None)
        own = resources.evaluate
        gpus, labels = placement.gpus_per_actor("evaluate", resources), own.node_labels
        rows = ray_cluster.call(harness.run, *arguments, own.batch_size, spec.seed, gpus=gpus, labels=labels)
        storage.write_json(done, rows)
    return list(storage.read_json(done))


# --- report -----------------------------------------------------------------------------------------------------------


def _report(context: Context) -> dict[str, Any]:
    from meow_ray import report

    page = report.render(context.config.report, context.inputs)
    storage.write_bytes(storage.join(context.out, "report.html"), page.encode())
    return {"bytes": len(page.encode())}


_TEMPLATE = ("target.template", "target.system")
_COLUMNS = ("ingest.question_columns", "ingest.answer_columns")
MEMORIZE = Stage(
    "memorize",
    "target",
    3,
    ("memorize", *_COLUMNS, *_TEMPLATE),
    ("memorize_data", "base"),
    training.memorize,
    "memorize",
)
INGEST = Stage(
    "ingest",
    "facts",
    1,
    ("ingest", "target.max_model_len", "invert.max_model_len"),
    ("data", "target", "generator"),
    _ingest,
)
INVERT = Stage("invert", "candidates", 2, ("invert",), ("facts", "generator"), _invert, "invert")
MEMO = Stage("memo", "memo", 2, ("memo", "target"), ("candidates", "target"), _memo, "memo")
SELECT = Stage("select", "selected", 1, ("select",), ("memo",), _select)
REFERENCE = Stage(
    "reference",
    "reference",
    1,
    ("target",),
    ("target", "roles"),
    training.reference,
    "memo",
)
TRAIN = Stage(
    "train",
    "model",
    3,
    ("train", *_TEMPLATE, "target.trust_remote_code"),
    ("target", "objective"),
    training.train,
    "train",
)
REMAIN = Stage("remain", "remaining", 1, ("memo", "target", "pipeline.threshold"), ("facts", "model"), _remain, "memo")
EVALUATE = Stage(
    "evaluate",
    "metrics",
    5,
    ("evaluate", "memo", "target", *_COLUMNS),
    ("facts", "sets", "text", "task_folder", "selected", "target", "model", "retain_model"),
    _evaluate,
    "evaluate",
    _check_evaluate,
)
REPORT = Stage(
    "report",
    "report",
    1,
    ("report",),
    ("facts", "candidates", "memo", "selected", "target", "model", "metrics"),
    _report,
)

STAGES = (MEMORIZE, INGEST, INVERT, MEMO, SELECT, REFERENCE, TRAIN, REMAIN, EVALUATE, REPORT)
"""The pipeline, in order."""


def stages_of(config: Config, objective: ObjectiveSpec) -> list[Stage]:
    """Returns the stages that a configuration has, with the inputs that its objective reads."""
    left_out = set()
    if config.memorize is None:
        left_out.add("memorize")
    if objective.reference != "log_probs":
        left_out.add("reference")
    if config.pipeline.rounds == 1:
        left_out.add("remain")
    return [_with_inputs(stage, config, objective) for stage in STAGES if stage.name not in left_out]


def _with_inputs(stage: Stage, config: Config, objective: ObjectiveSpec) -> Stage:
    more: list[str] = []
    if stage.name in ("reference", "train"):
        roles = objective.reads if stage.name == "reference" else objective.roles
        more += ["selected"] if "inverted" in roles else []
        more += ["facts"] if set(roles) - {"inverted"} else []
    if stage.name == "train" and objective.reference == "log_probs":
        more.append("reference")
    if stage.name in ("memorize", "train") and getattr(config, stage.name).deepspeed:
        more.append(f"{stage.name}_deepspeed")
    return replace(stage, inputs=(*more, *stage.inputs))
