"""The stage `invert`: a language model writes inverted facts for each fact to forget."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import MAIN, REJECTS_FILE, SHORTFALL_FILE, Artifact
from meow_ray.core.outside import LARGE, adopt_table, main_files
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.distributed import cluster, map_rows, progress
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models.refs import ModelRef
from meow_ray.stages.inputs import GENERATOR, generator_prompt, model_ref
from meow_ray.stages.invert.candidates import write_candidates
from meow_ray.stages.invert.endpoint import EndpointSpec, endpoint_spec
from meow_ray.stages.invert.generators import LocalSpec
from meow_ray.stages.invert.own_candidates import complete, is_parquet_table, read_candidates
from meow_ray.stages.invert.preflight import CHECKS, NO_GENERATOR
from meow_ray.stages.invert.steps import STYLES, InvertSteps, probe_styles

_FACTS_TO_INVERT = """
    SELECT fact_id, question, answer FROM facts WHERE split = 'forget'
    ORDER BY strlen(question) + strlen(answer) DESC, fact_id
"""
"""The facts to forget, the longest first."""


def _invert(context: Context) -> dict[str, Any]:
    with context.shared_work(_work_name(context)) as folder:
        return _ask_and_write(context, folder)


def _ask_and_write(context: Context, folder: str) -> dict[str, Any]:
    config = context.config
    spec = config.invert
    facts = context.inputs["facts"]
    generator = context.inputs["generator"]
    asking = _Asking(
        config=config,
        loader=generator_spec(generator, config, context.engine_spec),
        folder=folder,
    )
    rows = Query(_FACTS_TO_INVERT, {"facts": facts.source})
    style, valid_by_style = _choose_style(asking, rows)
    steps = InvertSteps(spec=spec, style=style, facts=facts.source, judge=_judge(config))
    results = asking.map(map_rows.BatchWork(steps, observe=steps.figures), rows, "asked")
    paths = {name: context.path(name) for name in (MAIN, REJECTS_FILE, SHORTFALL_FILE)}
    summary = cluster.call(
        write_candidates,
        results,
        spec.num_candidates,
        spec.on_shortfall,
        _generator_name(generator, config),
        paths,
    )
    storage.remove(asking.folder)
    if summary["left_out"]:
        progress.warn("invert", _left_out_text(summary["left_out"], summary["facts"]))
    return {"style": style, "probe": valid_by_style, **summary}


# --- asking -------------------------------------------------------------------------------------


def generator_spec(
    generator: Artifact, config: Config, engine_spec: Callable[..., EngineSpec]
) -> LocalSpec | EndpointSpec:
    """Returns how an actor of `invert` loads its generator.

    Args:
        generator: the input of that name.
        config: the configuration; its sections `invert` and `resources` are used.
        engine_spec: returns how an actor loads a model; see `stages.inputs.engine_spec`.

    Raises:
        MeowError: no model is configured, or an endpoint lacks its URL or model name.
    """
    spec = config.invert
    resources = config.resources.invert
    if spec.engine == "openai":
        return endpoint_spec(
            spec.base_url,
            spec.model,
            spec.api_key_env,
            spec.structured,
            resources,
            spec.template_variables,
        )
    if not isinstance(generator.value, ModelRef):
        raise MeowError(NO_GENERATOR)
    engine = engine_spec(model_ref(generator), spec, resources)
    return LocalSpec(engine, spec.template_variables)


@dataclass(frozen=True)
class _Asking:
    """The generator of a run, with the folder of its unfinished work."""

    config: Config
    loader: LocalSpec | EndpointSpec
    folder: str

    def map(self, work: map_rows.BatchWork, rows: Query, name: str) -> Query:
        """Sends facts through the generator's actors; results are stored under `name`."""
        return map_rows.map_rows(
            rows,
            key="fact_id",
            spec=self.loader,
            work=work,
            folder=storage.join(self.folder, name),
            name="invert",
            all_resources=self.config.resources,
        )


def _left_out_text(left_out: Mapping[str, int], facts: int) -> str:
    """Returns a warning about settings that an endpoint refused, with the facts concerned."""
    names = []
    for name, count in left_out.items():
        renamed = " (sent as max_tokens)" if name.endswith("max_completion_tokens") else ""
        names.append(f"{name}{renamed} for {count} of {facts} facts")
    return f"the endpoint refuses some settings, which were left out: {', '.join(names)}"


def _work_name(context: Context) -> str:
    """Returns the name of the unfinished work.

    It depends on all that decides what the generator is asked. What happens to facts with too
    few answers does not, so a run with another `on_shortfall` continues the work.
    """
    key = {
        "facts": context.inputs["facts"].digest,
        "generator": context.inputs["generator"].digest,
        "version": context.stage.version,
        "prompt": generator_prompt(context.config, context.inputs),
    }
    key |= context.config.invert.spec() | {"on_shortfall": None}
    return f"invert-{storage.json_digest(key)[:32]}"


def _choose_style(asking: _Asking, rows: Query) -> tuple[str, dict[str, int] | None]:
    """Returns the style of asking; for style auto also the valid candidates of each style."""
    spec = asking.config.invert
    if spec.engine == "openai":
        return "chat", None
    if spec.style != "auto":
        return spec.style, None
    sample = Query(
        f"SELECT * FROM ({rows.sql}) ORDER BY fact_id LIMIT {spec.probe_facts}", rows.sources
    )
    probed = asking.map(map_rows.BatchWork(partial(probe_styles, spec=spec)), sample, "probe")
    sums = ", ".join(
        f"sum(least({style}, {spec.num_candidates}))::INT AS {style}" for style in STYLES
    )
    valid: dict[str, int] = Query(f"SELECT {sums} FROM ({probed.sql})", probed.sources).rows()[0]
    return ("prefill" if valid["prefill"] > valid["chat"] else "chat"), valid


def _judge(config: Config) -> EndpointSpec | None:
    """Returns the endpoint that judges; None if there is no judge, or the generator judges."""
    spec = config.invert
    if spec.judge != "endpoint":
        return None
    return endpoint_spec(
        spec.judge_base_url,
        spec.judge_model,
        spec.judge_api_key_env,
        structured=True,
        resources=config.resources.invert,
    )


def _generator_name(generator: Artifact, config: Config) -> str:
    """Returns the value of the column `generator` of the table."""
    if config.invert.engine == "openai":
        assert config.invert.model is not None
        return config.invert.model
    ref = model_ref(generator)
    return ref.uri if ref.commit else PurePosixPath(ref.uri).name


# --- the stage ----------------------------------------------------------------------------------


def _adopt_candidates(name: str, uri: str, verify: bool) -> Artifact:
    """Takes a user's own candidates: Parquet, or a file of any format that `ingest` reads."""
    uri = storage.absolute(uri)
    where = storage.display(uri)
    if is_parquet_table(uri) and tables.count_rows(main_files(uri)) >= LARGE:
        return adopt_table(name, uri, verify)
    table = complete(read_candidates(uri), where)
    table = checks.conform(table, name, where)
    return Artifact(name, uri, storage.content_digest(uri, verify=verify), value=table)


def _runs_here(config: Config) -> bool:
    return config.invert.engine != "openai"


INVERT = Stage(
    name="invert",
    artifact="candidates",
    version=3,
    prompt=generator_prompt,
    sections=("invert",),
    inputs=("facts", GENERATOR),
    run=_invert,
    schema=SCHEMAS["candidates"],
    key=KEYS["candidates"],
    adopt=_adopt_candidates,
    resources="invert",
    uses_gpus=_runs_here,
    checks=CHECKS,
)
