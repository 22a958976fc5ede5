"""What the sections of the configuration are made of."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


def content(default: Any, description: str, **kwargs: Any) -> Any:
    """Declares a field that names something outside, which enters fingerprints by its content."""
    return Field(default, description=description, json_schema_extra={"content": True}, **kwargs)


def field(default: Any, description: str, unit: str = "", **kwargs: Any) -> Any:
    """Declares a field with its meaning and unit."""
    return Field(default, description=description, json_schema_extra={"unit": unit}, **kwargs)


def extra(info: FieldInfo) -> dict[str, Any]:
    """Returns what a field is marked with: `content`, `unit`."""
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


class Section(BaseModel):
    """A frozen group of keys that knows no others."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    def spec(self) -> dict[str, Any]:
        """Returns the fields that change results, without those that enter by content."""
        outside = {
            name for name, info in type(self).model_fields.items() if extra(info).get("content")
        }
        return self.model_dump(mode="json", exclude=outside)
