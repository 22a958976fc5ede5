"""The parts of a run that has an audit, or of the audit of a given model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

from meow_ray.config import Config
from meow_ray.core.stage import Stage
from meow_ray.distributed import progress
from meow_ray.errors import MeowError
from meow_ray.pipeline.graph import STAGES_TO_AUDIT
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.pipeline.rounds import Part, parts_of_run
from meow_ray.stages.audit import hints


def parts_of_audit(
    config: Config, overrides: Mapping[str, str] | None = None, **options: Any
) -> Iterator[Part]:
    """Yields the parts of a run up to its audit, whatever `pipeline.audit` says.

    With several rounds, the part after the last one also evaluates and reports. If a tuned model is
    given, nothing is trained: the one part has the stages that the audit of this model needs.

    Args:
        config: the configuration.
        overrides: artifacts made elsewhere, by name; `model` is a tuned model.
        **options: other options of `Pipeline`.

    Raises:
        MeowError: an override gives the audit, or there are several rounds, and one gives what each
            round makes.
    """
    if "audit" in (overrides or {}):
        raise MeowError("--input audit: an audit is what is made here. Remove the input.")
    section = config.pipeline.model_copy(update={"audit": True})
    config = config.model_copy(update={"pipeline": section})
    is_given = "model" in (overrides or {})
    if not is_given and config.pipeline.rounds > 1:
        yield from parts_of_run(config, overrides, **options)
        return
    if is_given:
        options["stages"] = STAGES_TO_AUDIT
    pipeline = Pipeline(config, overrides, **options)
    until_audit = pipeline.selection(None, None, "audit")
    chosen = _needed_for("audit", pipeline) if is_given else until_audit
    yield Part("", pipeline, chosen, chosen)


def warn_before_audit(part: Part) -> None:
    """Warns that an audit has no facts never taught to compare with."""
    pipeline = part.pipeline
    hint = hints.hint(pipeline.config, [*pipeline.overrides, *pipeline.producers])
    if hint:
        progress.warn("audit", hint)


def pieces(part: Part, *, force: bool) -> Iterator[tuple[Part, bool]]:
    """Yields the pieces of a part that run one after another, and whether each is forced.

    Forced is the audit alone, so that nothing is trained again; without `force`, the part is the
    only piece.
    """
    if not force:
        yield part, False
        return
    for is_audit, steps in groupby(part.stages, key=lambda step: step.name == "audit"):
        stages = list(steps)
        yield replace(part, stages=stages, ahead=stages if is_audit else part.ahead), is_audit


def _needed_for(artifact: str, pipeline: Pipeline) -> list[Stage]:
    """Returns the stages that an artifact depends on, in order, and the stage that makes it."""
    wanted = {artifact}
    for step in reversed(pipeline.stages):
        if step.artifact in wanted and step.artifact in pipeline.producers:
            wanted.update(step.input_names(pipeline.config))
    return [step for step in pipeline.producers.values() if step.artifact in wanted]
