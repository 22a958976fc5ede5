"""A small stage `ingest` that writes one fact, for tests of the cache."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage, State, execute, state_of

FACTS = pa.table(
    {"fact_id": ["a"], "split": ["forget"], "question": ["A?"], "answer": ["A"]},
    schema=SCHEMAS["facts"],
)
DATA = Artifact(name="data", uri="", digest="digest of the data")
INPUTS = {"data": DATA}


def write_facts(context: Context) -> dict[str, Any]:
    """Writes `FACTS` as the stage's table."""
    context.write(FACTS)
    return {"forget": 1}


def make_stage(run: Callable[[Context], dict[str, Any]] = write_facts, **fields: Any) -> Stage:
    """Returns the stage, with a function to run and other fields changed."""
    stage = Stage(
        name="ingest",
        artifact="facts",
        version=1,
        sections=("ingest", "target.max_model_len"),
        inputs=("data",),
        run=run,
        schema=SCHEMAS["facts"],
        key=KEYS["facts"],
    )
    return replace(stage, **fields)


def state(stage: Stage, config: Config) -> State:
    """Returns what the cache has for the stage over `INPUTS`."""
    return state_of(stage, config, INPUTS)


def run_stage(stage: Stage, config: Config) -> Artifact:
    """Runs the stage over `INPUTS`, cached or not."""
    return execute(state(stage, config), config, INPUTS)


def files(config: Config) -> list[str]:
    """Returns the paths of all files below the storage root."""
    return storage.list_files(config.storage.root)
