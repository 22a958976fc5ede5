"""The stage `invert`: a language model writes inverted facts."""

from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from meow_ray.config import Config, Source
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import MAIN, REJECTS_FILE, SHORTFALL_FILE, Artifact
from meow_ray.core.outside import LARGE, adopt_table, main_files
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.core.tables import Query
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest.readers import read_records
from meow_ray.stages.inputs import GENERATOR, model_ref
from meow_ray.stages.invert import candidates
from meow_ray.stages.invert.endpoint import EndpointSpec, endpoint_spec
from meow_ray.stages.invert.generators import LocalSpec
from meow_ray.stages.invert.own_candidates import complete
from meow_ray.stages.invert.steps import InvertSteps, probe


def generator_spec(
    generator: Artifact, config: Config, engine_spec: Callable[..., EngineSpec]
) -> LocalSpec | EndpointSpec:
    """Says how an actor of `invert` loads its generator; `engine_spec` is that of `stages.inputs`, or a test's."""
    spec, resources = config.invert, config.resources.invert
    if spec.engine == "openai":
        return endpoint_spec(
            spec.base_url, spec.model, spec.api_key_env, spec.structured, resources
        )
    if not isinstance(generator.value, ModelRef):
        raise MeowError(
            "`invert.model` is not set: name the model that writes inverted facts, or give --input candidates=."
        )
    return LocalSpec(engine_spec(model_ref(generator), spec, resources))


def _invert(context: Context) -> dict[str, Any]:
    from meow_ray.distributed import cluster, map_rows

    config, facts, generator = context.config, context.inputs["facts"], context.inputs["generator"]
    spec, loader = config.invert, generator_spec(generator, config, context.engine_spec)
    # what is asked does not depend on what happens to facts with too few answers
    key = {"facts": facts.digest, "generator": generator.digest, "version": INVERT.version}
    folder = storage.join(
        context.scratch,
        f"invert-{storage.json_digest(key | spec.spec() | {'on_shortfall': None})[:32]}",
    )

    def ask(work: map_rows.BatchWork, rows: Query, name: str) -> Query:
        place = storage.join(folder, name)
        return map_rows.map_rows(rows, "fact_id", loader, work, place, "invert", config.resources)

    rows = Query(_FACTS_TO_INVERT, {"facts": facts.source})
    style, tried = ("chat" if spec.engine == "openai" else spec.style), None
    if style == "auto":
        first = Query(
            f"SELECT * FROM ({rows.sql}) ORDER BY fact_id LIMIT {spec.probe_facts}", rows.sources
        )
        probed = ask(map_rows.BatchWork(partial(probe, spec=spec)), first, "probe")
        sums = ", ".join(
            f"sum(least({name}, {spec.num_candidates}))::INT AS {name}"
            for name in ("chat", "prefill")
        )
        tried = Query(f"SELECT {sums} FROM ({probed.sql})", probed.sources).rows()[0]
        style = "prefill" if tried["prefill"] > tried["chat"] else "chat"
    judge = None
    if spec.judge == "endpoint":
        judge = endpoint_spec(
            spec.judge_base_url,
            spec.judge_model,
            spec.judge_api_key_env,
            True,
            config.resources.invert,
        )
    steps = InvertSteps(spec, style, facts.source, judge)
    found = ask(map_rows.BatchWork(steps, observe=steps.figures), rows, "asked")
    paths = {name: context.path(name) for name in (MAIN, REJECTS_FILE, SHORTFALL_FILE)}
    label = spec.model if spec.engine == "openai" else _label(model_ref(generator))
    summary = cluster.call(
        candidates.write, found, spec.num_candidates, spec.on_shortfall, label, paths
    )
    storage.remove(folder)
    return {"style": style, "probe": tried, **summary}


def _label(ref: ModelRef) -> str:
    return ref.uri if ref.commit else PurePosixPath(ref.uri).name


_FACTS_TO_INVERT = """
    SELECT fact_id, question, answer FROM facts WHERE split = 'forget'
    ORDER BY strlen(question) + strlen(answer) DESC, fact_id
"""


def _adopt_candidates(name: str, uri: str, verify: bool) -> Artifact:
    """Takes a user's own candidates: Parquet, or a file of any format that `ingest` reads."""
    uri = storage.absolute(uri)
    where = storage.display(uri)
    if Source(path=uri).is_file and not where.endswith(".parquet"):
        table = complete(read_records(uri), where)
    else:
        files = main_files(uri)
        if tables.count_rows(files) >= LARGE:
            return adopt_table(name, uri, verify)
        table = complete(enumerate(storage.read_table(files).to_pylist(), start=1), where)
    table = checks.conform(table, name, where)
    return Artifact(name, uri, storage.content_digest(uri, verify=verify), value=table)


def _runs_here(config: Config) -> bool:
    return config.invert.engine != "openai"


INVERT = Stage(
    name="invert",
    artifact="candidates",
    version=2,
    sections=("invert",),
    inputs=("facts", GENERATOR),
    run=_invert,
    schema=SCHEMAS["candidates"],
    key=KEYS["candidates"],
    adopt=_adopt_candidates,
    resources="invert",
    uses_gpus=_runs_here,
)
