"""Lets the model of `audit.judge` judge replies; see `judging` for what it is asked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from meow_ray.config import Config, InvertResources, Judge
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.schema import ROW
from meow_ray.core.stage import Known
from meow_ray.engines import Sampling
from meow_ray.errors import MeowError
from meow_ray.models import checks, ends, refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.audit import judging
from meow_ray.stages.audit.judging import Item, Judged
from meow_ray.stages.audit.scoring import AuditContext, ScoredRow
from meow_ray.stages.inputs import configured_model, prompt_digest
from meow_ray.stages.invert.endpoint import EndpointSpec, endpoint_spec
from meow_ray.stages.invert.generators import Ask, Generator, LocalSpec
from meow_ray.stages.invert.preflight import endpoint_faults

VERSION = 1
"""Raised whenever the same judge would give other verdicts on the same replies."""
MOST_MISSING = 0.05
"""Share of replies without a verdict above which the run warns."""
MODEL_KEY = "audit.judge.model"
URL_KEY = "audit.judge.base_url"

_IDENTITY = ("model", "revision", "base_url", "api_key_env")
"""The fields that name the judge. Its content enters the digest in their place."""
_ITEMS_SCHEMA = pa.schema([(ROW, pa.string()), *((name, pa.string()) for name in Item._fields)])


# --- the model ------------------------------------------------------------------------------------


def _judge(config: Config, verify: bool) -> Artifact:
    """Returns the judge. Its digest depends on the model, the prompt and all other settings."""
    spec = _section(config)
    model = _model(spec, verify)
    settings = spec.model_dump(mode="json", exclude=set(_IDENTITY))
    is_local = isinstance(model.value, ModelRef)
    date = prompt_digest(model, None, spec.template_variables) if is_local else None
    return replace(model, digest=storage.json_digest([model.digest, settings, date]))


def _model(spec: Judge, verify: bool) -> Artifact:
    """Returns the model of the judge; an endpoint is identified by URL and model name."""
    if spec.engine != "openai":
        if spec.base_url is not None:
            raise MeowError(
                f"`{URL_KEY}` is set, but the engine is {spec.engine}. Set "
                "`audit.judge.engine` to openai, or remove the URL."
            )
        return configured_model("judge", MODEL_KEY, spec, verify)
    if spec.model is None or spec.base_url is None:
        raise MeowError(
            "`audit.judge`: an endpoint needs a URL and a model name. "
            f"Set `{URL_KEY}` and `{MODEL_KEY}`."
        )
    return Artifact("judge", spec.base_url, storage.json_digest([spec.base_url, spec.model]))


JUDGE_MODEL = OutsideInput("judge", _judge)
"""The judge of replies; an input of audits that have one."""


def _section(config: Config) -> Judge:
    assert config.audit.judge is not None
    return config.audit.judge


def _endpoint(spec: Judge, resources: InvertResources) -> EndpointSpec:
    """Returns how an endpoint is asked. Replies that it refuses are missing, even if all are."""
    found = endpoint_spec(
        spec.base_url,
        spec.model,
        spec.api_key_env,
        spec.structured,
        resources,
        spec.template_variables,
    )
    return replace(found, may_refuse_all=True)


def _loader(audit: AuditContext, spec: Judge) -> LocalSpec | EndpointSpec:
    context = audit.context
    resources = context.config.resources
    if spec.engine == "openai":
        return _endpoint(spec, resources.invert)
    ref = context.inputs[JUDGE_MODEL.name].value
    assert isinstance(ref, ModelRef)
    return LocalSpec(context.engine_spec(ref, spec, resources.audit), spec.template_variables)


# --- before the run -------------------------------------------------------------------------------


def check_judge(config: Config, known: Known) -> Iterator[str]:
    """Finds why the judge cannot be asked: its prompt, its model, or its endpoint."""
    spec = config.audit.judge
    judge = known.get(JUDGE_MODEL.name)
    if spec is None or judge is None:
        return
    try:
        judging.message(spec.prompt, Item("Who?", "Ann.", "Who?", "Bob."))
    except MeowError as error:
        yield str(error)
    if isinstance(judge.value, ModelRef):
        yield from _model_faults(judge.value, spec)
    else:
        yield from endpoint_faults(_endpoint(spec, config.resources.invert), URL_KEY, MODEL_KEY)


def _model_faults(ref: ModelRef, spec: Judge) -> Iterator[str]:
    faults = checks.model_faults(ref, MODEL_KEY)
    yield from faults
    if faults:
        return
    try:
        ends.check_end(refs.load_tokenizer(ref), MODEL_KEY)
    except MeowError as error:
        yield str(error)
    if spec.engine == "transformers":
        fault = checks.transformers_fault(ref, MODEL_KEY, "audit.judge.engine")
        if fault:
            yield fault


def hint(config: Config) -> str | None:
    """Returns which texts leave for an endpoint; None if no endpoint judges."""
    spec = config.audit.judge
    if spec is None or spec.engine != "openai":
        return None
    return (
        "questions, true answers and replies are sent to the judge at the endpoint "
        f"{spec.base_url}, so facts leave this machine if the endpoint is on another."
    )


# --- judging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgeSteps:
    """Lets a judge decide about a batch of items, greedily."""

    prompt: str
    """`audit.judge.prompt`."""
    max_new_tokens: int

    def __call__(self, generator: Generator, batch: pa.Table) -> pa.Table:
        """Adds the column `gives_away`; null where the judge gives no verdict."""
        sampling = Sampling(self.max_new_tokens, json_schema=judging.VERDICT_SCHEMA)
        items = [Item(*(row[name] for name in Item._fields)) for row in batch.to_pylist()]
        asks = [Ask(judging.message(self.prompt, item), sampling) for item in items]
        verdicts = [
            None if found is None else judging.parse(found[0].text) for found in generator.ask(asks)
        ]
        return batch.append_column(judging.VERDICT, pa.array(verdicts, pa.bool_()))


def judge_replies(audit: AuditContext, rows: Sequence[ScoredRow]) -> Judged:
    """Judges the best reply of each row that has one; empty without `audit.judge`.

    Call it when all replies are there, so that the judge is loaded once and alone.
    """
    from meow_ray.distributed import progress

    spec = audit.spec.judge
    if spec is None:
        return Judged()
    assert audit.spec.samples != "auto"
    items = judging.to_judge(rows, audit.subjects, audit.spec.samples)
    verdicts = _verdicts(audit, spec, {item.row_id: item for item in items.values()})
    found = judging.judged(rows, {key: verdicts[item.row_id] for key, item in items.items()})
    if found.missing_share > MOST_MISSING:
        progress.warn(
            "audit",
            f"the judge gave no verdict on {found.missing} of {len(items)} replies "
            f"({found.missing_share:.0%}), which count as missing. Raise "
            "`audit.judge.max_new_tokens`, or take a judge that writes JSON.",
        )
    return found


def _verdicts(
    audit: AuditContext, spec: Judge, items: Mapping[str, Item]
) -> dict[str, bool | None]:
    """Returns the verdicts by row id; a reply that the same judge knows is not judged again."""
    empty: dict[str, bool | None] = {
        row_id: False for row_id, item in items.items() if item.is_empty
    }
    digest = audit.context.inputs[JUDGE_MODEL.name].digest
    work = storage.json_digest({"version": VERSION, "judge": digest})
    with audit.context.shared_work(f"audit-judge-{work[:32]}") as folder:
        known = _known(folder) | empty
        new = {row_id: item for row_id, item in items.items() if row_id not in known}
        if new:
            known |= _ask(audit, spec, new, folder)
    return {row_id: known[row_id] for row_id in items}


def _known(folder: str) -> dict[str, bool | None]:
    """Returns the verdicts of earlier audits."""
    names = [name for name in storage.list_names(folder) if name.endswith(".parquet")]
    if not names:
        return {}
    table = storage.read_table([storage.join(folder, name) for name in names])
    return dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def _ask(
    audit: AuditContext, spec: Judge, items: Mapping[str, Item], folder: str
) -> dict[str, bool | None]:
    """Asks the judge, and keeps the verdicts in a file of the folder, without the texts."""
    from meow_ray.distributed import map_rows

    rows = [{ROW: row_id, **item._asdict()} for row_id, item in items.items()]
    rows.sort(key=lambda row: (-sum(map(len, row.values())), row[ROW]))
    table = pa.Table.from_pylist(rows, schema=_ITEMS_SCHEMA)
    name = storage.json_digest(sorted(items))[:32]
    work = map_rows.BatchWork(JudgeSteps(spec.prompt, spec.max_new_tokens))
    unfinished = storage.join(folder, name)
    done = map_rows.map_rows(
        table,
        ROW,
        _loader(audit, spec),
        work,
        unfinished,
        "audit",
        audit.context.config.resources,
    )
    found = sorted((row[ROW], row[judging.VERDICT]) for row in done.rows())
    ids, verdicts = zip(*found, strict=True)
    kept = pa.table({ROW: pa.array(ids), judging.VERDICT: pa.array(verdicts, pa.bool_())})
    storage.write_table(kept, storage.join(folder, f"{name}.parquet"))
    storage.remove(unfinished)
    return dict(found)


# --- what the manifest says -----------------------------------------------------------------------


def figures(audit: AuditContext, found: Judged) -> dict[str, Any]:
    """Returns the figures of the judge for the manifest; none without `audit.judge`.

    They name the judge by the model and by digests of its content and of its prompt.
    """
    spec = audit.spec.judge
    if spec is None:
        return {}
    model = audit.context.inputs[JUDGE_MODEL.name]
    ref = model.value
    name, digest = spec.model, storage.json_digest([spec.base_url, spec.model])
    if isinstance(ref, ModelRef):
        name, digest = ref.uri if ref.commit else PurePosixPath(ref.uri).name, ref.digest
    return {
        "judge": {
            "model": name,
            "endpoint": spec.base_url,
            "digest": digest,
            "prompt": storage.json_digest(spec.prompt),
            "replies": len(found.by_row),
            "missing": found.missing,
            "gives_away": found.shares(),
        }
    }
