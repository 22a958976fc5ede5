"""A stage is a value; its artifact is found by fingerprint, published whole, described by a manifest."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import uuid4

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import checks, storage
from meow_ray.core.manifest import (
    MAIN,
    MANIFEST,
    Artifact,
    Manifest,
    file_entry,
    find,
    latest,
    library_versions,
    load,
)
from meow_ray.core.outside import Adopt, OutsideInput
from meow_ray.errors import MeowError


@dataclass(frozen=True)
class Context:
    """What one run of a stage sees: its own sections, its declared inputs, a fresh folder, a folder for resuming."""

    config: Config
    """The sections that the stage declares, with resources and tracking; another section is an error."""
    inputs: Mapping[str, Artifact]
    stage: "Stage"
    out: str
    work: str
    """Stable under the fingerprint, so that a stage that was cut off finds what it had finished."""
    root: str
    engine_spec: Callable[..., Any]
    """Says how an actor loads a model; see `stages.inputs.engine_spec`."""

    @property
    def scratch(self) -> str:
        """Shared by all runs: work that a stage keys by itself."""
        return storage.join(self.root, "work")

    def path(self, name: str = MAIN) -> str:
        """Returns the URI of a file of the artifact."""
        return storage.join(self.out, name)

    def write(self, table: pa.Table, name: str = MAIN) -> None:
        """Writes a table into the artifact; the main one must be of its schema."""
        if name == MAIN:
            assert self.stage.schema is not None, f"stage {self.stage.name} declares no table"
            table = checks.conform_to(table, self.stage.artifact, self.stage.schema, self.stage.key)
        storage.write_table(table, self.path(name))


Input = str | OutsideInput
"""An artifact of another stage, by name, or an input from outside."""

Inputs = tuple[Input, ...] | Callable[[Config], tuple[Input, ...]]
"""The inputs of a stage, or a function that finds them by the configuration."""


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the pipeline, as a value.

    Attributes:
        name: the name on the command line; the stage's folder and section have it too.
        artifact: the name of what the stage makes.
        version: raised by hand when the same inputs and settings give another result.
        sections: sections of the configuration that the stage may see, or single fields such as
            `target.template`. Their spec enters the fingerprint.
        inputs: what the stage reads; a function if that depends on the configuration.
        run: writes the artifact and returns a summary for the manifest: counts and figures, never text of facts.
        schema: the columns of the table that the stage writes; None for a model or a page.
        key: the columns that identify a row of it.
        adopt: takes the artifact from `--input NAME=URI` instead of running the stage; None refuses that.
        enabled: whether a configuration has this stage.
        resources: the section of `resources` that places its actors or workers, if it has any.
        uses_gpus: whether its actors use GPUs where there are any.
        check: raises MeowError for what is wrong with the configuration and those inputs that exist already. It runs
            before any earlier stage starts actors or workers.
    """

    name: str
    artifact: str
    version: int
    sections: tuple[str, ...]
    inputs: Inputs
    run: Callable[[Context], dict[str, Any]]
    schema: pa.Schema | None = None
    key: tuple[str, ...] = ()
    adopt: Adopt | None = None
    enabled: Callable[[Config], bool] = _always
    resources: str | None = None
    uses_gpus: Callable[[Config], bool] = _always
    check: Callable[[Config, Mapping[str, Artifact]], Any] | None = None

    def declared_inputs(self, config: Config) -> tuple[Input, ...]:
        """Returns the inputs that the stage has under a configuration."""
        return self.inputs(config) if callable(self.inputs) else self.inputs

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Returns the names of these inputs."""
        return tuple(
            entry if isinstance(entry, str) else entry.name
            for entry in self.declared_inputs(config)
        )

    def ingredients(self, config: Config, digests: Mapping[str, str]) -> dict[str, Any]:
        """Returns what the fingerprint is the hash of, given the digests of all inputs."""
        return {
            "stage": self.name,
            "version": self.version,
            "schema": {f.name: str(f.type) for f in self.schema} if self.schema else None,
            "spec": {name: _spec(config, name) for name in self.sections},
            "inputs": dict(digests),
        }


@dataclass(frozen=True)
class State:
    """Where a stage stands against the cache."""

    stage: Stage
    state: Literal["cached", "stale", "missing"]
    reason: str = ""
    fingerprint: str | None = None
    artifact: Artifact | None = None
    ingredients: dict[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Returns the state for people and programs."""
        manifest = self.artifact.manifest if self.artifact else None
        return {
            "stage": self.stage.name,
            "state": self.state,
            "reason": self.reason,
            "rows": manifest.rows if manifest else None,
            "seconds": round(manifest.seconds, 1) if manifest else None,
            "uri": storage.display(self.artifact.uri) if self.artifact else None,
            "fingerprint": self.fingerprint,
        }


def state_of(stage: Stage, config: Config, inputs: Mapping[str, Artifact | None]) -> State:
    """Compares a stage with the cache; an input that is None is still to be made."""
    root = storage.absolute(config.storage.root)
    waiting = [name for name, artifact in inputs.items() if artifact is None]
    known = {name: artifact.digest for name, artifact in inputs.items() if artifact is not None}
    previous = latest(root, stage.artifact)
    if waiting:
        state: Literal["stale", "missing"] = "stale" if previous else "missing"
        return State(stage, state, f"waits for {', '.join(waiting)}", artifact=None)
    ingredients = stage.ingredients(config, known)
    fingerprint = storage.json_digest(ingredients)
    found = find(root, stage.artifact, fingerprint)
    if found:
        return State(stage, "cached", "", fingerprint, found, ingredients)
    if previous and previous.manifest:
        reason = "; ".join(differences(previous.manifest.ingredients, ingredients))
        return State(stage, "stale", reason, fingerprint, None, ingredients)
    return State(stage, "missing", "never run", fingerprint, None, ingredients)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Says in words why two fingerprints differ."""
    before, after = _flatten(old), _flatten(new)
    out = []
    for key in sorted({*before, *after}):
        if before.get(key) == after.get(key):
            continue
        kind, _, name = key.partition(".")
        if kind == "inputs":
            out.append(f"input {name} changed")
        elif kind == "spec":
            out.append(f"{name}: {before.get(key)!r} → {after.get(key)!r}")
        else:
            out.append(
                f"{kind} changed"
                if kind == "schema"
                else f"code {key}: {before.get(key)} → {after.get(key)}"
            )
    return out


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            out |= _flatten(item, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = item
    return out


def no_engine_spec(*arguments: Any) -> Any:
    """Stands in for `stages.inputs.engine_spec` where a stage runs no engine."""
    raise AssertionError("this stage was started without a way to load engines")


def execute(
    state: State,
    config: Config,
    inputs: Mapping[str, Artifact],
    engine_spec: Callable[..., Any] = no_engine_spec,
) -> Artifact:
    """Runs a stage and publishes its artifact; if another driver publishes first, its artifact is used.

    Args:
        state: the stage, and where it stands against the cache.
        config: the whole configuration, of which the stage sees its sections.
        inputs: all that the stage declares.
        engine_spec: says how an actor loads a model; needed by stages that run one.
    """
    stage, root = state.stage, storage.absolute(config.storage.root)
    assert state.fingerprint is not None
    folder = storage.join(root, stage.artifact, f"{state.fingerprint[:16]}-{_next_number(state)}")
    attempt = uuid4().hex[:8]
    out = storage.join(folder, attempt)
    storage.make_folder(out)
    context = Context(
        config=cast(Config, ConfigSlice(config, stage.name, stage.sections)),
        inputs=inputs,
        stage=stage,
        out=out,
        work=storage.join(root, "work", state.fingerprint[:32]),
        root=root,
        engine_spec=engine_spec,
    )
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        summary = stage.run(context)
        files = {name: file_entry(storage.join(out, name)) for name in storage.list_files(out)}
        assert MAIN in files or stage.schema is None, f"stage {stage.name} wrote no table"
    except BaseException as error:
        published = load(folder) if isinstance(error, Exception) else None
        _discard(folder, out)
        if published is None:
            raise
        return published
    manifest = Manifest(
        artifact=stage.artifact,
        stage=stage.name,
        fingerprint=state.fingerprint,
        ingredients=state.ingredients,
        attempt=attempt,
        files=files,
        digest=storage.json_digest({name: entry.sha256 for name, entry in files.items()}),
        rows=files[MAIN].rows if MAIN in files else None,
        summary=summary,
        started=started.isoformat(timespec="microseconds"),
        seconds=time.monotonic() - clock,
        versions=library_versions(),
    )
    storage.write_json(
        storage.join(folder, MANIFEST), manifest.model_dump(mode="json"), exclusive=True
    )
    published = load(folder)
    assert published is not None
    assert published.manifest is not None
    if (
        published.manifest.attempt != attempt
    ):  # by what stands there: a write may be done and seem to have failed
        storage.remove(out)
    storage.remove(context.work)
    return published


def _spec(config: Config, name: str) -> Any:
    section, _, key = name.partition(".")
    spec = getattr(config, section).spec()
    return spec[key] if key else spec


class ConfigSlice:
    """The part of a configuration that one stage declares; it stands in for `Config` inside `Stage.run`.

    A stage that reads another section would depend on settings that its fingerprint does not know, so that is an
    error. `resources` and `tracking` never change a result and are always there.
    """

    def __init__(self, config: Config, stage: str, names: tuple[str, ...]) -> None:
        self._stage = stage
        self.resources = config.resources
        self.tracking = config.tracking
        for name in names:
            section, _, key = name.partition(".")
            whole = getattr(config, section)
            if not key:
                setattr(self, section, whole)
                continue
            if section not in vars(self):
                setattr(self, section, SimpleNamespace())
            setattr(getattr(self, section), key, getattr(whole, key))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"stage {self._stage} does not declare the section {name}")


def _next_number(state: State) -> int:
    """Returns the number of the folder for the next artifact of a fingerprint; a forced run makes a second one."""
    return 1 if state.artifact is None else state.artifact.number + 1


def _discard(folder: str, out: str) -> None:
    try:
        storage.remove(out)
        if not storage.list_names(folder):
            storage.remove(folder)
    except MeowError:
        pass  # the reason why the stage failed is worth more; a folder without a manifest is no artifact
