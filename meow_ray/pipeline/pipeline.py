"""The whole as a graph: which stage runs, which is cached, where its inputs come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from meow_ray.config import Config, files
from meow_ray.core import stage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.stage import Stage, State
from meow_ray.distributed import cluster, placement
from meow_ray.errors import MeowError
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import STAGES
from meow_ray.stages.inputs import engine_spec
from meow_ray.stages.invert import rules
from meow_ray.stages.train import objectives


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
        overrides: artifacts made elsewhere, by name: Parquet files or folders, or models.
        verify: hash files again instead of trusting their size and modification time.
        given: artifacts that other pipelines made, by name.
        stages: all stages that there are; those that the configuration enables are run.
        engine_spec: says how an actor loads a model.

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
        engine_spec: Callable[..., Any] = engine_spec,
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
        declared = [entry for step in self.stages for entry in step.declared_inputs(config)]
        self._outside = {entry.name: entry for entry in declared if isinstance(entry, OutsideInput)}
        self._adopt = {step.artifact: step.adopt for step in stages if step.adopt}
        self._adopt |= {name: entry.adopt for name, entry in self._outside.items() if entry.adopt}
        for name in self.overrides:
            if name not in self._adopt:
                known = ", ".join(sorted(self._adopt))
                raise MeowError(
                    f"--input {name}: there is no artifact of that name; there are {known}."
                )
        self._artifacts: dict[str, Artifact | None] = dict(given or {})
        elsewhere = {*self.overrides, *self._artifacts}
        self.producers = {
            step.artifact: step for step in self.stages if step.artifact not in elsewhere
        }

    def state(self, step: Stage) -> State:
        """Compares a stage with the cache; runs nothing and loads no model."""
        return stage.state_of(step, self.config, self._inputs(step))

    def states(self) -> list[State]:
        """Returns the states of all stages that this run would have."""
        return [self.state(step) for step in self.stages if step.artifact in self.producers]

    def artifact(self, name: str) -> Artifact | None:
        """Returns an input by name; None if a stage has still to make it."""
        if name not in self._artifacts:
            self._artifacts[name] = self._find(name)
        return self._artifacts[name]

    def _find(self, name: str) -> Artifact | None:
        if name in self.overrides:
            return self._adopt[name](name, self.overrides[name], self.verify)
        if name in self.producers:
            return self.state(self.producers[name]).artifact
        assert name in self._outside, (
            f"no stage makes {name}, and no stage declares it as an input from outside"
        )
        return self._outside[name].resolve(self.config, self.verify)

    def _inputs(self, step: Stage) -> dict[str, Artifact | None]:
        return {name: self.artifact(name) for name in step.input_names(self.config)}

    def _existing_inputs(self, step: Stage) -> dict[str, Artifact]:
        return {
            name: artifact for name, artifact in self._inputs(step).items() if artifact is not None
        }

    def selection(self, only: str | None, start: str | None, until: str | None) -> list[Stage]:
        """Returns the stages that `--only`, `--from` and `--until` ask for.

        Raises:
            MeowError: a name is no stage of this pipeline.
        """
        order = [s for s in self.stages if s.artifact in self.producers]
        names = [s.name for s in order]
        for option, name in (("--only", only), ("--from", start), ("--until", until)):
            if name is not None and name not in names:
                raise MeowError(
                    f"{option} {name}: there is no such stage here; there are {', '.join(names)}."
                )
        if only is not None:
            return [s for s in order if s.name == only]
        first = names.index(start) if start else 0
        last = names.index(until) if until else len(order) - 1
        if first > last:
            raise MeowError(
                f"--from {start} comes after --until {until}; the order is {', '.join(names)}."
            )
        return order[first : last + 1]

    def run(
        self,
        chosen: list[Stage],
        *,
        force: bool = False,
        say: Callable[[Event], Any] = print,
        label: str = "",
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
            for name in step.input_names(self.config):
                if name not in self.producers:
                    self.artifact(name)
        for number, step in enumerate(chosen, start=1):
            self._require_inputs(step)
            state = self.state(step)
            event = Event(f"{label}{step.name}", number, len(chosen), "cached", state)
            if state.artifact is not None and not force:
                self._artifacts[step.artifact] = (
                    state.artifact
                )  # an earlier question may have found none
                say(event)
                continue
            if (
                step.resources
            ):  # again before each such stage: nodes may have gone, and more inputs exist now
                ahead = chosen[number - 1 :]
                self._check_ahead([s for s in ahead if force or not self.artifact(s.artifact)])
            say(replace(event, what="started"))
            made = stage.execute(state, self.config, self._existing_inputs(step), self.engine_spec)
            self._artifacts[step.artifact] = made
            say(replace(event, what="finished", state=self.state(step)))
        return [self.state(step) for step in chosen]

    def _require_inputs(self, step: Stage) -> None:
        """Raises MeowError if a stage reads what is neither cached nor made by an earlier stage of this run."""
        for name, artifact in self._inputs(step).items():
            if artifact is None:
                maker = self.producers[name]
                raise MeowError(
                    f"Stage {step.name} needs {name}, which does not exist yet (stage {maker.name}: "
                    f"{self.state(maker).reason}). Run with --until {maker.name} first, or give --input {name}=URI."
                )

    def _check_ahead(self, steps: Sequence[Stage]) -> None:
        """Checks the existing inputs of stages, and that the cluster can hold the actors or workers of each."""
        for step in steps:
            if step.check:
                step.check(self.config, self._existing_inputs(step))
        cluster.connect()
        on_gpu = {step.resources: step.uses_gpus(self.config) for step in steps if step.resources}
        for section, uses_gpus in on_gpu.items():
            placement.require(section, self.config.resources, on_gpu=uses_gpus)
