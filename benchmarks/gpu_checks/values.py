"""What a check is given, and what it yields. It imports only the standard library."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What the device can do, as measured by the check `limits`."""

    flops: float
    """Floating-point operations per second of a large bfloat16 matrix product."""
    bandwidth: float
    """Bytes per second that a copy within the device's memory reads and writes."""


@dataclass(frozen=True)
class Setting:
    """Where the checks run."""

    device: str
    """`cuda` or `cpu`. On `cpu` all models are tiny and the figures mean nothing."""
    folder: str
    """A folder for models and data, which is deleted at the end."""
    model: str = ""
    """A model folder or .gguf file that the user names; empty for the default."""
    limits: Limits | None = None
    """None before they are measured."""

    @property
    def reduced(self) -> bool:
        """Whether the checks run in their reduced form, since there is no CUDA device."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Measurement:
    """One figure of a check."""

    name: str
    value: float | str | None
    """None if it was not measured; `note` then says why."""
    unit: str = ""
    share: float | None = None
    """The value as a share of what the device can do; see `note`."""
    note: str = ""


class CheckError(Exception):
    """A result is outside its tolerance."""
