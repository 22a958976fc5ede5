"""The stage `ingest`: reads and checks the user's facts."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import REJECTS_FILE, Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest import facts as facts_module
from meow_ray.stages.ingest.facts import read_sources, rejects_text
from meow_ray.stages.inputs import GENERATOR, TARGET, data_sources, model_ref


def _ingest(context: Context) -> dict[str, Any]:
    config, data = context.config, context.inputs["data"].value
    limits = [_limit(context, "target", config.target.max_model_len)]
    if isinstance(context.inputs["generator"].value, ModelRef):
        limits.append(_limit(context, "generator", config.invert.max_model_len))

    def too_long(question: str, answer: str) -> str | None:
        for name, tokenizer, limit in limits:
            count = len(tokenizer(f"{question} {answer}")["input_ids"])
            if count > limit:
                return (
                    f"too long: {count} tokens, the {name} model reads {limit} besides its prompt"
                )
        return None

    forget = read_sources([data["forget"]], config)
    retain = read_sources([data["retain"]], config) if data["retain"] else []
    table, rejects = facts_module.build(forget, retain, too_long)
    context.write(rejects, REJECTS_FILE)
    if rejects.num_rows and config.ingest.on_reject == "fail":
        place = storage.join(context.work, REJECTS_FILE)
        storage.write_table(rejects, place)
        raise MeowError(
            f"{rejects_text(rejects)}\nMend these rows, or set ingest.on_reject=skip to go on without them. "
            f"All of them are in {storage.display(place)}."
        )
    if not pc.any(pc.equal(table["split"], "forget")).as_py():
        raise MeowError(
            f"{data['forget'].path}: no row is left to forget, all {rejects.num_rows} were rejected."
        )
    context.write(table)
    splits = Counter(table["split"].to_pylist())
    return {"forget": splits["forget"], "retain": splits["retain"], "rejected": rejects.num_rows}


PROMPT_RESERVE = 128
"""Tokens of a model's context that are kept for templates around a fact."""


def _limit(context: Context, name: str, max_model_len: int | None) -> tuple[str, Any, int]:
    ref = model_ref(context.inputs[name])
    length = refs.context_length(ref, max_model_len)
    return name, refs.load_tokenizer(ref), length - min(PROMPT_RESERVE, length // 4)


def _data(config: Config, verify: bool) -> Artifact:
    """Returns the files of the facts to forget and of those to retain."""
    if config.ingest.forget is None:
        raise MeowError("`ingest.forget` is not set: name the file of the facts to forget.")
    return data_sources(
        "data", {"forget": config.ingest.forget, "retain": config.ingest.retain}, verify
    )


INGEST = Stage(
    name="ingest",
    artifact="facts",
    version=1,
    sections=("ingest", "target.max_model_len", "invert.max_model_len"),
    inputs=(OutsideInput("data", _data), TARGET, GENERATOR),
    run=_ingest,
    schema=SCHEMAS["facts"],
    key=KEYS["facts"],
    adopt=adopt_table,
)
