"""Models as the attacks load them that read or change weights: by the engine of transformers."""

from dataclasses import replace
from typing import Any

from meow_ray import engines
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import uld
from meow_ray.stages.audit.reasons import MissingError


def load(spec: EngineSpec) -> Any:
    """Returns the engine of transformers with a model, whichever engine the spec names.

    Raises:
        MissingError: transformers cannot load the model, it is too large for one GPU, or it is
            a ULD model, which is two models.
    """
    import torch

    if uld.is_uld(spec.model):
        raise MissingError(
            "two_models",
            "the model is a ULD model; who has its weights can leave out its assistant, and has "
            "the model before unlearning",
        )
    try:
        return engines.build(replace(spec, engine="transformers"))
    except torch.OutOfMemoryError:
        raise MissingError("out_of_memory", "the model does not fit into one GPU") from None
    except (MeowError, ImportError, ValueError) as error:
        # vLLM may have asked a model that transformers does not know
        raise MissingError("engine_failed", f"transformers cannot load it ({error})") from None
