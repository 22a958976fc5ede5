"""The stages that train: `memorize`, `reference`, `train`."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from meow_ray.config import Config, FineTuning
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import Artifact, load
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, ROW, SCHEMAS
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest import facts as facts_module
from meow_ray.stages.ingest.facts import read_sources, rejects_text
from meow_ray.stages.inputs import (
    COLUMNS,
    TARGET,
    TEMPLATE,
    adopt_model,
    configured_model,
    data_sources,
    model_ref,
    optional_path,
)
from meow_ray.stages.train import batches, objectives, steps, zero
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.objectives import ObjectiveSpec
from meow_ray.stages.train.pairs import pairs_of
from meow_ray.stages.train.tracking import TrackerSpec


def memorize(context: Context) -> dict[str, Any]:
    """Makes a target: a base model that has learnt `memorize.data`."""
    config = context.config
    assert config.memorize is not None
    rows = read_sources(context.inputs["memorize_data"].value, config)
    table, rejects = facts_module.build(rows, [], lambda question, answer: None)
    if rejects.num_rows:
        raise MeowError(f"memorize.data: {rejects_text(rejects)}")
    pairs = pairs_of(("inverted",), None, _as_selected(table))
    return _fit(
        context,
        pairs,
        model_ref(context.inputs["base"]),
        config.memorize,
        objectives.MEMORIZE,
        "memorize",
    )


def _as_selected(facts: pa.Table) -> pa.Table:
    """Returns facts that are learnt as they are in the form of `selected`."""
    return facts.append_column("rank", pa.array([0] * facts.num_rows, pa.int32()))


def _fit(
    context: Context,
    pairs: Query,
    ref: ModelRef,
    spec: FineTuning,
    objective: ObjectiveSpec,
    name: str,
) -> dict[str, Any]:
    from meow_ray.stages.train import launch

    target, path = context.config.target, storage.join(context.work, "pairs.parquet")
    prompter = Prompter(refs.load_tokenizer(ref), target.template, target.system)
    # once: no worker does it again
    batches.write_token_pairs(pairs, prompter, spec.max_length, path)
    deepspeed = (
        context.inputs[f"{name}_deepspeed"].value if f"{name}_deepspeed" in context.inputs else {}
    )
    job = Job(
        model=ref,
        pairs=path,
        spec=spec,
        objective=objective,
        resources=getattr(context.config.resources, name),
        out=context.out,
        deepspeed=deepspeed,
    )
    run = f"{name}-{PurePosixPath(context.work).name[:16]}"
    folder = storage.join(context.root, "tensorboard", run)
    settings = spec.spec() | {
        key: value
        for key, value in asdict(objective).items()
        if key not in ("source", "idk_answers", "reads")
    }
    tracker = TrackerSpec(context.config.tracking, run, folder, settings)
    return launch.fit(job, context.work, name, context.config.resources, tracker)


def _pairs(
    context: Context, roles: Sequence[str], idk_answers: Sequence[str], **compared: Any
) -> Query:
    found = {
        name: context.inputs[name]
        for name in ("facts", "selected", "reference")
        if name in context.inputs
    }
    for name, artifact in found.items():
        if artifact.manifest is None:
            checks.check_keys(artifact.source, name, storage.display(artifact.uri))
    facts, selected, known = (
        found[n].source if n in found else None for n in ("facts", "selected", "reference")
    )
    return pairs_of(roles, facts, selected, idk_answers, reference=known, **compared)


def reference(context: Context) -> dict[str, Any]:
    """Scores the answers of an objective in the target, before training."""
    from meow_ray.distributed import map_rows

    config = context.config
    pairs = _pairs(context, *context.inputs["roles"].value)
    keys = ", ".join(KEYS["reference"])
    rows = Query(
        f"SELECT DISTINCT {keys}, question, concat_ws('/', {keys}) AS {ROW} FROM ({pairs.sql})",
        pairs.sources,
    )
    twice = f"SELECT fact_id FROM ({rows.sql}) GROUP BY {keys} HAVING count(*) > 1 LIMIT 1"
    for row in Query(twice, rows.sources).rows():
        raise MeowError(
            f"The fact {row['fact_id']} has the same answer to several questions in `selected`."
        )
    work = partial(
        steps.log_probs_batch, template=config.target.template, system=config.target.system
    )
    engine = context.engine_spec(
        model_ref(context.inputs["target"]), config.target, config.resources.memo
    )
    found = map_rows.map_rows(
        rows, ROW, engine, map_rows.BatchWork(work), context.work, "memo", config.resources
    )
    schema = SCHEMAS["reference"]
    result = Query(
        f"SELECT {', '.join(schema.names)} FROM ({found.sql}) ORDER BY {keys}", found.sources
    )
    return {"pairs": tables.write_sorted(result, context.path(), schema, KEYS["reference"])}


def train(context: Context) -> dict[str, Any]:
    """Fine-tunes the target by the configured objective."""
    config, objective, target = (
        context.config,
        context.inputs["objective"].value,
        context.inputs["target"],
    )
    compared = objective.reads if "reference" in context.inputs else ()
    pairs = _pairs(context, objective.roles, objective.idk_answers, compared=compared)
    ref = replace(model_ref(target), trust_remote_code=config.target.trust_remote_code)
    depth = getattr(refs.load_config(ref), "num_hidden_layers", None)
    if objective.layer is not None and depth is not None and not objective.layer < depth - 1:
        raise MeowError(
            f"`train.settings.layer` is {objective.layer}; it has to be below the target's last, {depth - 1}."
        )
    name = PurePosixPath(config.train.objective).name
    chain = _chain(target, pairs, name)
    return {
        "objective": name,
        **_fit(context, pairs, ref, config.train, objective, "train"),
        "chain": chain,
    }


def _chain(target: Artifact, pairs: Query, objective: str) -> list[dict[str, Any]]:
    """Returns what the model was made to forget, request by request: those of the target's own run, then this one."""
    asked = f"SELECT DISTINCT fact_id FROM ({pairs.sql}) WHERE role != 'retain' ORDER BY fact_id"
    facts = [row["fact_id"] for row in Query(asked, pairs.sources).rows()]
    manifest = target.manifest
    if manifest is None and target.uri:  # a folder that another run exported
        with suppress(MeowError):  # what lies above may be another's
            made = load(target.uri.rstrip("/").rpartition("/")[0])
            manifest = made.manifest if made else None
    before = manifest.summary.get("chain", []) if manifest else []
    request = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "objective": objective,
        "facts": len(facts),
        "facts_digest": storage.json_digest(facts),
        "target": target.digest,
    }
    return [*before, request]


# --- inputs from outside ------------------------------------------------------------------------


def _base(config: Config, verify: bool) -> Artifact:
    assert config.memorize is not None
    return configured_model("base", "memorize.model", config.memorize, verify)


def _memorize_data(config: Config, verify: bool) -> Artifact:
    assert config.memorize is not None
    if not config.memorize.data:
        raise MeowError("`memorize.data` is not set: name the files of the facts to memorise.")
    labelled = {str(i): source for i, source in enumerate(config.memorize.data)}
    return replace(data_sources("memorize_data", labelled, verify), value=config.memorize.data)


def _objective(config: Config, verify: bool) -> Artifact:
    """Returns what `train` minimises, known by what it comes to and not by how it was configured."""
    objective = objectives.configured(config.train)
    return Artifact("objective", "", storage.json_digest(asdict(objective)), value=objective)


def _roles(config: Config, verify: bool) -> Artifact:
    """Returns the part of the objective that the stage `reference` depends on."""
    objective = objectives.configured(config.train)
    roles = (objective.reads, objective.idk_answers)
    return Artifact("roles", "", storage.json_digest(roles), value=roles)


def _deepspeed_file(section: str) -> OutsideInput:
    """Returns the input that is a user's file of DeepSpeed settings for `memorize` or `train`."""
    name, key = f"{section}_deepspeed", f"{section}.deepspeed"

    def resolve(config: Config, verify: bool) -> Artifact:
        path = getattr(config, section).deepspeed
        file = optional_path(name, key, path, verify)
        settings = zero.read_settings(path, storage.read_bytes(file.uri))
        return replace(file, digest=storage.json_digest(settings), value=settings)

    return OutsideInput(name, resolve)


# --- the stages ---------------------------------------------------------------------------------


def _has_memorize(config: Config) -> bool:
    return config.memorize is not None


def _memorize_inputs(config: Config) -> tuple[Input, ...]:
    assert config.memorize is not None
    inputs: tuple[Input, ...] = (
        OutsideInput("memorize_data", _memorize_data),
        OutsideInput("base", _base, adopt_model),
    )
    return (*inputs, _deepspeed_file("memorize")) if config.memorize.deepspeed else inputs


MEMORIZE = Stage(
    name="memorize",
    artifact="target",
    version=3,
    sections=("memorize", *COLUMNS, *TEMPLATE),
    inputs=_memorize_inputs,
    run=memorize,
    adopt=adopt_model,
    enabled=_has_memorize,
    resources="memorize",
)


def _pair_inputs(roles: Sequence[str]) -> tuple[Input, ...]:
    """Returns the artifacts that the pairs of some roles are made of."""
    selected = ("selected",) if "inverted" in roles else ()
    facts = ("facts",) if set(roles) - {"inverted"} else ()
    return (*selected, *facts)


def _compares_log_probs(config: Config) -> bool:
    return objectives.configured(config.train).reference == "log_probs"


def _reference_inputs(config: Config) -> tuple[Input, ...]:
    objective = objectives.configured(config.train)
    return (*_pair_inputs(objective.reads), TARGET, OutsideInput("roles", _roles))


REFERENCE = Stage(
    name="reference",
    artifact="reference",
    version=1,
    sections=("target",),
    inputs=_reference_inputs,
    run=reference,
    schema=SCHEMAS["reference"],
    key=KEYS["reference"],
    adopt=adopt_table,
    enabled=_compares_log_probs,
    resources="memo",
)


def _train_inputs(config: Config) -> tuple[Input, ...]:
    objective = objectives.configured(config.train)
    inputs: list[Input] = [
        *_pair_inputs(objective.roles),
        TARGET,
        OutsideInput("objective", _objective),
    ]
    if objective.reference == "log_probs":
        inputs.append("reference")
    if config.train.deepspeed:
        inputs.append(_deepspeed_file("train"))
    return tuple(inputs)


TRAIN = Stage(
    name="train",
    artifact="model",
    version=3,
    sections=("train", *TEMPLATE, "target.trust_remote_code"),
    inputs=_train_inputs,
    run=train,
    adopt=adopt_model,
    resources="train",
)
