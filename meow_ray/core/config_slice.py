"""The part of a configuration that a stage may read."""

from typing import Any

from meow_ray.config import Config


def spec_of(config: Config, name: str) -> Any:
    """Returns the spec of a section (`select`) or of a single field (`target.template`)."""
    section, _, key = name.partition(".")
    spec = getattr(config, section).spec()
    # a field that is content has no value here: it enters through an input
    return spec.get(key) if key else spec


class ConfigSlice:
    """The sections and fields of a configuration that one stage declares, under their usual names.

    It takes the place of `Config` inside `Stage.run`. A stage that reads anything else would depend
    on settings that are missing from its fingerprint, so that is an AttributeError. `resources` and
    `tracking` never change a result, and every stage may read them.

    Args:
        config: the whole configuration.
        stage: name of the stage, for errors.
        declared: names of sections (`select`) or of single fields (`target.template`).
    """

    _stage = ""  # a default, because pickle asks for attributes before it sets any

    def __init__(self, config: Config, stage: str, declared: tuple[str, ...]) -> None:
        self._stage = stage
        self.resources = config.resources
        self.tracking = config.tracking
        fields_of: dict[str, dict[str, Any]] = {}
        for name in declared:
            section, _, field = name.partition(".")
            whole = getattr(config, section)
            if field:
                fields_of.setdefault(section, {})[field] = getattr(whole, field)
            else:
                setattr(self, section, whole)
        for section, fields in fields_of.items():
            if section not in vars(self):
                setattr(self, section, SectionSlice(section, stage, fields))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"stage {self._stage} does not declare the section {name}. Add it to its sections."
        )


class SectionSlice:
    """The fields of one section that a stage declares; reading another is an AttributeError.

    Args:
        section: name of the section.
        stage: name of the stage, for errors.
        fields: values by field.
    """

    _section = ""
    _stage = ""

    def __init__(self, section: str, stage: str, fields: dict[str, Any]) -> None:
        self._section = section
        self._stage = stage
        vars(self).update(fields)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"stage {self._stage} does not declare the field {self._section}.{name}. "
            "Add it to its sections."
        )
