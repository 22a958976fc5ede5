"""Rounds of forgetting: facts that the tuned model still knows go through the pipeline again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import Stage, State
from meow_ray.errors import MeowError
from meow_ray.pipeline.events import Event
from meow_ray.pipeline.pipeline import Pipeline

KEPT_IN_EACH_ROUND = ("generator", "paraphrases", "neighbours", "twins")
"""Artifacts and inputs given with `--input` that all rounds read."""

MADE_BY_EACH_ROUND = ("candidates", "memo", "selected", "model")
"""Artifacts that cannot be given with `--input` when there are several rounds."""


@dataclass(frozen=True)
class Part:
    """Stages of one pipeline that run together: a round, or the evaluation after the last one."""

    label: str
    """Precedes the names of the stages in events; empty if there is only one round."""
    pipeline: Pipeline
    stages: list[Stage]
    ahead: list[Stage]
    """The stages whose mistakes are found before this part: all stages of the run, in its first
    part."""

    def run(self, *, force: bool, wait: bool, on_event: Callable[[Event], Any]) -> list[State]:
        """Runs the stages that are not cached, as `Pipeline.run` does; returns all their states."""
        return self.pipeline.run(
            self.stages,
            force=force,
            wait=wait,
            on_event=on_event,
            label=self.label,
            ahead=self.ahead,
        )


def parts_of_run(
    config: Config, overrides: Mapping[str, str] | None = None, **options: Any
) -> Iterator[Part]:
    """Yields the parts of a whole run in order: the rounds, then evaluation and report.

    The next part depends on what the last one made, so run each part before you ask for the
    next. The iteration ends early at a part that has not been run.

    Args:
        config: the configuration.
        overrides: artifacts made elsewhere, by name.
        **options: other options of `Pipeline`.

    Raises:
        MeowError: there are several rounds, and an override gives what each round makes.
    """
    num_rounds = config.pipeline.rounds
    first = Pipeline(config, overrides, **options)
    if num_rounds == 1:
        chosen = first.selection(None, None, None)
        yield Part("", first, chosen, chosen)
        return
    for name in MADE_BY_EACH_ROUND:
        if name in first.overrides:
            raise MeowError(
                f"--input {name}: `pipeline.rounds` is {num_rounds}, and each round makes its own "
                f"{name}. Set pipeline.rounds=1, or remove the input."
            )
    yield from _rounds(first, num_rounds, options)


def _rounds(first: Pipeline, num_rounds: int, options: dict[str, Any]) -> Iterator[Part]:
    pipeline = first
    selected_by_round: list[Artifact] = []
    for number in range(1, num_rounds + 1):
        is_last = number == num_rounds
        start = None if number == 1 else "invert"
        until = "train" if is_last else "remain"
        ahead = first.selection(None, None, None) if number == 1 else []
        yield Part(f"round {number}, ", pipeline, pipeline.selection(None, start, until), ahead)
        model = pipeline.artifact("model")
        selected = pipeline.artifact("selected")
        remaining = None if is_last else pipeline.artifact("remaining")
        if model is None or selected is None or (remaining is None and not is_last):
            return  # this round has not been run
        selected_by_round.append(selected)
        if remaining is None or not _has_forget_facts(remaining):
            break
        pipeline = _next_round(first, number, remaining, model, options)
    assert model is not None, "there is at least one round"
    last = Pipeline(
        first.config,
        first.overrides,
        given={"model": model, "selected": _concatenated(selected_by_round)},
        **options,
    )
    yield Part("", last, last.selection(None, "evaluate", None), [])


def _has_forget_facts(facts: Artifact) -> bool:
    return bool(pc.any(pc.equal(facts.table["split"], "forget")).as_py())


def _next_round(
    first: Pipeline, number: int, remaining: Artifact, model: Artifact, options: dict[str, Any]
) -> Pipeline:
    """Returns the pipeline that makes the tuned model forget the remaining facts.

    Another sampling seed gives it other inverted facts than the round before.
    """
    config = first.config
    seed = None if config.invert.seed is None else config.invert.seed + number
    invert = config.invert.model_copy(update={"seed": seed})
    return Pipeline(
        config.model_copy(update={"memorize": None, "invert": invert}),
        {name: uri for name, uri in first.overrides.items() if name in KEPT_IN_EACH_ROUND},
        given={"facts": remaining, "target": model},
        **options,
    )


def _concatenated(selected_by_round: Sequence[Artifact]) -> Artifact:
    """Returns the inverted facts of all rounds as one table; ranks continue from round to round."""
    tables: list[pa.Table] = []
    first_rank = 0
    for artifact in selected_by_round:
        table = artifact.table
        rank = pc.add(table["rank"], pa.scalar(first_rank, pa.int32()))
        tables.append(table.set_column(table.schema.get_field_index("rank"), "rank", rank))
        first_rank += pc.max(table["rank"]).as_py() + 1
    digest = storage.json_digest([artifact.digest for artifact in selected_by_round])
    return Artifact("selected", "", digest, value=pa.concat_tables(tables))
