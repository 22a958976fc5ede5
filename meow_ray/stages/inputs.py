"""From a stage's declared inputs to what its code works with."""

from dataclasses import replace

from meow_ray.config import EngineResources, Invert, Target
from meow_ray.core.manifest import Artifact
from meow_ray.engines import EngineSpec
from meow_ray.models.refs import ModelRef


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


TEMPLATE = ("target.template", "target.system")


COLUMNS = ("ingest.question_columns", "ingest.answer_columns")
