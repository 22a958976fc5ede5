"""Events of a run: a stage is cached, waits for another driver, starts, or has finished."""

from dataclasses import dataclass
from typing import Any, Literal

from meow_ray.core.manifest import Manifest
from meow_ray.core.stage import State


@dataclass(frozen=True)
class Event:
    """One step of a stage in a run; as text it is a line for people.

    Attributes:
        stage: the name of the stage, after the label of its round.
        number: the position of the stage in the run, from 1.
        of: the number of stages in the run.
        kind: what happened.
        state: the stage against the cache at this moment.
        holder: the driver that is waited for, in words; empty if there is none.
    """

    stage: str
    number: int
    of: int
    kind: Literal["cached", "waiting", "started", "finished"]
    state: State
    holder: str = ""

    def __str__(self) -> str:
        return f"[{self.number}/{self.of}] {self.stage}: {self._text()}"

    def _text(self) -> str:
        if self.kind == "started":
            return self.state.reason or "forced"
        if self.kind == "waiting":
            return f"waits for another driver ({self.holder})"
        manifest = self.state.artifact.manifest if self.state.artifact else None
        if self.kind == "finished" and manifest:
            return f"{_size(manifest)} in {manifest.seconds:.0f} s"
        return self.kind

    def as_row(self) -> dict[str, Any]:
        """Returns the event for programs, as `--json` prints it."""
        row = {"event": self.kind, **self.state.as_row(), "stage": self.stage}
        return row | {"holder": self.holder} if self.holder else row


def _size(manifest: Manifest) -> str:
    if manifest.rows is not None:
        return f"{manifest.rows} rows"
    num_bytes = sum(entry.bytes for entry in manifest.files.values())
    return f"{num_bytes / 1e6:.1f} MB"
