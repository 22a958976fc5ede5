"""What happens to a stage in a run."""

from dataclasses import dataclass
from typing import Any, Literal

from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import State


@dataclass(frozen=True)
class Event:
    """What happens to a stage in a run; as text a line for people."""

    stage: str
    number: int
    of: int
    what: Literal["cached", "started", "finished"]
    state: State

    def __str__(self) -> str:
        said: str = self.what
        if self.what == "started":
            said = self.state.reason or "forced"
        elif self.what == "finished" and self.state.artifact and self.state.artifact.manifest:
            said = (
                f"{_describe(self.state.artifact)} in {self.state.artifact.manifest.seconds:.0f} s"
            )
        return f"[{self.number}/{self.of}] {self.stage}: {said}"

    def as_row(self) -> dict[str, Any]:
        """Returns the event for programs."""
        return {"event": self.what, **self.state.as_row(), "stage": self.stage}


def _describe(artifact: Artifact) -> str:
    manifest = artifact.manifest
    assert manifest is not None
    if manifest.rows is not None:
        return f"{manifest.rows} rows"
    return f"{sum(entry.bytes for entry in manifest.files.values()) / 1e6:.1f} MB"
