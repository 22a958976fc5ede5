"""The stage `evaluate`: measures forgetting and utility."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import EXAMPLES_FILE, Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, ROW, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.engines import EngineSpec
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.evaluate import aggregate, lm_eval, suites, tofu_logs
from meow_ray.stages.evaluate.sets import check_reference, check_sets, read_passages, read_sets
from meow_ray.stages.evaluate.steps import EvaluateSteps
from meow_ray.stages.inputs import (
    COLUMNS,
    TARGET,
    adopt_model,
    data_sources,
    model_ref,
    optional_path,
)


def _check_evaluate(config: Config, inputs: Mapping[str, Artifact]) -> None:
    """Refuses what would be refused, or fail, once all models have been asked."""
    lm_eval.check(config.evaluate.lm_eval)
    read_passages(inputs["text"])
    sets, reference = read_sets(inputs["sets"].value, config), inputs["retain_model"]
    if isinstance(reference.value, dict):
        check_reference(sets.get("forget"), reference.value, storage.display(reference.uri))
    if "facts" in inputs:
        check_sets(Query("SELECT * FROM facts", {"facts": inputs["facts"].source}), sets)


def _evaluate(context: Context) -> dict[str, Any]:
    from meow_ray.distributed import cluster, map_rows

    config, spec, retain_model = (
        context.config,
        context.config.evaluate,
        context.inputs["retain_model"],
    )
    models_of = {"before": context.inputs["target"], "after": context.inputs["model"]}
    if isinstance(retain_model.value, ModelRef):
        models_of[aggregate.RETAIN_MODEL] = retain_model
    # what the models are asked does not depend on how it is summed up
    key: dict[str, Any] = {
        name: context.inputs[name].digest for name in ("facts", "sets", "text", "task_folder")
    }
    key |= {"version": EVALUATE.version, "target": config.target.spec(), "memo": config.memo.spec()}
    key["columns"] = [config.ingest.question_columns, config.ingest.answer_columns]
    key["evaluate"] = spec.spec() | {"bootstrap_resamples": None}
    rows = storage.join(context.scratch, f"evaluate-{storage.json_digest(key)[:32]}.parquet")
    cluster.connect()
    if not storage.exists(rows):
        sets, passages = (
            read_sets(context.inputs["sets"].value, config),
            read_passages(context.inputs["text"]),
        )
        cluster.call(suites.write_rows, context.inputs["facts"].source, sets, passages, spec, rows)
    steps = EvaluateSteps(spec, config.memo, config.target.template, config.target.system)
    order = Query(
        f"SELECT * FROM rows ORDER BY strlen(question) + strlen(answer) DESC, {ROW}",
        {"rows": [rows]},
    )
    found, scores = {}, []
    for name, model in models_of.items():
        ref = model_ref(model)
        folder = storage.join(
            context.scratch, f"evaluate-{storage.json_digest(key | {'model': ref.digest})[:32]}"
        )
        engine = context.engine_spec(ref, config.target, config.resources.evaluate)
        work = map_rows.BatchWork(steps.generate, finish=steps.finish, model=engine.model)
        found[name] = map_rows.map_rows(
            order, ROW, engine, work, folder, "evaluate", config.resources
        )
        scores += [row | {"model": name} for row in _task_scores(context, engine, folder)]
    paths = (context.path(EXAMPLES_FILE), context.path())
    results = retain_model.value if isinstance(retain_model.value, dict) else None
    selected = context.inputs["selected"].source
    return cluster.call(aggregate.write, found, selected, spec, results, scores, paths)


def _task_scores(context: Context, engine: EngineSpec, folder: str) -> list[dict[str, Any]]:
    """Returns what lm-evaluation-harness says of a model; kept in the folder of its work."""
    from meow_ray.distributed import cluster, placement

    spec, resources, done = (
        context.config.evaluate,
        context.config.resources,
        storage.join(folder, "lm_eval"),
    )
    if not spec.lm_eval.tasks:
        return []
    if not storage.exists(done):
        arguments = (
            engine,
            spec.lm_eval,
            storage.display(context.inputs["task_folder"].uri) or None,
        )
        own = resources.evaluate
        gpus, labels = placement.gpus_per_actor("evaluate", resources), own.node_labels
        rows = cluster.call(
            lm_eval.run, *arguments, own.batch_size, spec.seed, gpus=gpus, labels=labels
        )
        storage.write_json(done, rows)
    return list(storage.read_json(done))


# --- inputs from outside ------------------------------------------------------------------------


def _sets(config: Config, verify: bool) -> Artifact:
    return data_sources("sets", config.evaluate.sets, verify)


def _text(config: Config, verify: bool) -> Artifact:
    return optional_path("text", "evaluate.text", config.evaluate.text, verify)


def _task_folder(config: Config, verify: bool) -> Artifact:
    return optional_path("task_folder", "evaluate.task_folder", config.evaluate.task_folder, verify)


def _retain_model(config: Config, verify: bool) -> Artifact:
    """Returns the model that never saw the forget set, or its published results as the artifact's value."""
    name, key, place = "retain_model", "evaluate.retain_model", config.evaluate.retain_model
    if place is None:
        return optional_path(name, key, None, verify)
    if PurePosixPath(storage.display(place)).suffix == ".json":
        log = optional_path(name, key, place, verify)
        found = replace(log, value=tofu_logs.read_log(log.uri))
    else:
        ref = refs.pin(place, None, key, verify=verify)
        found = Artifact(name, ref.uri, ref.digest, value=ref)
    # evaluations of version 0.1 call this model `reference` in their tables, so they are not reused
    return replace(found, digest=storage.json_digest(["retain_model", found.digest]))


EVALUATE = Stage(
    name="evaluate",
    artifact="metrics",
    version=5,
    sections=("evaluate", "memo", "target", *COLUMNS),
    inputs=(
        "facts",
        OutsideInput("sets", _sets),
        OutsideInput("text", _text),
        OutsideInput("task_folder", _task_folder),
        "selected",
        TARGET,
        "model",
        OutsideInput("retain_model", _retain_model, adopt_model),
    ),
    run=_evaluate,
    schema=SCHEMAS["metrics"],
    key=KEYS["metrics"],
    adopt=adopt_table,
    resources="evaluate",
    check=_check_evaluate,
)
