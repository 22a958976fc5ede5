"""The configuration: all sections and fields, with defaults, meanings, units and bounds."""

from meow_ray.config.auditing import ATTACKS, JUDGE, Attacker, Audit, Judge, Relearn
from meow_ray.config.config import Config, PipelineSection, Storage, Tracking
from meow_ray.config.evaluation import Evaluate, LmEval, Report
from meow_ray.config.resources import (
    NODE_LABELS,
    EngineResources,
    InvertResources,
    NodeType,
    Resources,
    TrainResources,
)
from meow_ray.config.sections import (
    Dtype,
    Ingest,
    Invert,
    Memo,
    ModelSection,
    Select,
    Source,
    Target,
)
from meow_ray.config.synthetic import Neighbours, Paraphrases, Twins
from meow_ray.config.training import (
    LEARNING_RATE,
    OWN_OBJECTIVE,
    FineTuning,
    Lora,
    Memorize,
    RetainSource,
    Train,
)

__all__ = [
    "ATTACKS",
    "JUDGE",
    "LEARNING_RATE",
    "NODE_LABELS",
    "OWN_OBJECTIVE",
    "Attacker",
    "Audit",
    "Config",
    "Dtype",
    "EngineResources",
    "Evaluate",
    "FineTuning",
    "Ingest",
    "Invert",
    "InvertResources",
    "Judge",
    "LmEval",
    "Lora",
    "Memo",
    "Memorize",
    "ModelSection",
    "Neighbours",
    "NodeType",
    "Paraphrases",
    "PipelineSection",
    "Relearn",
    "Report",
    "Resources",
    "RetainSource",
    "Select",
    "Source",
    "Storage",
    "Target",
    "Tracking",
    "Train",
    "TrainResources",
    "Twins",
]
