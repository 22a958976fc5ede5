"""Rounds of forgetting: what the tuned model still knows goes round again, with fresh inverted facts against it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.stage import Stage
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Part:
    """Stages of one pipeline that run together."""

    label: str
    """Stands before the stages' names: empty for a run of one round."""
    pipeline: Pipeline
    stages: list[Stage]


def parts(
    config: Config, overrides: Mapping[str, str] | None = None, **options: Any
) -> Iterator[Part]:
    """Yields the parts of a whole run, in order: the rounds, then evaluation and report.

    Which part comes next depends on what the last one made: run it before asking on. Where something has still to be
    made, the parts end.

    Args:
        config: the configuration.
        overrides: artifacts made elsewhere, by name.
        **options: further ones of `Pipeline`.

    Raises:
        MeowError: several rounds are asked for, but the inverted facts are a file.
    """
    rounds = config.pipeline.rounds
    first = Pipeline(config, overrides, **options)
    if rounds == 1:
        yield Part("", first, first.selection(None, None, None))
        return
    for name in ("candidates", "memo", "selected", "model"):
        if name in first.overrides:
            raise MeowError(
                f"--input {name}: `pipeline.rounds` is {rounds}, and each round makes its own {name}."
            )
    current, chosen, model = first, list[Artifact](), None
    for number in range(1, rounds + 1):
        start, until = (
            (None if number == 1 else "invert"),
            ("remain" if number < rounds else "train"),
        )
        yield Part(f"round {number}, ", current, current.selection(None, start, until))
        model, selected = current.artifact("model"), current.artifact("selected")
        remaining = current.artifact("remaining") if number < rounds else None
        if model is None or selected is None or (number < rounds and remaining is None):
            return
        chosen.append(selected)
        if remaining is None or not pc.any(pc.equal(remaining.table["split"], "forget")).as_py():
            break
        seed = None if config.invert.seed is None else config.invert.seed + number
        fresh = config.model_copy(
            update={"memorize": None, "invert": config.invert.model_copy(update={"seed": seed})}
        )
        kept = {name: uri for name, uri in (overrides or {}).items() if name == "generator"}
        current = Pipeline(fresh, kept, given={"facts": remaining, "target": model}, **options)
    assert model is not None
    digest = storage.json_digest([one.digest for one in chosen])
    every = Artifact("selected", "", digest, value=_together([one.table for one in chosen]))
    last = Pipeline(config, overrides, given={"model": model, "selected": every}, **options)
    yield Part("", last, last.selection(None, "evaluate", None))


def _together(selected: list[pa.Table]) -> pa.Table:
    """Puts what the rounds chose into one table; ranks go on from round to round."""
    parts, start = [], 0
    for table in selected:
        rank = pc.add(table["rank"], pa.scalar(start, pa.int32()))
        parts.append(table.set_column(table.schema.get_field_index("rank"), "rank", rank))
        start += pc.max(table["rank"]).as_py() + 1
    return pa.concat_tables(parts)
