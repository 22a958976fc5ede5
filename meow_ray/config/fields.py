"""Building blocks of the configuration: sections, and two kinds of fields."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


def content(default: Any, description: str, **kwargs: Any) -> Any:
    """Declares a field that names a model, a file or the like.

    Its content enters fingerprints instead of its value, so that a path may change.
    """
    return Field(default, description=description, json_schema_extra={"content": True}, **kwargs)


def field(default: Any, description: str, unit: str = "", **kwargs: Any) -> Any:
    """Declares any other field, with its meaning and unit."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **kwargs)


def extra(info: FieldInfo) -> dict[str, Any]:
    """Returns the marks of a field: `content` or `unit`."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


class Section(BaseModel):
    """A group of settings that cannot be changed; unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    def spec(self) -> dict[str, Any]:
        """Returns the fields that enter fingerprints by value, with those of inner sections."""
        outside = {
            name for name, info in type(self).model_fields.items() if extra(info).get("content")
        }
        values = self.model_dump(mode="json", exclude=outside)
        inner = {
            name: value.spec()
            for name, value in self
            if name not in outside and isinstance(value, Section)
        }
        return values | inner
