"""The stages of the pipeline, in order, and those that evaluate one model alone."""

from dataclasses import replace

from meow_ray.config import Config
from meow_ray.core.stage import Stage
from meow_ray.stages.audit.hints import audit_reads_twins
from meow_ray.stages.audit.stage import AUDIT
from meow_ray.stages.evaluate.stage import EVALUATE, EVALUATE_ALONE
from meow_ray.stages.ingest.stage import INGEST, INGEST_ALONE
from meow_ray.stages.invert.stage import INVERT
from meow_ray.stages.memo.stage import MEMO, REMAIN
from meow_ray.stages.neighbours.stage import NEIGHBOURS
from meow_ray.stages.paraphrases.stage import paraphrases_stage
from meow_ray.stages.report.stage import REPORT, REPORT_ALONE
from meow_ray.stages.select.stage import SELECT
from meow_ray.stages.train import objectives
from meow_ray.stages.train.fila_stage import FILA
from meow_ray.stages.train.guesses import GUESSES
from meow_ray.stages.train.stage import MEMORIZE, REFERENCE, TRAIN
from meow_ray.stages.twins.stage import TWINS


def _reads_neighbours(config: Config) -> bool:
    return objectives.configured(config.train).retains_neighbours


def _reads_twins(config: Config) -> bool:
    trains_with_twins = objectives.configured(config.train).watches_facts
    return trains_with_twins or objectives.compares_with_twins(config) or audit_reads_twins(config)


def _never(config: Config) -> bool:
    return False


def _num_paraphrases(config: Config) -> int:
    return objectives.configured(config.train).paraphrases


STAGES: tuple[Stage, ...] = (
    MEMORIZE,
    INGEST,
    INVERT,
    paraphrases_stage(_num_paraphrases),
    replace(NEIGHBOURS, enabled=_reads_neighbours),
    replace(TWINS, enabled=_reads_twins),
    MEMO,
    SELECT,
    GUESSES,
    REFERENCE,
    FILA,
    TRAIN,
    REMAIN,
    EVALUATE,
    AUDIT,
    REPORT,
)

STAGES_ALONE: tuple[Stage, ...] = (MEMORIZE, INGEST_ALONE, EVALUATE_ALONE, REPORT_ALONE)
"""The stages that measure what the target knows, without unlearning."""

STAGES_TO_AUDIT: tuple[Stage, ...] = (
    MEMORIZE,
    INGEST,
    INVERT,
    paraphrases_stage(_num_paraphrases),
    replace(TWINS, enabled=audit_reads_twins),
    replace(TRAIN, enabled=_never),  # it says how a given model is read
    AUDIT,
)
"""The stages that audit two given models, without unlearning."""
