"""Inference engines: they continue prompts and measure the log-probabilities of given answers."""

from meow_ray.engines.base import (
    Completion,
    Engine,
    EngineSpec,
    Sampling,
    TeacherForced,
    force_to_any_end,
)

__all__ = [
    "Completion",
    "Engine",
    "EngineSpec",
    "Sampling",
    "TeacherForced",
    "build",
    "force_to_any_end",
]


def build(spec: EngineSpec) -> Engine:
    """Loads the model of a spec into the engine that the spec names."""
    if spec.engine == "vllm":
        from meow_ray.engines.vllm import VllmEngine

        return VllmEngine(spec)
    from meow_ray.engines.transformers import TransformersEngine

    return TransformersEngine(spec)
