"""The learning rate of an objective, if none is configured."""

from meow_ray.config import LEARNING_RATE
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train.objective_spec import ObjectiveSpec

RATE_BY_WIDTH = 0.06
"""Learning rate times the width of the model, for objectives that end by themselves."""


def default_learning_rate(model: ModelRef, objective: ObjectiveSpec) -> float:
    """Returns the learning rate that suits an objective, and for some the width of the model.

    Wider models need smaller ones: 1e-4 for 576 (SmolLM2-135M), 1.5e-5 for 4,096 (Llama 3 8B).
    """
    if not objective.scales_learning_rate:
        return objective.own_learning_rate or LEARNING_RATE
    width: int = refs.load_model_config(model).get_text_config().hidden_size
    return RATE_BY_WIDTH / width
