"""Throughputs of engines and workers: measured by a probe, or given in a file."""

from pydantic import ValidationError

from meow_ray.config.fields import Section
from meow_ray.config.fields import field as key
from meow_ray.core import storage
from meow_ray.errors import MeowError


class EngineRates(Section):
    """What one engine does."""

    start: float = key(60.0, "until it has loaded", "s", ge=0)
    read: float = key(..., "prompts and forced answers", "tokens/s", gt=0)
    generate: float = key(..., "continuations, over a full batch", "tokens/s", gt=0)


class TrainingRates(Section):
    """What one worker does."""

    start: float = key(
        120.0, "until the first step, and from the last one to the exported model", "s", ge=0
    )
    train: float = key(..., "forwards, backwards and the optimiser's step", "tokens/s", gt=0)


class Rates(Section):
    """Measured or given throughputs."""

    generator: EngineRates = key(..., "of the model of invert")
    target: EngineRates = key(..., "of the target")
    training: TrainingRates = key(..., "of one worker")
    memorizing: TrainingRates | None = key(
        None, "of one worker of memorize, whose batches are others; null: as training"
    )


def read_rates(uri: str) -> Rates:
    """Reads rates from a JSON file.

    Raises:
        MeowError: a key is missing, unknown or no rate.
    """
    try:
        return Rates.model_validate(storage.read_json(uri))
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(map(str, item["loc"]))
        raise MeowError(f"--rates {storage.display(uri)}: `{where}`: {item['msg']}.") from None
