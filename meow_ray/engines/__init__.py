"""Inference engines: tokens in, text and log-probabilities out."""

from meow_ray.engines.base import Completion, Engine, EngineSpec, Sampling, TeacherForced

__all__ = ["Completion", "Engine", "EngineSpec", "Sampling", "TeacherForced", "build"]


def build(spec: EngineSpec) -> Engine:
    """Loads the engine that a spec names."""
    if spec.engine == "vllm":
        from meow_ray.engines.vllm import VllmEngine

        return VllmEngine(spec)
    from meow_ray.engines.transformers import TransformersEngine

    return TransformersEngine(spec)
