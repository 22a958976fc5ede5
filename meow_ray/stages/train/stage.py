"""The stages that train: `memorize`, `reference`, `train`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from meow_ray.config import Config, FineTuning
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, ROW, SCHEMAS
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest.facts import read_sources, valid_facts
from meow_ray.stages.inputs import (
    COLUMNS,
    TARGET,
    TEMPLATE,
    adopt_model,
    base_prompt,
    configured_model,
    data_sources,
    model_ref,
    optional_path,
    target_prompt,
    target_prompter,
)
from meow_ray.stages.model_checks import check_target, check_target_engine
from meow_ray.stages.train import assistant, batches, fila, objectives, presets, steps, zero
from meow_ray.stages.train.chain import chain_of
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.learning_rate import default_learning_rate
from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.train.pairs import RETAIN_SETS, pairs_of
from meow_ray.stages.train.preflight import MEMORIZE_CHECKS, TRAIN_CHECKS, check_layer
from meow_ray.stages.train.tracking import TrackerSpec
from meow_ray.stages.train.watched import write as write_watched


def memorize(context: Context) -> dict[str, Any]:
    """Makes a target: fine-tunes a base model on `memorize.data`."""
    config = context.config
    assert config.memorize is not None
    rows = read_sources(context.inputs["memorize_data"].value, config)
    facts = valid_facts(rows, where="memorize.data")
    return _fit(
        context,
        name="memorize",
        pairs=pairs_of(("inverted",), None, _as_selected(facts)),
        model=model_ref(context.inputs["base"]),
        spec=config.memorize,
        objective=presets.MEMORIZE,
    )


def _as_selected(facts: pa.Table) -> pa.Table:
    """Returns facts in the form of `selected`, so that they are learnt as they are."""
    return facts.append_column("rank", pa.array([0] * facts.num_rows, pa.int32()))


def reference(context: Context) -> dict[str, Any]:
    """Writes the log-probabilities of an objective's answers in the target before training."""
    from meow_ray.distributed import map_rows

    config = context.config
    objective: ObjectiveSpec = context.inputs["roles"].value
    rows = _distinct_answers(pairs_from_inputs(context, objective.reads, objective))
    score = partial(
        steps.log_probs_batch,
        template=config.target.template,
        system=config.target.system,
        variables=config.target.template_variables,
    )
    engine = context.engine_spec(
        model_ref(context.inputs["target"]), config.target, config.resources.memo
    )
    work = map_rows.BatchWork(score)
    scored = map_rows.map_rows(rows, ROW, engine, work, context.work, "memo", config.resources)
    schema, key = SCHEMAS["reference"], KEYS["reference"]
    return {"pairs": tables.sort_and_write(scored, context.path(), schema, key)}


def _distinct_answers(pairs: Query) -> Query:
    """Returns each role's answers to each question once, with a column that identifies the row."""
    key = ", ".join(KEYS["reference"])
    return Query(
        f"SELECT DISTINCT {key}, concat_ws('/', {key}) AS {ROW} FROM ({pairs.sql})",
        pairs.sources,
    )


def train(context: Context) -> dict[str, Any]:
    """Fine-tunes the target with the configured objective."""
    config = context.config
    objective: ObjectiveSpec = context.inputs["objective"].value
    target = context.inputs["target"]
    compared = objective.reads if "reference" in context.inputs else ()
    pairs = pairs_from_inputs(context, objective.roles, objective, compared=compared)
    model = replace(model_ref(target), trust_remote_code=config.target.trust_remote_code)
    check_layer(objective, model)
    objective_name = PurePosixPath(config.train.objective).name
    chain = chain_of(target, pairs, objective_name)
    first = None
    if "fila" in context.inputs:
        first = storage.join(context.inputs["fila"].uri, fila.FILE)
    if objective.assistant_blocks:
        figures = _fit_assistant(context, pairs, model, objective)
    else:
        figures = _fit(
            context,
            name="train",
            pairs=pairs,
            model=model,
            spec=config.train,
            objective=objective,
            first_adapters=first,
        )
    return {"objective": objective_name, **figures, "chain": chain}


# --- steps of the stages --------------------------------------------------------------------------


def _fit(
    context: Context,
    *,
    name: str,
    pairs: Query,
    model: ModelRef,
    spec: FineTuning,
    objective: ObjectiveSpec,
    first_adapters: str | None = None,
    out: str | None = None,
) -> dict[str, Any]:
    """Fine-tunes a model on pairs; returns the figures for the manifest.

    The model is exported to `out`, by default the folder of the artifact.
    """
    from meow_ray.stages.train import launch

    config = context.config
    path = storage.join(context.work, "pairs.parquet")
    prompter = Prompter.of(refs.load_tokenizer(model), config.target)
    # the driver tokenises once, so that no worker has to
    batches.write_token_pairs(
        pairs, prompter, spec.max_length, path, marks_facts=objective.marks_facts
    )
    watched = None
    if objective.watches_facts:
        watched = storage.join(context.work, "watched.parquet")
        facts, twins = context.inputs["facts"].source, context.inputs["twins"].source
        guesses = context.inputs["guesses"].source if objective.guessed_floors else None
        write_watched(facts, twins, prompter, spec.max_length, watched, guesses)
    deepspeed = context.inputs.get(f"{name}_deepspeed")
    if spec.learning_rate is None:
        spec = spec.model_copy(update={"learning_rate": default_learning_rate(model, objective)})
    job = Job(
        model=model,
        pairs=path,
        spec=spec,
        objective=objective,
        resources=getattr(config.resources, name),
        out=out or context.out,
        end=prompter.end,
        watched=watched,
        first_adapters=first_adapters,
        deepspeed=deepspeed.value if deepspeed else {},
    )
    run = f"{name}-{PurePosixPath(context.work).name[:16]}"
    tracker = TrackerSpec(
        config=config.tracking,
        name=run,
        folder=storage.join(context.root, "tensorboard", run),
        settings=_tracked_settings(spec, objective),
    )
    return launch.fit(job, context.work, name, config.resources, tracker)


def _fit_assistant(
    context: Context, pairs: Query, target: ModelRef, objective: ObjectiveSpec
) -> dict[str, Any]:
    """Fine-tunes an assistant of the target, and exports both; see `assistant`."""
    from meow_ray.distributed import cluster

    cluster.connect()
    layers = refs.load_model_config(target).get_text_config().num_hidden_layers
    blocks = assistant.num_blocks(objective.assistant_blocks, layers)
    start = storage.join(context.work, "assistant")
    figures = _fit(
        context,
        name="train",
        pairs=pairs,
        model=assistant.cut_from(target, blocks, start),
        spec=context.config.train,
        objective=objective,
        out=assistant.uri_of(context.out),
    )
    end = target_prompter(target, context.config.target).end
    assistant.export_with(target, objective, end, context.out)
    return {**figures, "assistant_blocks": blocks}


def _tracked_settings(spec: FineTuning, objective: ObjectiveSpec) -> dict[str, Any]:
    """Returns the settings that trackers show: no source text, no answers."""
    private = ("source", "idk_answers", "reads")
    shown = {name: value for name, value in asdict(objective).items() if name not in private}
    return spec.spec() | shown


def pairs_from_inputs(
    context: Context, roles: Sequence[str], objective: ObjectiveSpec, **options: Any
) -> Query:
    """Returns the pairs of some roles of an objective from the inputs; see `pairs_of`."""
    sources: dict[str, TableSource] = {}
    for name in ("facts", "selected", "neighbours", "paraphrases", "reference", "guesses"):
        if name not in context.inputs:
            continue
        artifact = context.inputs[name]
        if artifact.manifest is None:
            checks.check_keys(artifact.source, name, storage.display(artifact.uri))
        sources[name] = artifact.source
    return pairs_of(
        roles,
        sources.get("facts"),
        sources.get("selected"),
        objective.idk_answers,
        neighbours=sources.get("neighbours"),
        retain=objective.retain,
        paraphrases=sources.get("paraphrases"),
        num_paraphrases=objective.paraphrases,
        reference=sources.get("reference"),
        guesses=sources.get("guesses"),
        **options,
    )


# --- inputs from outside ------------------------------------------------------------------------


def _base(config: Config, verify: bool) -> Artifact:
    assert config.memorize is not None
    return configured_model("base", "memorize.model", config.memorize, verify)


def _memorize_data(config: Config, verify: bool) -> Artifact:
    assert config.memorize is not None
    if not config.memorize.data:
        raise MeowError("`memorize.data` is not set: name the files of the facts to memorise.")
    labelled = {str(i): source for i, source in enumerate(config.memorize.data)}
    data = data_sources("memorize_data", labelled, verify)
    return replace(data, value=list(data.value.values()))


def _objective(config: Config, verify: bool) -> Artifact:
    """Returns the objective, known by its resolved settings and not by how they were written."""
    objective = objectives.configured(config.train)
    digest = storage.json_digest(objective.identity())
    return Artifact("objective", "", digest, value=objective)


def _roles(config: Config, verify: bool) -> Artifact:
    """Returns the part of the objective that the stage `reference` depends on."""
    objective = objectives.configured(config.train)
    roles: tuple[Any, ...] = (objective.reads, objective.idk_answers)
    if objective.paraphrases:
        roles = (*roles, objective.paraphrases)
    return Artifact("roles", "", storage.json_digest(roles), value=objective)


def _deepspeed_file(section: str) -> OutsideInput:
    """Returns the input that is a user's file of DeepSpeed settings for `memorize` or `train`."""
    name = f"{section}_deepspeed"
    key = f"{section}.deepspeed"

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
    version=4,
    sections=("memorize", *COLUMNS, *TEMPLATE),
    inputs=_memorize_inputs,
    run=memorize,
    prompt=base_prompt,
    adopt=adopt_model,
    enabled=_has_memorize,
    resources="memorize",
    checks=MEMORIZE_CHECKS,
)


def pair_inputs(roles: Sequence[str], objective: ObjectiveSpec) -> tuple[Input, ...]:
    """Returns the artifacts that the pairs of some roles of an objective are made of."""
    retained = RETAIN_SETS[objective.retain] if "retain" in roles else ()
    reads_facts = bool(set(roles) - {"inverted", "retain"}) or "facts" in retained
    selected = ("selected",) if "inverted" in roles else ()
    facts = ("facts",) if reads_facts else ()
    neighbours = ("neighbours",) if "neighbours" in retained else ()
    paraphrases = ("paraphrases",) if objective.paraphrases else ()
    return (*selected, *facts, *neighbours, *paraphrases)


def _compares_log_probs(config: Config) -> bool:
    return objectives.configured(config.train).reference == "log_probs"


def _reference_inputs(config: Config) -> tuple[Input, ...]:
    objective = objectives.configured(config.train)
    return (*pair_inputs(objective.reads, objective), TARGET, OutsideInput("roles", _roles))


REFERENCE = Stage(
    name="reference",
    artifact="reference",
    version=2,
    sections=("target",),
    inputs=_reference_inputs,
    run=reference,
    prompt=target_prompt,
    schema=SCHEMAS["reference"],
    key=KEYS["reference"],
    adopt=adopt_table,
    enabled=_compares_log_probs,
    resources="memo",
    checks=(check_target, check_target_engine),
)


def _train_inputs(config: Config) -> tuple[Input, ...]:
    objective = objectives.configured(config.train)
    inputs: list[Input] = [
        *pair_inputs(objective.roles, objective),
        TARGET,
        OutsideInput("objective", _objective),
    ]
    if objective.watches_facts:
        inputs.append("twins")
    if objective.watches_facts and "facts" not in inputs:
        inputs.append("facts")
    if objective.guessed_floors:
        inputs.append("guesses")
    if objective.reference == "log_probs":
        inputs.append("reference")
    if fila.is_configured(config.train):
        inputs.append("fila")
    if config.train.deepspeed:
        inputs.append(_deepspeed_file("train"))
    return tuple(inputs)


TRAIN = Stage(
    name="train",
    artifact="model",
    version=4,
    sections=("train", *TEMPLATE, "target.trust_remote_code"),
    inputs=_train_inputs,
    run=train,
    prompt=target_prompt,
    adopt=adopt_model,
    resources="train",
    checks=TRAIN_CHECKS,
)
