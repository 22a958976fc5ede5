"""The facts never taught, without which no verdict is possible."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from meow_ray.config import Audit, Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.stages.audit.attack import Subject

NO_CONTROL = (
    "there is no control: neither a retain model nor twins. Every attack is run, and every verdict "
    "can only be inconclusive. Set `evaluate.retain_model` to a model that never saw the forget "
    "set, set `invert.model` so that twins are made, or give --input twins=URI."
)
"""What is said before an audit without facts never taught."""


def _no_twins(config: Config, verify: bool) -> Artifact:
    return Artifact("twins", "", "none")


GIVEN_TWINS = OutsideInput("twins", _no_twins, adopt_table)
"""Twins that the user gives, in a configuration that has no generator to make them."""


def can_make_twins(config: Config) -> bool:
    """Whether a configuration has a generator, so that twins can be made of inverted facts."""
    return config.invert.engine == "openai" or config.invert.model is not None


def makes_twins(config: Config) -> bool:
    """Whether twins are made for an audit; a retain model is a better control and needs none."""
    return can_make_twins(config) and not has_retain_model(config)


def audit_reads_twins(config: Config) -> bool:
    """Whether a configuration has an audit for which twins are made."""
    return config.pipeline.audit and makes_twins(config)


def has_retain_model(config: Config) -> bool:
    """Whether the configuration names a retain model, and not only its results."""
    retain = config.evaluate.retain_model
    return retain is not None and PurePosixPath(storage.display(retain)).suffix != ".json"


def hint(config: Config, given: Sequence[str] = ()) -> str | None:
    """Returns what an audit cannot find out, before it runs; None if it has a control.

    Args:
        config: the configuration.
        given: names of the inputs that the user gives, and of the artifacts of the pipeline.
    """
    has_control = "retain_model" in given or has_retain_model(config)
    return None if has_control or "twins" in given else NO_CONTROL


def shortage(subjects: Sequence[Subject], has_retain_model: bool, spec: Audit) -> str | None:
    """Returns what an audit cannot find out because it has too few facts never taught, or None."""
    group = "facts" if has_retain_model else "twins"
    count = sum(subject.group == group for subject in subjects)
    if not count:
        return NO_CONTROL
    if count < spec.minimum_controls:
        return (
            f"there are {count} facts never taught, fewer than `audit.minimum_controls` "
            f"({spec.minimum_controls}). Every verdict can only be inconclusive. Make more twins "
            "(`twins.minimum`), or give a larger set."
        )
    return None
