"""The stage `evaluate`: measures forgetting and utility."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import EXAMPLES_FILE, Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, ROW, SCHEMAS
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.core.tables import Query
from meow_ray.engines import EngineSpec
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.models.text import TOKENIZER
from meow_ray.stages.evaluate import aggregate, lm_eval, suites, tofu_logs
from meow_ray.stages.evaluate.preflight import CHECKS, check_harness_after_training
from meow_ray.stages.evaluate.sets import read_passages, read_sets
from meow_ray.stages.evaluate.steps import EvaluateSteps
from meow_ray.stages.evaluate.tofu import ModelLog
from meow_ray.stages.inputs import (
    COLUMNS,
    TARGET,
    adopt_model,
    data_sources,
    model_ref,
    optional_path,
    target_prompt,
    thinking_hint,
)
from meow_ray.stages.train.objectives import compares_with_twins


def _models(inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """Returns the models to evaluate, by their name in the column `model`."""
    models = {"before": inputs["target"]}
    if "model" in inputs:
        models["after"] = inputs["model"]
    if isinstance(inputs["retain_model"].value, ModelRef):
        models[aggregate.RETAIN_MODEL] = inputs["retain_model"]
    return models


def _evaluate(context: Context) -> dict[str, Any]:
    """Asks the models and writes examples and metrics; returns the summary for the manifest."""
    from meow_ray.distributed import cluster, progress

    cluster.connect()
    thinks = thinking_hint(context.inputs["target"], context.config.target)
    if thinks:
        progress.warn("evaluate", thinks)
    key = _work_key(context)
    rows_uri = _write_rows(context, key)
    answered: dict[str, Query] = {}
    task_scores: list[dict[str, Any]] = []
    for name, model in _models(context.inputs).items():
        ref = model_ref(model)
        engine = context.engine_spec(ref, context.config.target, context.config.resources.evaluate)
        with context.shared_work(_work_name(key | {"model": ref.digest})) as folder:
            answered[name] = _ask(context, engine, rows_uri, folder)
            scores = _task_scores(context, engine, folder)
        task_scores += [row | {"model": name} for row in scores]
    retain_log = context.inputs["retain_model"].value
    selected = context.inputs.get("selected")
    write_metrics = partial(
        aggregate.write_metrics,
        answered=answered,
        selected=selected.source if selected else SCHEMAS["selected"].empty_table(),
        spec=context.config.evaluate,
        retain_log=retain_log if isinstance(retain_log, ModelLog) else None,
        task_scores=task_scores,
        examples_uri=context.path(EXAMPLES_FILE),
        metrics_uri=context.path(),
    )
    figures: dict[str, Any] = cluster.call(write_metrics)
    return figures | {"tokenizer": TOKENIZER}


def _work_key(context: Context) -> dict[str, Any]:
    """Returns what decides the rows that models are asked and their answers, but not the model."""
    config = context.config
    digests = {
        name: context.inputs[name].digest
        for name in ("facts", "sets", "text", "task_folder", "twins")
        if name in context.inputs
    }
    return digests | {
        "version": EVALUATE.version,
        "target": config.target.spec(),
        "prompt": target_prompt(config, context.inputs),
        "memo": config.memo.spec(),
        "columns": [config.ingest.question_columns, config.ingest.answer_columns],
        # the bootstrap summarises answers and does not change them
        "evaluate": config.evaluate.spec() | {"bootstrap_resamples": None},
    }


def _work_name(key: Mapping[str, Any]) -> str:
    return f"evaluate-{storage.json_digest(key)[:32]}"


def _write_rows(context: Context, key: Mapping[str, Any]) -> str:
    """Writes the rows to ask unless an earlier run has done so; returns their URI."""
    from meow_ray.distributed import cluster

    with context.shared_work(_work_name(key)) as folder:
        uri = storage.join(folder, "rows.parquet")
        if not storage.exists(uri):
            sets = read_sets(context.inputs["sets"].value, context.config)
            passages = read_passages(context.inputs["text"], context.config.ingest.encoding)
            facts = context.inputs["facts"].source
            twins = context.inputs["twins"].source if "twins" in context.inputs else None
            spec = context.config.evaluate
            cluster.call(suites.write_rows, facts, sets, passages, twins, spec, uri)
    return uri


def _ask(context: Context, engine: EngineSpec, rows_uri: str, folder: str) -> Query:
    """Lets a model answer the rows, longest first; returns the query for the answered rows."""
    from meow_ray.distributed import map_rows

    config = context.config
    steps = EvaluateSteps(
        spec=config.evaluate,
        memo=config.memo,
        template=config.target.template,
        system=config.target.system,
        variables=config.target.template_variables,
    )
    order = Query(
        f"SELECT * FROM rows ORDER BY strlen(question) + strlen(answer) DESC, {ROW}",
        {"rows": [rows_uri]},
    )
    work = map_rows.BatchWork(steps.generate, finish=steps.finish, model=engine.model)
    return map_rows.map_rows(order, ROW, engine, work, folder, "evaluate", config.resources)


def _task_scores(context: Context, engine: EngineSpec, folder: str) -> list[dict[str, Any]]:
    """Returns the metrics of lm-evaluation-harness on a model, which its work folder keeps."""
    from meow_ray.distributed import cluster, placement

    spec = context.config.evaluate
    resources = context.config.resources
    scores = storage.join(folder, "lm_eval")
    if not spec.lm_eval.tasks:
        return []
    if not storage.exists(scores):
        rows = cluster.call(
            lm_eval.run_tasks,
            engine,
            spec.lm_eval,
            storage.display(context.inputs["task_folder"].uri) or None,
            resources.evaluate.batch_size,
            spec.seed,
            gpus=placement.gpus_per_actor("evaluate", resources),
            labels=resources.evaluate.node_labels,
        )
        storage.write_json(scores, rows)
    return list(storage.read_json(scores))


# --- inputs from outside ------------------------------------------------------------------------


def _sets(config: Config, verify: bool) -> Artifact:
    return data_sources("sets", config.evaluate.sets, verify)


def _text(config: Config, verify: bool) -> Artifact:
    return optional_path("text", "evaluate.text", config.evaluate.text, verify)


def _task_folder(config: Config, verify: bool) -> Artifact:
    return optional_path("task_folder", "evaluate.task_folder", config.evaluate.task_folder, verify)


def _retain_model(config: Config, verify: bool) -> Artifact:
    """Returns the retain model; if its results are given, they are the artifact's value."""
    name, key = "retain_model", "evaluate.retain_model"
    configured = config.evaluate.retain_model
    if configured is None:
        return optional_path(name, key, None, verify)
    if PurePosixPath(storage.display(configured)).suffix == ".json":
        log = optional_path(name, key, configured, verify)
        return replace(log, value=tofu_logs.read_log(log.uri))
    ref = refs.pin(configured, None, key, verify=verify)
    return Artifact(name, ref.uri, ref.digest, value=ref)


SETS = OutsideInput("sets", _sets)
"""The sets of `evaluate.sets`."""

RETAIN_MODEL = OutsideInput("retain_model", _retain_model, adopt_model)
"""The model that never saw the forget set, or its results."""

_INPUTS_ALONE = (
    "facts",
    SETS,
    OutsideInput("text", _text),
    OutsideInput("task_folder", _task_folder),
    TARGET,
    RETAIN_MODEL,
)
"""The inputs of an evaluation of the target alone."""


def _inputs(config: Config) -> tuple[Input, ...]:
    twins = ("twins",) if compares_with_twins(config) else ()
    return (*_INPUTS_ALONE, "selected", "model", *twins)


EVALUATE = Stage(
    name="evaluate",
    artifact="metrics",
    version=7,
    sections=("evaluate", "memo", "target", *COLUMNS),
    inputs=_inputs,
    run=_evaluate,
    schema=SCHEMAS["metrics"],
    key=KEYS["metrics"],
    adopt=adopt_table,
    resources="evaluate",
    checks=(*CHECKS, check_harness_after_training),
    prompt=target_prompt,
)

EVALUATE_ALONE = replace(EVALUATE, inputs=_INPUTS_ALONE, checks=CHECKS)
"""Evaluates the target alone, without a tuned model."""
