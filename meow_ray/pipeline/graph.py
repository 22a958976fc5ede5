"""The stages of the pipeline, in order, and those that evaluate one model alone."""

from dataclasses import replace

from meow_ray.config import Config
from meow_ray.core.stage import Stage
from meow_ray.stages.evaluate.stage import EVALUATE, EVALUATE_ALONE
from meow_ray.stages.ingest.stage import INGEST, INGEST_ALONE
from meow_ray.stages.invert.stage import INVERT
from meow_ray.stages.memo.stage import MEMO, REMAIN
from meow_ray.stages.neighbours.stage import NEIGHBOURS
from meow_ray.stages.report.stage import REPORT, REPORT_ALONE
from meow_ray.stages.select.stage import SELECT
from meow_ray.stages.train import objectives
from meow_ray.stages.train.stage import MEMORIZE, REFERENCE, TRAIN
from meow_ray.stages.twins.stage import TWINS


def _reads_neighbours(config: Config) -> bool:
    return objectives.configured(config.train).retains_neighbours


def _reads_twins(config: Config) -> bool:
    trains_with_twins = objectives.configured(config.train).watches_facts
    return trains_with_twins or objectives.compares_with_twins(config)


STAGES: tuple[Stage, ...] = (
    MEMORIZE,
    INGEST,
    INVERT,
    replace(NEIGHBOURS, enabled=_reads_neighbours),
    replace(TWINS, enabled=_reads_twins),
    MEMO,
    SELECT,
    REFERENCE,
    TRAIN,
    REMAIN,
    EVALUATE,
    REPORT,
)

STAGES_ALONE: tuple[Stage, ...] = (MEMORIZE, INGEST_ALONE, EVALUATE_ALONE, REPORT_ALONE)
"""The stages that measure what the target knows, without unlearning."""
