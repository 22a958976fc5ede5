"""The pipeline as a graph: which stages run, which are cached, where their inputs come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from meow_ray.config import Config, files
from meow_ray.core import stage, storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.stage import Stage, State
from meow_ray.distributed import cluster, placement, shared_root
from meow_ray.errors import MeowError
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import STAGES
from meow_ray.stages.inputs import engine_spec as default_engine_spec
from meow_ray.stages.invert import rules
from meow_ray.stages.train import objectives


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Reads a configuration file, applies overrides such as `select.top_k=2`, and checks the whole.

    Args:
        path: a YAML file; None starts from the defaults.
        overrides: dotted keys with values, applied in order.

    Raises:
        MeowError: names every mistake at once, each with file, line, key, value and the nearest
            valid key.
    """
    names: files.Names = {
        "objectives": [*objectives.PRESETS, *objectives.REGISTERED],
        "rules": rules.RULES,
    }
    return files.load_config(path, overrides, names=names)


class Pipeline:
    """The stages of one configuration over one storage root.

    Args:
        config: the configuration.
        overrides: artifacts made elsewhere, by name: Parquet files or folders, or models.
        verify: hash files again instead of trusting their size and modification time.
        given: artifacts that other pipelines made, by name.
        stages: all stages that there are. Those that the configuration enables belong to this
            pipeline.
        engine_spec: returns what an actor needs to load a model; tests pass another one.

    Raises:
        MeowError: the configuration contradicts itself, or an override has no known name.
    """

    def __init__(
        self,
        config: Config,
        overrides: Mapping[str, str] | None = None,
        *,
        verify: bool = False,
        given: Mapping[str, Artifact] | None = None,
        stages: Sequence[Stage] = STAGES,
        engine_spec: Callable[..., Any] = default_engine_spec,
    ) -> None:
        if config.memorize is not None and config.target.model is not None:
            raise MeowError(
                "`target.model` and `memorize` both name the target. Remove one of them."
            )
        rules.check_names(config.invert.skip_rules)
        self.config = config
        self.verify = verify
        self.overrides = dict(overrides or {})
        self.engine_spec = engine_spec
        self.stages = [step for step in stages if step.enabled(config)]
        declared = {step.name: step.declared_inputs(config) for step in self.stages}
        self._outside = {
            entry.name: entry
            for entries in declared.values()
            for entry in entries
            if isinstance(entry, OutsideInput)
        }
        self._input_names = {name: stage.names_of(entries) for name, entries in declared.items()}
        self._adopt = {step.artifact: step.adopt for step in stages if step.adopt}
        self._adopt |= {name: entry.adopt for name, entry in self._outside.items() if entry.adopt}
        for name in self.overrides:
            if name not in self._adopt:
                known = ", ".join(sorted(self._adopt))
                raise MeowError(f"--input {name}: no artifact has that name. Choose from {known}.")
        self._artifacts: dict[str, Artifact | None] = dict(given or {})
        self._elsewhere = [*self.overrides, *self._artifacts]
        self.producers = {
            step.artifact: step for step in self.stages if step.artifact not in self._elsewhere
        }

    # --- questions about the pipeline, which run nothing ------------------------------------------

    def state(self, step: Stage) -> State:
        """Compares a stage with the cache; loads no model."""
        return stage.state_of(step, self.config, self._inputs(step))

    def states(self) -> list[State]:
        """Returns the states of all stages of this pipeline."""
        return [self.state(step) for step in self.stages if step.artifact in self.producers]

    def artifact(self, name: str) -> Artifact | None:
        """Returns an artifact or an input by name; None if a stage has yet to make it."""
        if name not in self._artifacts:
            self._artifacts[name] = self._find(name)
        return self._artifacts[name]

    def made_elsewhere(self) -> dict[str, Artifact]:
        """Returns the artifacts that this pipeline was given instead of making them."""
        artifacts = {name: self.artifact(name) for name in self._elsewhere}
        return {name: artifact for name, artifact in artifacts.items() if artifact is not None}

    def _find(self, name: str) -> Artifact | None:
        if name in self.overrides:
            return self._adopt[name](name, self.overrides[name], self.verify)
        if name in self.producers:
            return self.state(self.producers[name]).artifact
        assert name in self._outside, f"{name} is neither an artifact nor a declared outside input"
        return self._outside[name].resolve(self.config, self.verify)

    def _inputs(self, step: Stage) -> dict[str, Artifact | None]:
        return {name: self.artifact(name) for name in self._input_names[step.name]}

    def _existing_inputs(self, step: Stage) -> dict[str, Artifact]:
        inputs = self._inputs(step)
        return {name: artifact for name, artifact in inputs.items() if artifact is not None}

    def selection(self, only: str | None, start: str | None, until: str | None) -> list[Stage]:
        """Returns the stages that `--only`, `--from` and `--until` select, in order.

        Raises:
            MeowError: one of the names is no stage of this pipeline, or the range is empty.
        """
        order = [step for step in self.stages if step.artifact in self.producers]
        names = [step.name for step in order]
        for option, name in (("--only", only), ("--from", start), ("--until", until)):
            if name is not None and name not in names:
                raise MeowError(
                    f"{option} {name}: this run has no such stage. Choose from {', '.join(names)}."
                )
        if only is not None:
            return [step for step in order if step.name == only]
        first = names.index(start) if start else 0
        last = names.index(until) if until else len(order) - 1
        if first > last:
            raise MeowError(
                f"--from {start} comes after --until {until}. The order is {', '.join(names)}."
            )
        return order[first : last + 1]

    # --- running ----------------------------------------------------------------------------------

    def run(
        self,
        chosen: Sequence[Stage],
        *,
        force: bool = False,
        on_event: Callable[[Event], Any] = print,
        label: str = "",
    ) -> list[State]:
        """Runs the chosen stages that are not cached, in order; returns their states afterwards.

        Args:
            chosen: stages of this pipeline.
            force: run cached stages as well.
            on_event: called when a stage is cached, starts, or has finished.
            label: precedes the names of the stages in events.

        Raises:
            MeowError: a stage fails by a user's mistake, reads an artifact that is neither cached
                nor chosen, or needs more than the cluster can ever hold. Mistakes in inputs from
                outside are found before the first stage runs.
        """
        self._resolve_outside_inputs(chosen)
        if force or not all(self.artifact(step.artifact) for step in chosen):
            shared_root.check(storage.absolute(self.config.storage.root))
        for number, step in enumerate(chosen, start=1):
            self._require_inputs(step)
            state = self.state(step)
            event = Event(f"{label}{step.name}", number, len(chosen), "cached", state)
            if state.artifact is not None and not force:
                # an earlier question may have found none
                self._artifacts[step.artifact] = state.artifact
                on_event(event)
                continue
            if step.resources:
                # before each such stage: nodes may have gone, and more inputs exist now
                ahead = chosen[number - 1 :]
                self._check_ahead([s for s in ahead if force or not self.artifact(s.artifact)])
            on_event(replace(event, kind="started"))
            inputs = self._existing_inputs(step)
            made = stage.execute(state, self.config, inputs, self.engine_spec)
            self._artifacts[step.artifact] = made
            on_event(replace(event, kind="finished", state=self.state(step)))
        return [self.state(step) for step in chosen]

    def _resolve_outside_inputs(self, chosen: Sequence[Stage]) -> None:
        for step in chosen:
            for name in self._input_names[step.name]:
                if name not in self.producers:
                    self.artifact(name)

    def _require_inputs(self, step: Stage) -> None:
        for name, artifact in self._inputs(step).items():
            if artifact is None:
                producer = self.producers[name]
                raise MeowError(
                    f"Stage {step.name} needs {name}, which does not exist yet (stage "
                    f"{producer.name}: {self.state(producer).reason}). Run with --until "
                    f"{producer.name} first, or give --input {name}=URI."
                )

    def _check_ahead(self, steps: Sequence[Stage]) -> None:
        """Checks existing inputs of stages, and that the cluster can hold actors and workers."""
        for step in steps:
            if step.check:
                step.check(self.config, self._existing_inputs(step))
        cluster.connect()
        on_gpu = {step.resources: step.uses_gpus(self.config) for step in steps if step.resources}
        for section, uses_gpus in on_gpu.items():
            placement.require(section, self.config.resources, on_gpu=uses_gpus)
