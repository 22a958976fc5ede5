"""What the stage `neighbours` asks the target, counted before a run."""

from math import ceil

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core.schema import ROW
from meow_ray.planning.sample import FactSample
from meow_ray.planning.tally import Tally
from meow_ray.stages.neighbours.stage import SPARE
from meow_ray.stages.neighbours.steps import NeighbourSteps


def num_neighbours(config: Config, num_facts: int) -> int:
    """Returns how many neighbours each fact gets if each question has an entity."""
    spec = config.neighbours
    return max(spec.per_fact, ceil(spec.minimum / max(1, num_facts)))


def count_neighbours(config: Config, sample: FactSample, tally: Tally) -> None:
    """Counts the answers about the sampled facts; each is assumed to be as long as allowed."""
    forget = sample.split("forget").select(["fact_id", "question", "answer"])
    _steps(config, sample)(tally, forget.append_column(ROW, forget["fact_id"]))


def count_generic_turn(config: Config, sample: FactSample, tally: Tally) -> None:
    """Counts one generic turn: the questions that the target invents, and the answer to one."""
    columns = {name: pa.array([None], pa.string()) for name in ("fact_id", "question", "answer")}
    _steps(config, sample)(tally, pa.table({ROW: ["generic"], **columns}))
    tally.requests += 1
    tally.generated += config.neighbours.max_new_tokens


def num_generic(config: Config) -> int:
    """Returns the number of generic turns that are asked for."""
    return ceil(SPARE * config.neighbours.generic)


def _steps(config: Config, sample: FactSample) -> NeighbourSteps:
    target = config.target
    return NeighbourSteps(
        spec=config.neighbours,
        per_fact=ceil(SPARE * num_neighbours(config, sample.counts["forget"])),
        max_length=config.train.max_length,
        template=target.template,
        facts=sample.facts,
        system=target.system,
        variables=target.template_variables,
    )
