"""Finds everything that can be known to go wrong before a run: all mistakes at once, in seconds."""

from collections.abc import Iterator, Sequence

from meow_ray.config import Config
from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import FORESEEN, Known, Stage
from meow_ray.errors import MeowError


def findings(config: Config, steps: Sequence[Stage], known: Known) -> list[str]:
    """Returns the mistakes that the checks of stages find, a paragraph each.

    Args:
        config: the whole configuration.
        steps: the stages that would run, in order.
        known: the artifacts and inputs that exist already.
    """
    ahead = dict(known)
    paragraphs: list[str] = []
    for step in steps:
        paragraphs += _foreseen(step, config, ahead)
        for check in step.checks:
            try:
                paragraphs += check(config, ahead)
            except MeowError as error:
                paragraphs.append(str(error))
    return list(dict.fromkeys(paragraphs))


def _foreseen(step: Stage, config: Config, ahead: dict[str, Artifact]) -> Iterator[str]:
    """Adds the table that a stage will write to what is known; yields why it cannot be written."""
    if step.foresee is None or step.artifact in ahead:
        return
    try:
        table = step.foresee(config, ahead)
    except MeowError as error:
        yield str(error)
        return
    if table is not None:
        ahead[step.artifact] = Artifact(step.artifact, "", FORESEEN, value=table)


def error_of(paragraphs: Sequence[str]) -> MeowError:
    """Returns one error that names all mistakes."""
    if len(paragraphs) == 1:
        return MeowError(paragraphs[0])
    items = "\n".join(f"- {paragraph}" for paragraph in paragraphs)
    return MeowError(f"{len(paragraphs)} mistakes were found before the run:\n{items}")
