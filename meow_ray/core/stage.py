"""A stage is a value; its artefact is found by fingerprint, published whole, described by a manifest."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import uuid4

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import checks, schema, storage
from meow_ray.core.manifest import MAIN, MANIFEST, Artifact, Manifest, file_entry, find, latest, library_versions, load
from meow_ray.errors import MeowError


@dataclass(frozen=True)
class Context:
    """What one run of a stage sees: its own sections, its declared inputs, a fresh folder, a folder for resuming."""

    config: Config
    inputs: Mapping[str, Artifact]
    artefact: str
    out: str
    work: str
    """Stable under the fingerprint, so that a stage that was cut off finds what it had finished."""
    root: str

    @property
    def scratch(self) -> str:
        """Shared by all runs: work that a stage keys by itself."""
        return storage.join(self.root, "work")

    def path(self, name: str = MAIN) -> str:
        """Returns the URI of a file of the artefact."""
        return storage.join(self.out, name)

    def write(self, table: pa.Table, name: str = MAIN) -> None:
        """Writes a table into the artefact; the main one must be of its schema."""
        storage.write_table(checks.conform(table, self.artefact) if name == MAIN else table, self.path(name))


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    `version` is raised by hand when the code gives other results. `sections` are the sections of the
    configuration that the stage may see, or single fields such as `target.template`; their spec enters its
    fingerprint. `inputs` are artefacts of other stages, or models and sources of facts from outside.
    `run` writes the artefact and returns a summary for the manifest: counts and figures, never the text of facts.
    `resources` is the section of the configuration's resources that its actors or workers are placed by, if it has any.
    `check` raises MeowError for what is wrong with the configuration and the inputs that are there so far; it is asked
    before any stage that comes earlier spends actors or workers.
    """

    name: str
    artefact: str
    version: int
    sections: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Callable[[Context], dict[str, Any]]
    resources: str | None = None
    check: Callable[[Config, Mapping[str, Artifact]], Any] | None = None

    def ingredients(self, config: Config, digests: Mapping[str, str]) -> dict[str, Any]:
        """Returns what the fingerprint is the hash of."""
        columns = schema.SCHEMAS.get(self.artefact)
        return {
            "stage": self.name,
            "version": self.version,
            "schema": {f.name: str(f.type) for f in columns} if columns else None,
            "spec": {name: _spec(config, name) for name in self.sections},
            "inputs": {name: digests[name] for name in self.inputs},
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
    waiting = [name for name in stage.inputs if inputs[name] is None]
    known = {name: artifact.digest for name, artifact in inputs.items() if artifact is not None}
    previous = latest(root, stage.artefact)
    if waiting:
        state: Literal["stale", "missing"] = "stale" if previous else "missing"
        return State(stage, state, f"waits for {', '.join(waiting)}", artifact=None)
    ingredients = stage.ingredients(config, known)
    fingerprint = storage.json_digest(ingredients)
    found = find(root, stage.artefact, fingerprint)
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
            out.append(f"{kind} changed" if kind == "schema" else f"code {key}: {before.get(key)} → {after.get(key)}")
    return out


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            out |= _flatten(item, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = item
    return out


def execute(state: State, config: Config, inputs: Mapping[str, Artifact]) -> Artifact:
    """Runs a stage and publishes its artefact; if another driver publishes first, its artefact is used."""
    stage, root = state.stage, storage.absolute(config.storage.root)
    assert state.fingerprint is not None
    folder = storage.join(root, stage.artefact, f"{state.fingerprint[:16]}-{_next_number(root, state)}")
    attempt = uuid4().hex[:8]
    out = storage.join(folder, attempt)
    storage.make_folder(out)
    context = Context(
        config=_slice(config, stage.sections),
        inputs={name: inputs[name] for name in stage.inputs},
        artefact=stage.artefact,
        out=out,
        work=storage.join(root, "work", state.fingerprint[:32]),
        root=root,
    )
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        summary = stage.run(context)
        files = {name: file_entry(storage.join(out, name)) for name in storage.list_files(out)}
        assert MAIN in files or stage.artefact not in schema.SCHEMAS, f"stage {stage.name} wrote no table"
    except BaseException as error:
        published = load(folder) if isinstance(error, Exception) else None
        _discard(folder, out)
        if published is None:
            raise
        return published
    manifest = Manifest(
        artefact=stage.artefact,
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
    storage.write_json(storage.join(folder, MANIFEST), manifest.model_dump(mode="json"), exclusive=True)
    published = load(folder)
    assert published is not None
    assert published.manifest is not None
    if published.manifest.attempt != attempt:  # by what stands there: a write may be done and seem to have failed
        storage.remove(out)
    storage.remove(context.work)
    return published


def _spec(config: Config, name: str) -> Any:
    section, _, key = name.partition(".")
    spec = getattr(config, section).spec()
    return spec[key] if key else spec


def _slice(config: Config, names: tuple[str, ...]) -> Config:
    """Returns a stand-in for the configuration that has only the named sections and fields, resources and tracking."""
    out = SimpleNamespace(resources=config.resources, tracking=config.tracking)
    for name in names:
        section, _, key = name.partition(".")
        if not key:
            setattr(out, section, getattr(config, section))
            continue
        if not hasattr(out, section):
            setattr(out, section, SimpleNamespace())
        setattr(getattr(out, section), key, getattr(getattr(config, section), key))
    return cast(Config, out)


def _next_number(root: str, state: State) -> int:
    found = state.artifact
    if found is None:
        return 1
    return int(storage.display(found.uri).rsplit("/", 2)[-2].rsplit("-", 1)[-1]) + 1


def _discard(folder: str, out: str) -> None:
    try:
        storage.remove(out)
        if not storage.list_names(folder):
            storage.remove(folder)
    except MeowError:
        pass  # the reason why the stage failed is worth more; a folder without a manifest is no artefact
