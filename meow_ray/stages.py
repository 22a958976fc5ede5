"""The stages: each glues pure functions to the cluster and writes one artefact."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray import candidates, evaluation, inverting, memo, metrics, models, selection, storage, tables
from meow_ray import facts as facts_module
from meow_ray.config import (
    Config,
    EngineResources,
    FineTuning,
    Invert,
    Source,
    Target,
    TrainResources,
)
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.finetune import Job
from meow_ray.generators import EndpointSpec, LocalSpec, endpoint_spec
from meow_ray.inverting import InvertSteps
from meow_ray.models import ModelRef
from meow_ray.schema import KEYS, SCHEMAS, TRUE_ANSWER
from meow_ray.scoring import SCORE_NAMES, MemoSteps
from meow_ray.stage import EXAMPLES, MAIN, REJECTS, SHORTFALL, Artifact, Context, Stage
from meow_ray.tables import Query

ROW = "row_id"
"""Column that names a row of an engine stage's work."""


def model_ref(artifact: Artifact) -> ModelRef:
    """Returns the model that an input is: one from outside, or the folder that a stage exported."""
    if isinstance(artifact.value, ModelRef):
        return artifact.value
    return ModelRef(artifact.uri, artifact.digest)


def engine_spec(ref: ModelRef, section: Target | Invert, resources: EngineResources) -> EngineSpec:
    """Says how a stage's actors load a model."""
    assert section.engine != "openai"
    return EngineSpec(
        model=replace(ref, trust_remote_code=section.trust_remote_code),
        engine=section.engine,
        dtype=section.dtype,
        max_model_len=section.max_model_len,
        tensor_parallel_size=resources.tensor_parallel_size,
        kv_cache_gib=resources.kv_cache_gib,
        gpu_memory_utilization=resources.gpu_memory_utilization,
    )


def read_sources(sources: Sequence[Source], config: Config) -> list[facts_module.Row]:
    """Reads sources with the column names of `ingest`."""
    spec = config.ingest
    return [row for source in sources for row in facts_module.read(source, spec.question_columns, spec.answer_columns)]


# --- memorize ---------------------------------------------------------------------------------------------------------


def _memorize(context: Context) -> dict[str, Any]:
    config = context.config
    assert config.memorize is not None
    rows = read_sources(context.inputs["memorize_data"].value, config)
    table, rejects = facts_module.build(rows, [], lambda question, answer: None)
    if rejects.num_rows:
        raise MeowError(f"memorize.data: {_rejects_text(rejects)}")
    return _fit(context, table, model_ref(context.inputs["base"]), config.memorize, "meow", "memorize")


def _fit(
    context: Context, pairs: pa.Table, ref: ModelRef, spec: FineTuning, objective: str, name: str
) -> dict[str, Any]:
    from meow_ray import ray_train

    resources: TrainResources = getattr(context.config.resources, name)
    path = storage.join(context.work, "pairs.parquet")
    storage.write_table(pairs.select(["question", "answer"]), path)
    job = Job(
        model=ref,
        pairs=path,
        template=context.config.target.template,
        system=context.config.target.system,
        spec=spec,
        objective=objective,
        micro_batch_size=resources.micro_batch_size,
        zero_stage=resources.zero_stage,
        checkpoint_every=resources.checkpoint_every,
        out=context.out,
    )
    return ray_train.fit(job, context.work, name, context.config.resources)


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
            f"{_rejects_text(rejects)}\nMend these rows, or set ingest.on_reject=skip to go on without them. "
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


def _rejects_text(rejects: pa.Table, most: int = 10) -> str:
    rows = rejects.slice(0, most).to_pylist()
    more = f"\n  … and {rejects.num_rows - most} more" if rejects.num_rows > most else ""
    lines = "".join(f"\n  {row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"{rejects.num_rows} rows were rejected:{lines}{more}"


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

    def ask(work: Callable[[Any, pa.Table], pa.Table], rows: Query, name: str) -> Query:
        place = storage.join(folder, name)
        return ray_data.map_rows(rows, "fact_id", loader, ray_data.Work(work), place, "invert", config.resources)

    rows = Query(_FACTS_TO_INVERT, {"facts": facts.source})
    style, tried = ("chat" if spec.engine == "openai" else spec.style), None
    if style == "auto":
        first = Query(f"SELECT * FROM ({rows.sql}) ORDER BY fact_id LIMIT {spec.probe_facts}", rows.sources)
        probed = ask(partial(inverting.probe, spec=spec), first, "probe")
        sums = ", ".join(f"sum(least({name}, {spec.num_candidates}))::INT AS {name}" for name in ("chat", "prefill"))
        tried = Query(f"SELECT {sums} FROM ({probed.sql})", probed.sources).rows()[0]
        style = "prefill" if tried["prefill"] > tried["chat"] else "chat"
    judge = None
    if spec.judge == "endpoint":
        judge = endpoint_spec(
            spec.judge_base_url, spec.judge_model, spec.judge_api_key_env, True, config.resources.invert
        )
    found = ask(InvertSteps(spec, style, facts.source, judge), rows, "asked")
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
    from meow_ray import ray_cluster, ray_data

    config, candidates = context.config, context.inputs["candidates"]
    ray_cluster.connect()
    if candidates.manifest is None:
        ray_cluster.call(tables.check_keys, candidates.source, "candidates", storage.display(candidates.uri))
    steps = MemoSteps(config.memo, config.target.template, config.target.system)
    engine = engine_spec(model_ref(context.inputs["target"]), config.target, config.resources.memo)
    work = ray_data.Work(steps.generate, steps.prepare, steps.finish, engine.model)
    rows = Query(_FACTS_TO_SCORE, {"candidates": candidates.source})
    found = ray_data.map_rows(rows, "fact_id", engine, work, context.work, "memo", config.resources)
    names = [*SCORE_NAMES, *config.memo.comparators]
    return {
        **ray_cluster.call(_write_memo, found, names, context.path()),
        "dtype": config.target.dtype,
        "max_new_tokens": config.memo.max_new_tokens,
        "window": config.memo.window,
        "stride": config.memo.step,
    }


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


# --- select -----------------------------------------------------------------------------------------------------------


def _select(context: Context) -> dict[str, Any]:
    memo_table = context.inputs["memo"]
    if memo_table.manifest is None:
        tables.check_keys(memo_table.source, "memo", storage.display(memo_table.uri))
    query = selection.select(memo_table.source, context.config.select)
    tables.write(query, context.path(), SCHEMAS["selected"], ("fact_id", "rank"))
    return selection.summarize(memo_table.source, [context.path()], context.config.select)


# --- train ------------------------------------------------------------------------------------------------------------


def _train(context: Context) -> dict[str, Any]:
    spec = context.config.train
    return _fit(
        context, context.inputs["selected"].table, model_ref(context.inputs["target"]), spec, spec.objective, "train"
    )


# --- evaluate ---------------------------------------------------------------------------------------------------------


def _evaluate(context: Context) -> dict[str, Any]:
    from meow_ray import ray_data

    config = context.config
    rows = _examples(context)
    work = partial(
        evaluation.evaluate_batch,
        spec=config.memo,
        template=config.target.template,
        system=config.target.system,
        max_new_tokens=config.evaluate.max_new_tokens,
    )
    found = []
    for name, source in (("before", "target"), ("after", "model")):
        ref = model_ref(context.inputs[source])
        spec = {"model": ref.digest, "rows": rows.to_pylist(), "version": EVALUATE.version}
        spec |= {part: getattr(config, part).spec() for part in ("target", "memo", "evaluate")}
        folder = storage.join(context.scratch, f"evaluate-{storage.json_digest(spec)[:32]}")
        engine = engine_spec(ref, config.target, config.resources.evaluate)
        done = ray_data.map_rows(rows, ROW, engine, ray_data.Work(work), folder, "evaluate", config.resources)
        with done.batches() as reader:
            table = reader.read_all().sort_by(ROW)
        found.append(table.append_column("model", pa.array([name] * table.num_rows)))
    examples = metrics.score_examples(pa.concat_tables(found), context.inputs["selected"].table)
    context.write(examples, EXAMPLES)
    context.write(metrics.aggregate(examples, config.evaluate.bootstrap_resamples, config.evaluate.seed))
    return {"examples": examples.num_rows, "suites": sorted(set(examples["suite"].to_pylist()))}


def _examples(context: Context) -> pa.Table:
    """Returns what is evaluated: row_id, suite, fact_id, question, answer, with_memo."""
    config, facts = context.config, context.inputs["facts"].table
    suites = {split: facts.filter(pc.field("split") == split).drop_columns(["split"]) for split in ("forget", "retain")}
    for name, source in context.inputs["sets"].value.items():
        table, rejects = facts_module.build(read_sources([source], config), [], lambda question, answer: None)
        if rejects.num_rows:
            raise MeowError(f"evaluate.sets.{name}: {_rejects_text(rejects)}")
        suites[name] = table.drop_columns(["split"])
    parts = []
    for name, table in suites.items():
        if name != "forget":
            table = selection.sample(table, config.evaluate.sample, config.evaluate.seed)
        scored = table
        if name != "forget":
            scored = selection.sample(table, config.evaluate.memo_sample, config.evaluate.seed)
        table = table.append_column("with_memo", pc.is_in(table["fact_id"], value_set=scored["fact_id"]))
        table = table.append_column("suite", pa.array([name] * table.num_rows, pa.string()))
        parts.append(table.append_column(ROW, pc.binary_join_element_wise(table["suite"], table["fact_id"], "/")))
    return pa.concat_tables(parts)


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
    2,
    ("memorize", *_COLUMNS, *_TEMPLATE),
    ("memorize_data", "base"),
    _memorize,
)
INGEST = Stage(
    "ingest",
    "facts",
    1,
    ("ingest", "target.max_model_len", "invert.max_model_len"),
    ("data", "target", "generator"),
    _ingest,
)
INVERT = Stage("invert", "candidates", 2, ("invert",), ("facts", "generator"), _invert)
MEMO = Stage("memo", "memo", 2, ("memo", "target"), ("candidates", "target"), _memo)
SELECT = Stage("select", "selected", 1, ("select",), ("memo",), _select)
TRAIN = Stage("train", "model", 2, ("train", *_TEMPLATE), ("selected", "target"), _train)
EVALUATE = Stage(
    "evaluate",
    "metrics",
    3,
    ("evaluate", "memo", "target", *_COLUMNS),
    ("facts", "sets", "selected", "target", "model"),
    _evaluate,
)
REPORT = Stage(
    "report",
    "report",
    1,
    ("report",),
    ("facts", "candidates", "memo", "selected", "target", "model", "metrics"),
    _report,
)

STAGES = (MEMORIZE, INGEST, INVERT, MEMO, SELECT, TRAIN, EVALUATE, REPORT)
"""The pipeline, in order; `memorize` belongs to it where the configuration has that section."""
