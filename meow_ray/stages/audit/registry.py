"""All attacks: those that ask questions, and those that make models or ask in several rounds."""

from meow_ray.stages.audit.attack import Attack
from meow_ray.stages.audit.scoring import FurtherRows

QUESTIONS: dict[str, Attack] = {}
"""The attacks that ask questions, by name. The stage asks each model all of them at once."""

FURTHER: dict[str, FurtherRows] = {}
"""The attacks that make models or ask in several rounds, by name. Each is called once and returns
its rows for all models."""
