"""Throughputs of engines and workers, which a probe measures or a file gives."""

from pydantic import ValidationError

from meow_ray.config import fields
from meow_ray.core import storage
from meow_ray.errors import MeowError


class EngineRates(fields.Section):
    """The start-up time and the throughputs of one engine."""

    start: float = fields.field(60.0, "time to load the engine", "s", ge=0)
    read: float = fields.field(..., "prompt and teacher-forced tokens", "tokens/s", gt=0)
    generate: float = fields.field(..., "generated tokens in a full batch", "tokens/s", gt=0)


class TrainingRates(fields.Section):
    """The start-up time and the throughput of one training worker."""

    start: float = fields.field(
        120.0, "time before the first step and after the last one, with the export", "s", ge=0
    )
    train: float = fields.field(
        ..., "trained tokens: forward, backward and optimiser step", "tokens/s", gt=0
    )


class Rates(fields.Section):
    """The throughputs of all engines and workers of a run."""

    generator: EngineRates = fields.field(..., "rates of the model of `invert`")
    target: EngineRates = fields.field(..., "rates of the target")
    training: TrainingRates = fields.field(..., "rates of one worker of `train`")
    memorizing: TrainingRates | None = fields.field(
        None, "rates of one worker of `memorize`; null uses those of `train`"
    )


def read_rates(uri: str) -> Rates:
    """Reads rates from a JSON file.

    Raises:
        MeowError: a key is missing or unknown, or its value is not a valid rate.
    """
    try:
        return Rates.model_validate(storage.read_json(uri))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise MeowError(
            f"--rates {storage.display(uri)}: `{key}`: {first['msg']}. "
            "Give a file as `meow plan --probe --json` prints it under `run.rates`."
        ) from None
