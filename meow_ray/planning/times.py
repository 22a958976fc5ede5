"""How long the work of a run takes, with the throughputs of its engines and workers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meow_ray.config import Config, EngineResources, TrainResources
from meow_ray.planning.rates import EngineRates, Rates, TrainingRates
from meow_ray.planning.tally import StageWork


@dataclass(frozen=True)
class Estimate:
    """The time that one stage takes."""

    work: StageWork
    units: int
    """Engines or workers."""
    seconds: float
    gpu_hours: float


_SECTIONS = {
    "reference": "memo",
    "neighbours": "memo",
    "paraphrases": "invert",
    "guesses": "invert",
    "fila": "train",
}
"""The section of `resources` of stages that have none of their own name."""


def _section(stage: str) -> str:
    """Returns the section of `resources` of a stage, or of its part, such as `audit: prune`."""
    name = stage.partition(":")[0]
    return _SECTIONS.get(name, name)


def stage_units(config: Config, stages: Sequence[str], gpus: int) -> dict[str, tuple[int, int]]:
    """Returns each stage's number of engines or workers, and the GPUs of each of them.

    With GPUs, each stage uses all of them; without, it has the configured actors or workers.
    """
    units = {}
    for stage in stages:
        resources: EngineResources | TrainResources = getattr(config.resources, _section(stage))
        if isinstance(resources, TrainResources):
            workers = 1 if stage == "fila" else resources.workers(gpus or 1)
            units[stage] = (workers, int(gpus > 0))
        elif gpus:
            gpus_per_engine = resources.tensor_parallel_size
            units[stage] = (max(1, gpus // gpus_per_engine), gpus_per_engine)
        else:
            units[stage] = (resources.actors[1], 0)
    return units


def estimate_times(
    works: Sequence[StageWork], rates: Rates, units: Mapping[str, tuple[int, int]]
) -> list[Estimate]:
    """Returns the time that each stage takes.

    Args:
        works: the stages' work.
        rates: the throughputs of one engine or worker.
        units: each stage's number of engines or workers, and the GPUs of each of them.
    """
    estimates = []
    for work in works:
        count, gpus = units[work.stage]
        is_training = work.by in ("training", "memorizing")
        time_of = _training_time if is_training else _engine_time
        seconds = time_of(work, rates, count)
        estimates.append(Estimate(work, count, seconds, seconds * count * gpus / 3600))
    return estimates


def _training_time(work: StageWork, rates: Rates, workers: int) -> float:
    rate: TrainingRates = getattr(rates, work.by) or rates.training
    return rate.start + work.trained / rate.train / workers


def _engine_time(work: StageWork, rates: Rates, engines: int) -> float:
    rate: EngineRates = getattr(rates, work.by)
    seconds = work.read / rate.read + work.generated / rate.generate
    seconds += work.trained / rates.training.train  # an audit teaches models in its engines
    return work.starts * rate.start + seconds / engines
