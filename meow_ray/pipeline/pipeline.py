"""The pipeline as a graph: which stages run, which are cached, where their inputs come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from meow_ray.config import Config, files
from meow_ray.core import lease, stage, storage, timeline
from meow_ray.core.lease import Claim
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.stage import Stage, State
from meow_ray.distributed import cluster, placement, shared_root
from meow_ray.errors import MeowError
from meow_ray.pipeline import preflight
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.graph import STAGES
from meow_ray.stages.inputs import engine_spec as default_engine_spec
from meow_ray.stages.invert import rules
from meow_ray.stages.train import objectives, presets


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
        "objectives": [*presets.PRESETS, *objectives.REGISTERED],
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

    def has(self, name: str) -> bool:
        """Tells whether an artifact belongs to this pipeline; it need not exist yet."""
        return name in self.producers or name in self._elsewhere or name in self._outside

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

    # --- before a run -----------------------------------------------------------------------------

    def preflight(self, chosen: Sequence[Stage], *, force: bool = False) -> None:
        """Finds mistakes in the configuration and the inputs, without Ray and without running.

        Args:
            chosen: stages of this pipeline. Those that are cached are not checked.
            force: check cached stages as well.

        Raises:
            MeowError: there are mistakes. It names all of them.
        """
        mistakes, broken = self._outside_mistakes(chosen)
        steps = [step for step in chosen if force or self._would_run(step, broken)]
        mistakes += self._missing_inputs(steps, chosen)
        names = {name for step in steps for name in self._input_names[step.name]}
        names |= set(self._elsewhere)
        known = {name: self._known(name) for name in sorted(names - broken)}
        mistakes += preflight.findings(
            self.config, steps, {name: found for name, found in known.items() if found}
        )
        if mistakes:
            raise preflight.error_of(list(dict.fromkeys(mistakes)))

    def _outside_mistakes(self, chosen: Sequence[Stage]) -> tuple[list[str], set[str]]:
        """Resolves the inputs from outside; returns what is wrong, and with which of them."""
        mistakes = []
        broken = set()
        for name in dict.fromkeys(name for step in chosen for name in self._input_names[step.name]):
            if name in self.producers:
                continue
            try:
                self.artifact(name)
            except MeowError as error:
                mistakes.append(str(error))
                broken.add(name)
        return mistakes, broken

    def _missing_inputs(self, steps: Sequence[Stage], chosen: Sequence[Stage]) -> list[str]:
        """Returns what is wrong with inputs that neither exist nor are made by a chosen stage."""
        made = {step.artifact for step in chosen}
        missing: dict[str, str] = {}
        for step in steps:
            for name in self._input_names[step.name]:
                if name in self.producers and name not in made and self._known(name) is None:
                    missing.setdefault(name, self._missing(step, name))
        return list(missing.values())

    def _missing(self, step: Stage, name: str) -> str:
        producer = self.producers[name]
        return (
            f"Stage {step.name} needs {name}, which does not exist yet (stage "
            f"{producer.name}: {self.state(producer).reason}). Run with --until "
            f"{producer.name} first, or give --input {name}=URI."
        )

    def _would_run(self, step: Stage, broken: set[str]) -> bool:
        """Whether a stage is not cached; one that reads a broken input is not."""
        try:
            return self.artifact(step.artifact) is None
        except MeowError:
            if not broken:
                raise
            return True

    def _known(self, name: str) -> Artifact | None:
        """Returns an artifact or an input that exists already."""
        try:
            return self.artifact(name)
        except MeowError:  # it depends on an input that is broken
            return None

    # --- running ----------------------------------------------------------------------------------

    def run(
        self,
        chosen: Sequence[Stage],
        *,
        force: bool = False,
        wait: bool = True,
        on_event: Callable[[Event], Any] = print,
        label: str = "",
        ahead: Sequence[Stage] | None = None,
    ) -> list[State]:
        """Runs the chosen stages that are not cached, in order; returns their states afterwards.

        Args:
            chosen: stages of this pipeline.
            force: run cached stages as well.
            wait: wait while another driver works on a stage, and use its result.
            on_event: called when a stage is cached, starts, or has finished.
            label: precedes the names of the stages in events.
            ahead: the stages whose mistakes are found before the first stage runs; None takes the
                chosen ones.

        Raises:
            MeowError: a stage fails by a user's mistake, reads an artifact that is neither cached
                nor chosen, or needs more than the cluster can ever hold; or another driver works
                on a stage and `wait` is off. What can be known before the first stage runs is found
                before it; see `preflight`.
        """
        self.preflight(chosen if ahead is None else ahead, force=force)
        timeline.mark("inputs checked")
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
                rest = chosen[number - 1 :]
                self._require_places([s for s in rest if force or not self.artifact(s.artifact)])
            self._run_once(state, event, wait, on_event)
        return [self.state(step) for step in chosen]

    def _run_once(
        self, before: State, event: Event, wait: bool, on_event: Callable[[Event], Any]
    ) -> None:
        """Runs a stage, or uses what another driver makes of it in the meantime."""
        step = before.stage
        assert before.fingerprint is not None

        def is_made() -> bool:
            return self.state(step).artifact != before.artifact

        def on_wait(claim: Claim) -> None:
            if not wait:
                raise MeowError(
                    f"Stage {step.name}: another driver works on it ({claim.holder}). "
                    "Run with --wait to use its result, or use another `storage.root`."
                )
            on_event(replace(event, kind="waiting", holder=claim.holder))

        root = storage.absolute(self.config.storage.root)
        key = before.fingerprint[:32]
        with lease.held(root, key, is_done=is_made, on_wait=on_wait) as own_lease:
            if own_lease is None:
                self._artifacts[step.artifact] = self.state(step).artifact
                on_event(replace(event, kind="cached", state=self.state(step)))
                return
            on_event(replace(event, kind="started"))
            inputs = self._existing_inputs(step)
            self._artifacts[step.artifact] = stage.execute(
                before, self.config, inputs, self.engine_spec, own_lease, on_wait
            )
        on_event(replace(event, kind="finished", state=self.state(step)))

    def _require_inputs(self, step: Stage) -> None:
        for name, artifact in self._inputs(step).items():
            if artifact is None:
                raise MeowError(self._missing(step, name))

    def _require_places(self, steps: Sequence[Stage]) -> None:
        """Checks that the cluster can hold the actors and workers of stages."""
        cluster.connect()
        on_gpu = {step.resources: step.uses_gpus(self.config) for step in steps if step.resources}
        for section, uses_gpus in on_gpu.items():
            placement.require(section, self.config.resources, on_gpu=uses_gpus)
