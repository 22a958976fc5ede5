"""Stages as values, and the cache: fingerprints, states, and how an artifact is published.

A fingerprint identifies what a stage would make. The cache finds an artifact by its fingerprint. A
stage writes into a new folder, and the artifact exists once its manifest is written.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast
from uuid import uuid4

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import checks, storage, timeline
from meow_ray.core.config_slice import ConfigSlice, spec_of
from meow_ray.core.differences import differences
from meow_ray.core.lease import Lease, OnWait, held
from meow_ray.core.manifest import (
    MAIN,
    MANIFEST,
    Artifact,
    FileEntry,
    Manifest,
    file_entry,
    find,
    latest,
    library_versions,
    load,
)
from meow_ray.core.outside import Adopt, OutsideInput
from meow_ray.errors import MeowError

# --- what a stage is ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Context:
    """What one run of a stage may use: its settings, its inputs, and folders to write to."""

    config: Config
    """The sections that the stage declares, with `resources` and `tracking`; see `ConfigSlice`."""
    inputs: Mapping[str, Artifact]
    """The declared inputs, by name."""
    stage: "Stage"
    out: str
    """URI of a new folder, whose files become the artifact."""
    work: str
    """URI of a folder for unfinished work. It depends on the fingerprint alone, so a stage that was
    interrupted finds its work there. It is deleted when the artifact is published."""
    root: str
    """URI of the storage root."""
    engine_spec: Callable[..., Any]
    """Returns how an actor loads a model; see `stages.inputs.engine_spec`."""
    on_wait: OnWait
    """Called when the stage waits for another driver."""

    @property
    def scratch(self) -> str:
        """URI of a folder that all runs of all stages share, for work that is stored by content."""
        return storage.join(self.root, "work")

    @contextmanager
    def shared_work(self, name: str) -> Iterator[str]:
        """Holds the lease of work that other stages share, and gives the URI of its folder.

        Args:
            name: identifies the work by its content.
        """
        with held(self.root, name, is_done=lambda: False, on_wait=self.on_wait):
            yield storage.join(self.scratch, name)

    def path(self, name: str = MAIN) -> str:
        """Returns the URI of a file of the artifact, by default of its main table."""
        return storage.join(self.out, name)

    def write(self, table: pa.Table, name: str = MAIN) -> None:
        """Writes a table of the artifact; the main one must have the schema of the stage.

        Raises:
            MeowError: the main table has other columns, or a key twice.
        """
        if name == MAIN:
            assert self.stage.schema is not None, f"stage {self.stage.name} declares no table"
            table = checks.conform_to(table, self.stage.artifact, self.stage.schema, self.stage.key)
        storage.write_table(table, self.path(name))


Input = str | OutsideInput
"""An input of a stage: the name of another stage's artifact, or an input from outside."""

Inputs = tuple[Input, ...] | Callable[[Config], tuple[Input, ...]]
"""The inputs of a stage, or a function that returns them for a configuration."""


def names_of(inputs: Iterable[Input]) -> tuple[str, ...]:
    """Returns the names of inputs."""
    return tuple(entry if isinstance(entry, str) else entry.name for entry in inputs)


Known = Mapping[str, Artifact]
"""The artifacts and inputs that exist before a run, by name."""

FORESEEN = "foreseen"
"""The digest of a table in `Known` that a stage has yet to write; see `Stage.foresee`."""

Check = Callable[[Config, Known], Iterable[str]]
"""Finds mistakes before a run: yields a paragraph for each, or raises MeowError for one."""


def _always(config: Config) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One step of the pipeline, as a value.

    Attributes:
        name: name of the stage on the command line, of its folder and of its section.
        artifact: name of the artifact that the stage makes.
        version: raised by hand when the same inputs and settings give another result.
        sections: the settings that the stage may read and that enter its fingerprint: sections
            (`select`) or single fields (`target.template`).
        more_sections: returns further settings that the stage reads under some configurations;
            only then do they enter its fingerprint.
        inputs: what the stage reads; a function if that depends on the configuration.
        run: writes the artifact and returns a summary for the manifest, with counts and figures but
            no text of facts.
        schema: columns of the main table; None if the artifact is a model or a page.
        key: columns that identify a row of the main table.
        adopt: takes the artifact from `--input NAME=URI` instead; None refuses that.
        enabled: tells whether a configuration has this stage.
        resources: the section of `resources` for its actors or workers; None if it has none.
        uses_gpus: tells whether its actors use GPUs on a cluster that has some.
        checks: find mistakes in the configuration and in what exists already, before any stage of a
            run starts.
        foresee: returns the table that the stage will write, which the checks of later stages read;
            None if it cannot be known. Only for stages without actors.
        prompt: returns the digest of a prompt of the stage if its text changes by itself, because
            the template writes the date; None if it does not. It enters the fingerprint.
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
    checks: tuple[Check, ...] = ()
    foresee: Callable[[Config, Known], pa.Table | None] | None = None
    prompt: Callable[[Config, Mapping[str, Artifact]], str | None] | None = None
    more_sections: Callable[[Config], tuple[str, ...]] = lambda config: ()

    def declared_sections(self, config: Config) -> tuple[str, ...]:
        """Returns the settings that the stage may read under a configuration."""
        return (*self.sections, *self.more_sections(config))

    def declared_inputs(self, config: Config) -> tuple[Input, ...]:
        """Returns the inputs of the stage under a configuration."""
        return self.inputs(config) if callable(self.inputs) else self.inputs

    def input_names(self, config: Config) -> tuple[str, ...]:
        """Returns the names of the inputs of the stage under a configuration."""
        return names_of(self.declared_inputs(config))

    def ingredients(self, config: Config, digests: Mapping[str, str]) -> dict[str, Any]:
        """Returns what the fingerprint is the hash of.

        Args:
            config: the whole configuration.
            digests: digests of all inputs, by name.
        """
        return {
            "stage": self.name,
            "version": self.version,
            "schema": {f.name: str(f.type) for f in self.schema} if self.schema else None,
            "spec": {name: spec_of(config, name) for name in self.declared_sections(config)},
            "inputs": dict(digests),
        }


# --- the cache ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """What the cache has for a stage.

    Attributes:
        stage: the stage.
        state: `cached`, `stale` (there is an artifact, but of other settings or inputs), `missing`.
        reason: why the stage would run; empty if it is cached.
        fingerprint: identifies what the stage would make; None while an input is missing.
        artifact: the artifact with that fingerprint, if it is cached.
        ingredients: what the fingerprint is the hash of.
    """

    stage: Stage
    state: Literal["cached", "stale", "missing"]
    reason: str = ""
    fingerprint: str | None = None
    artifact: Artifact | None = None
    ingredients: dict[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Returns the state as plain values, for tables and JSON."""
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
    """Returns what the cache has for a stage; runs nothing.

    Args:
        stage: the stage.
        config: the whole configuration.
        inputs: all inputs of the stage, by name; None for those that do not exist yet.
    """
    root = storage.absolute(config.storage.root)
    previous = latest(root, stage.artifact)
    missing = [name for name, artifact in inputs.items() if artifact is None]
    if missing:
        return State(
            stage=stage,
            state="stale" if previous else "missing",
            reason=f"waits for {', '.join(missing)}",
        )
    existing = {name: artifact for name, artifact in inputs.items() if artifact is not None}
    digests = {name: artifact.digest for name, artifact in existing.items()}
    ingredients = stage.ingredients(config, digests)
    prompt = stage.prompt(config, existing) if stage.prompt else None
    if prompt is not None:
        ingredients["prompt"] = prompt
    fingerprint = storage.json_digest(ingredients)
    cached = find(root, stage.artifact, fingerprint)
    state: Literal["cached", "stale", "missing"]
    if cached:
        state = "cached"
        reason = ""
    elif previous and previous.manifest:
        state = "stale"
        reason = "; ".join(differences(previous.manifest.ingredients, ingredients))
    else:
        state = "missing"
        reason = "never run"
    return State(
        stage=stage,
        state=state,
        reason=reason,
        fingerprint=fingerprint,
        artifact=cached,
        ingredients=ingredients,
    )


# --- running and publishing ---------------------------------------------------------------------


def no_engine_spec(*arguments: Any) -> Any:
    """Fails; the default of `execute` for stages that run no engine."""
    raise AssertionError("this stage was started without a way to load engines")


def execute(
    state: State,
    config: Config,
    inputs: Mapping[str, Artifact],
    engine_spec: Callable[..., Any] = no_engine_spec,
    lease: Lease | None = None,
    on_wait: OnWait = lambda claim: None,
) -> Artifact:
    """Runs a stage and publishes its artifact.

    If another driver publishes the same artifact first, that one is returned, and the files of this
    run are deleted. If the stage fails, its files are deleted as well.

    Args:
        state: the state of the stage, from `state_of`.
        config: the whole configuration, of which the stage sees the sections that it declares.
        inputs: all inputs of the stage, by name.
        engine_spec: returns how an actor loads a model; for stages that run an engine.
        lease: the right to work on the stage, which must still be this driver's at the end.
        on_wait: called when the stage waits for work that another driver does for another stage.

    Raises:
        MeowError: the lease was lost.
    """
    assert state.fingerprint is not None
    stage = state.stage
    root = storage.absolute(config.storage.root)
    folder = storage.join(root, stage.artifact, f"{state.fingerprint[:16]}-{_next_number(state)}")
    attempt = uuid4().hex[:8]
    context = Context(
        config=cast(Config, ConfigSlice(config, stage.name, stage.declared_sections(config))),
        inputs=inputs,
        stage=stage,
        out=storage.join(folder, attempt),
        work=storage.join(root, "work", state.fingerprint[:32]),
        root=root,
        engine_spec=engine_spec,
        on_wait=on_wait,
    )
    timeline.mark(f"{stage.name} started")
    storage.make_folder(context.out)
    started = datetime.now(UTC)
    clock = time.monotonic()
    try:
        summary = stage.run(context)
        files = _written_files(context)
        if lease is not None and lease.is_lost():
            raise MeowError(
                f"Stage {stage.name}: another driver took this one for dead and does its work now, "
                "because no heartbeat reached the storage root for too long. "
                "Start again to use the other driver's result."
            )
    except BaseException as error:
        published = load(folder) if isinstance(error, Exception) else None
        _discard(folder, context.out)
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
    artifact = _publish(folder, context.out, manifest)
    storage.remove(context.work)
    timeline.mark(f"{stage.name} finished")
    return artifact


def _next_number(state: State) -> int:
    """Returns the number of the next artifact with a fingerprint: 2 and up if a run is forced."""
    return 1 if state.artifact is None else state.artifact.number + 1


def _written_files(context: Context) -> dict[str, FileEntry]:
    """Returns the files that a stage wrote, by name."""
    names = storage.list_files(context.out)
    files = {name: file_entry(context.path(name)) for name in names}
    stage = context.stage
    assert MAIN in files or stage.schema is None, f"stage {stage.name} wrote no table"
    return files


def _publish(folder: str, out: str, manifest: Manifest) -> Artifact:
    """Writes the manifest, unless another driver has written one, and returns the artifact.

    The manifest in the folder decides which driver won. The result of the write does not: an object
    store may report a write as failed that it has done.
    """
    path = storage.join(folder, MANIFEST)
    storage.write_json(path, manifest.model_dump(mode="json"), exclusive=True)
    published = load(folder)
    assert published is not None
    assert published.manifest is not None
    if published.manifest.attempt != manifest.attempt:
        storage.remove(out)
    return published


def _discard(folder: str, out: str) -> None:
    """Deletes the files of a failed run, and the artifact's folder if nothing else is in it."""
    try:
        storage.remove(out)
        if not storage.list_names(folder):
            storage.remove(folder)
    except MeowError:
        # The error of the stage matters more. A folder without a manifest is not an artifact.
        pass
