"""The whole as a graph: which stage runs, which is cached, where its inputs come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

from meow_ray.config import Config, files
from meow_ray.config import Source as DataSource
from meow_ray.core import checks, manifest, schema, stage, storage, tables
from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import Stage, State
from meow_ray.core.tables import Source
from meow_ray.distributed import cluster, placement
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import stages_of
from meow_ray.stages.evaluate import tofu_logs
from meow_ray.stages.ingest.readers import read_records
from meow_ray.stages.invert import own_candidates, rules
from meow_ray.stages.train import objectives, zero

MODELS = ("base", "target", "generator", "model", "retain_model")
"""Inputs that are models, not tables."""


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration, applies overrides such as `select.top_k=2`, and checks the whole.

    Raises:
        MeowError: names every mistake at once, each with file, line, key, value and the nearest valid key.
    """
    names: files.Names = {"objectives": objectives.PRESETS, "rules": rules.RULES}
    return files.load_config(path, overrides, names=names)


class Pipeline:
    """The stages of one configuration over one storage root.

    Args:
        config: the configuration.
        overrides: artefacts made elsewhere, by name: Parquet files or folders, or models.
        verify: hash files anew instead of trusting their size and modification time.
        given: artefacts that other pipelines made, by name.
    """

    def __init__(
        self,
        config: Config,
        overrides: Mapping[str, str] | None = None,
        *,
        verify: bool = False,
        given: Mapping[str, Artifact] | None = None,
    ) -> None:
        self.config, self.verify = config, verify
        self.overrides = dict(overrides or {})
        self.objective = objectives.resolve(config.train, objectives.source_of(config.train.objective))
        rules.check_names(config.invert.skip_rules)
        self.stages = stages_of(config, self.objective)
        self._found: dict[str, Artifact | None] = dict(given or {})
        elsewhere = {*self.overrides, *self._found}
        self.producers = {s.artefact: s for s in self.stages if s.artefact not in elsewhere}
        known = {*schema.SCHEMAS, *MODELS}
        for name in self.overrides:
            if name not in known:
                raise MeowError(
                    f"--input {name}: there is no artefact of that name; there are {', '.join(sorted(known))}."
                )
        if config.memorize is not None and config.target.model is not None:
            raise MeowError("`target.model` and `memorize` both name the target: drop one of them.")

    def state(self, target: Stage) -> State:
        """Says where a stage stands; runs nothing and loads no model."""
        return stage.state_of(target, self.config, {name: self.artifact(name) for name in target.inputs})

    def states(self) -> list[State]:
        """Returns the states of all stages that this run would have."""
        return [self.state(s) for s in self.stages if s.artefact in self.producers]

    def artifact(self, name: str) -> Artifact | None:
        """Returns an input by name; None if a stage has still to make it."""
        if name not in self._found:
            if name in self.overrides:
                self._found[name] = self._from_elsewhere(name, self.overrides[name])
            elif name in self.producers:
                self._found[name] = self.state(self.producers[name]).artifact
            else:
                self._found[name] = self._from_outside(name)
        return self._found[name]

    def selection(self, only: str | None, start: str | None, until: str | None) -> list[Stage]:
        """Returns the stages that `--only`, `--from` and `--until` ask for.

        Raises:
            MeowError: a name is no stage of this pipeline.
        """
        order = [s for s in self.stages if s.artefact in self.producers]
        names = [s.name for s in order]
        for option, name in (("--only", only), ("--from", start), ("--until", until)):
            if name is not None and name not in names:
                raise MeowError(f"{option} {name}: there is no such stage here; there are {', '.join(names)}.")
        if only is not None:
            return [s for s in order if s.name == only]
        first = names.index(start) if start else 0
        last = names.index(until) if until else len(order) - 1
        if first > last:
            raise MeowError(f"--from {start} comes after --until {until}; the order is {', '.join(names)}.")
        return order[first : last + 1]

    def run(
        self, chosen: list[Stage], *, force: bool = False, say: Callable[[Event], Any] = print, label: str = ""
    ) -> list[State]:
        """Runs the chosen stages that are not cached, in order; returns their states afterwards.

        Args:
            chosen: stages of this pipeline.
            force: run what is cached, too.
            say: hears what happens to each stage.
            label: stands before the stages' names.

        Raises:
            MeowError: a stage needs what is neither cached nor chosen, or more than the cluster can ever hold, or fails
                by a user's mistake. What is wrong with the last stage's inputs is said before the first one runs.
        """
        for step in chosen:
            for name in step.inputs:
                if name not in self.producers:
                    self.artifact(name)
        for number, step in enumerate(chosen, start=1):
            for name in step.inputs:
                if self.artifact(name) is None:
                    maker = self.producers[name]
                    raise MeowError(
                        f"Stage {step.name} needs {name}, which is not there (stage {maker.name}: "
                        f"{self.state(maker).reason}). Run with --until {maker.name} first, or give --input {name}=URI."
                    )
            state = self.state(step)
            event = Event(f"{label}{step.name}", number, len(chosen), "cached", state)
            if state.artifact is not None and not force:
                self._found[step.artefact] = state.artifact  # an earlier question may have found none
                say(event)
            else:
                if step.resources:  # each time: nodes may have gone, and more inputs are there
                    self._check_ahead([s for s in chosen[number - 1 :] if force or not self.artifact(s.artefact)])
                say(replace(event, what="started"))
                inputs = {name: artifact for name in step.inputs if (artifact := self.artifact(name))}
                made = stage.execute(state, self.config, inputs)
                self._found[step.artefact] = made
                say(replace(event, what="finished", state=self.state(step)))
        return [self.state(step) for step in chosen]

    def _check_ahead(self, steps: list[Stage]) -> None:
        """Checks the inputs of the stages, as far as they are there, and that the cluster can hold what each needs."""
        for step in steps:
            if step.check:
                step.check(self.config, {name: found for name in step.inputs if (found := self.artifact(name))})
        cluster.connect()
        for name in dict.fromkeys(step.resources for step in steps if step.resources):
            on_gpu = name != "invert" or self.config.invert.engine != "openai"
            placement.require(name, self.config.resources, on_gpu=on_gpu)

    def _from_elsewhere(self, name: str, place: str) -> Artifact:
        if name in MODELS:
            ref = refs.reference(place, None, f"--input {name}", verify=self.verify)
            return Artifact(name, ref.uri, ref.digest, value=ref)
        uri = storage.absolute(place)
        return Artifact(
            name, uri, storage.content_digest(uri, verify=self.verify), value=_table_from_elsewhere(name, uri)
        )

    def _from_outside(self, name: str) -> Artifact | None:
        config = self.config
        if name == "target":
            return self._target(name)
        if name == "base":
            assert config.memorize is not None
            return self._model(name, "memorize.model", config.memorize.model, config.memorize.revision)
        if name == "generator":
            return self._generator(name)
        if name == "objective":
            return Artifact(name, "", storage.json_digest(asdict(self.objective)), value=self.objective)
        if name == "roles":
            roles = (self.objective.reads, self.objective.idk_answers)
            return Artifact(name, "", storage.json_digest(roles), value=roles)
        if name.endswith("_deepspeed"):
            return self._deepspeed(name)
        if name == "data":
            if config.ingest.forget is None:
                raise MeowError("`ingest.forget` is not set: name the file of the facts to forget.")
            return self._sources(name, {"forget": config.ingest.forget, "retain": config.ingest.retain})
        if name == "memorize_data":
            assert config.memorize is not None
            if not config.memorize.data:
                raise MeowError("`memorize.data` is not set: name the files of the facts to memorise.")
            artifact = self._sources(name, {str(i): source for i, source in enumerate(config.memorize.data)})
            return Artifact(name, "", artifact.digest, value=config.memorize.data)
        if name == "retain_model":
            return self._retain_model(name)
        if name in ("text", "task_folder"):
            return self._path(name, f"evaluate.{name}", getattr(config.evaluate, name))
        assert name == "sets", f"no stage makes {name}"
        return self._sources(name, config.evaluate.sets)

    def _retain_model(self, name: str) -> Artifact:
        """Returns the model that never saw the forget set, or its results; neither, if none is named."""
        place = self.config.evaluate.reference
        if place is None or PurePosixPath(storage.display(place)).suffix == ".json":
            found = self._path(name, "evaluate.reference", place)
            return found if place is None else replace(found, value=tofu_logs.read_log(found.uri))
        ref = refs.reference(place, None, "evaluate.reference", verify=self.verify)
        return Artifact(name, ref.uri, ref.digest, value=ref)

    def _path(self, name: str, key: str, path: str | None) -> Artifact:
        """Returns a file or folder by content; an artefact without a URI where none is named."""
        if path is None:
            return Artifact(name, "", "none")
        uri = storage.absolute(path)
        if not storage.exists(uri):
            raise MeowError(f"`{key}`: there is no {storage.display(uri)}.")
        return Artifact(name, uri, storage.content_digest(uri, verify=self.verify))

    def _target(self, name: str) -> Artifact:
        """Returns the model that must forget; the storage root of another run stands for the model that it made."""
        place = self.config.target.model
        if place and storage.exists(storage.join(storage.absolute(place), "model")):
            made = manifest.latest(storage.absolute(place), "model")
            if made is None:
                raise MeowError(f"`target.model`: the run at {place} has not finished its model.")
            return made
        return self._model(name, "target.model", place, self.config.target.revision)

    def _generator(self, name: str) -> Artifact:
        spec = self.config.invert
        if spec.engine == "openai":  # what runs behind a URL cannot be hashed
            made = Artifact(name, spec.base_url or "", storage.json_digest([spec.base_url, spec.model]))
        elif spec.model is None:  # candidates may come from elsewhere; `invert` itself will ask for it
            made = Artifact(name, "", "none")
        else:
            made = self._model(name, "invert.model", spec.model, spec.revision)
        if spec.judge == "endpoint":
            digest = storage.json_digest([made.digest, spec.judge_base_url, spec.judge_model])
            made = replace(made, digest=digest)
        return made

    def _deepspeed(self, name: str) -> Artifact:
        section = name.removesuffix("_deepspeed")
        path = getattr(self.config, section).deepspeed
        found = self._path(name, f"{section}.deepspeed", path)
        settings = zero.read_settings(path, storage.read_bytes(found.uri))
        return replace(found, digest=storage.json_digest(settings), value=settings)

    def _model(self, name: str, key: str, model: str | None, revision: str | None) -> Artifact:
        if model is None:
            raise MeowError(f"`{key}` is not set: name a model folder or a hub model.")
        section: Any = getattr(self.config, key.partition(".")[0])
        ref = refs.reference(model, revision, key, trust_remote_code=section.trust_remote_code, verify=self.verify)
        return Artifact(name, ref.uri, ref.digest, value=ref)

    def _sources(self, name: str, sources: Mapping[str, DataSource | None]) -> Artifact:
        digests = {label: self._source_digest(source) for label, source in sources.items() if source is not None}
        return Artifact(name, "", storage.json_digest(digests), value=dict(sources))

    def _source_digest(self, source: DataSource) -> list[str | None]:
        if source.is_file or storage.exists(source.path):
            content = storage.content_digest(storage.absolute(source.path), verify=self.verify)
        else:
            content = f"{source.path}@{_dataset_commit(source)}"
        return [content, source.subset, source.split]


LARGE = 100_000
"""Rows from which a table made elsewhere is not loaded, if it has all columns."""


def _table_from_elsewhere(name: str, uri: str) -> Source:
    """Returns a user's table: loaded and completed if it is small, else its files, whose columns are checked."""
    where = storage.display(uri)
    if name == "candidates" and DataSource(path=uri).is_file and not where.endswith(".parquet"):
        return own_candidates.complete(read_records(uri), where)
    files = storage.parquet_files(uri)
    files = [
        file for file in files if file.endswith(f"/{manifest.MAIN}")
    ] or files  # an artefact of ours has others too
    if tables.count_rows(files) >= LARGE:
        checks.check_columns(tables.columns(files), name, where)
        return files
    table = storage.read_table(files)
    if name == "candidates":
        table = own_candidates.complete(enumerate(table.to_pylist(), start=1), where)
    return checks.conform(table, name, where)


def _dataset_commit(source: DataSource) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().dataset_info(source.path, revision=source.revision).sha)
    except (HfHubHTTPError, OSError, ValueError):
        raise MeowError(
            f"{source.path}: there is no such file, and no Hugging Face dataset of that name can be reached."
        ) from None
