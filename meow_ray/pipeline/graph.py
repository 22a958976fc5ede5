"""The stages: each glues pure functions to the cluster and writes one artefact."""

from dataclasses import replace

from meow_ray.config import Config
from meow_ray.core.stage import Stage
from meow_ray.stages.evaluate.stage import EVALUATE
from meow_ray.stages.ingest.stage import INGEST
from meow_ray.stages.invert.stage import INVERT
from meow_ray.stages.memo.stage import MEMO, REMAIN
from meow_ray.stages.report.stage import REPORT
from meow_ray.stages.select.stage import SELECT
from meow_ray.stages.train.objectives import ObjectiveSpec
from meow_ray.stages.train.stage import MEMORIZE, REFERENCE, TRAIN

# --- ingest -----------------------------------------------------------------------------------------------------------


# --- invert -----------------------------------------------------------------------------------------------------------


# --- memo -------------------------------------------------------------------------------------------------------------


# --- select -----------------------------------------------------------------------------------------------------------


# --- evaluate ---------------------------------------------------------------------------------------------------------


# --- report -----------------------------------------------------------------------------------------------------------


STAGES = (MEMORIZE, INGEST, INVERT, MEMO, SELECT, REFERENCE, TRAIN, REMAIN, EVALUATE, REPORT)
"""The pipeline, in order."""


def stages_of(config: Config, objective: ObjectiveSpec) -> list[Stage]:
    """Returns the stages that a configuration has, with the inputs that its objective reads."""
    left_out = set()
    if config.memorize is None:
        left_out.add("memorize")
    if objective.reference != "log_probs":
        left_out.add("reference")
    if config.pipeline.rounds == 1:
        left_out.add("remain")
    return [_with_inputs(stage, config, objective) for stage in STAGES if stage.name not in left_out]


def _with_inputs(stage: Stage, config: Config, objective: ObjectiveSpec) -> Stage:
    more: list[str] = []
    if stage.name in ("reference", "train"):
        roles = objective.reads if stage.name == "reference" else objective.roles
        more += ["selected"] if "inverted" in roles else []
        more += ["facts"] if set(roles) - {"inverted"} else []
    if stage.name == "train" and objective.reference == "log_probs":
        more.append("reference")
    if stage.name in ("memorize", "train") and getattr(config, stage.name).deepspeed:
        more.append(f"{stage.name}_deepspeed")
    return replace(stage, inputs=(*more, *stage.inputs))
