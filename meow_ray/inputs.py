"""From a stage's declared inputs to what its code works with."""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from meow_ray import facts as facts_module
from meow_ray.config import Config, EngineResources, Invert, Source, Target
from meow_ray.engines import EngineSpec
from meow_ray.models import ModelRef
from meow_ray.stage import Artifact

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


def rejects_text(rejects: pa.Table, most: int = 10) -> str:
    """Names rejected rows by file, line and reason; no text of facts."""
    rows = rejects.slice(0, most).to_pylist()
    more = f"\n  … and {rejects.num_rows - most} more" if rejects.num_rows > most else ""
    lines = "".join(f"\n  {row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"{rejects.num_rows} rows were rejected:{lines}{more}"
