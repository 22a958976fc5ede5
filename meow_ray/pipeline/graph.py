"""The stages of the pipeline, in order."""

from meow_ray.core.stage import Stage
from meow_ray.stages.evaluate.stage import EVALUATE
from meow_ray.stages.ingest.stage import INGEST
from meow_ray.stages.invert.stage import INVERT
from meow_ray.stages.memo.stage import MEMO, REMAIN
from meow_ray.stages.report.stage import REPORT
from meow_ray.stages.select.stage import SELECT
from meow_ray.stages.train.stage import MEMORIZE, REFERENCE, TRAIN

STAGES: tuple[Stage, ...] = (
    MEMORIZE,
    INGEST,
    INVERT,
    MEMO,
    SELECT,
    REFERENCE,
    TRAIN,
    REMAIN,
    EVALUATE,
    REPORT,
)
