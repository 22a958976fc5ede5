"""What models still know of the facts of several requests."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from meow_ray.config import Target
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import TableSource
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.stages import never_seen
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.train import watched
from meow_ray.stages.train.curve import figures_of
from meow_ray.stages.train.watched import Watched


@dataclass(frozen=True)
class Questions:
    """What models are asked about one request."""

    name: str
    """The name of its run, for errors."""
    prompt: Target
    """The section that says how a question becomes a prompt."""
    max_length: int
    """The largest number of tokens of a pair."""
    facts: TableSource
    twins: TableSource | None
    """None if the request has no twins, or if a model is asked only about the facts."""

    def without_twins(self) -> "Questions":
        """Returns the same without twins."""
        return replace(self, twins=None)


@dataclass(frozen=True)
class Replies:
    """What one model says about one request."""

    facts: list[Figures]
    """Of the true answers of the facts to forget."""
    twins: list[Figures]
    """Of the twins of the half `stop`."""


@dataclass(frozen=True)
class Knowledge:
    """What one model knows of the facts of one request."""

    fact_log_prob: float
    """Mean over the facts; see `never_seen.Figures`."""
    extraction_strength: float
    """Mean over the facts."""
    p_values: dict[str, float] | None
    """One-sided p-values by figure, small if the facts look more memorised than the twins; None
    without twins."""
    looks_never_seen: bool | None
    """Whether all of them exceed the stop level."""


def knowledge(model: Replies, target: Replies, stop_level: float) -> Knowledge:
    """Compares what a model says of the facts with what the target says of the twins."""
    p_values = None
    if target.twins:
        p_values = never_seen.compare(model.facts, target.twins).p_values_of_more
    return Knowledge(
        fact_log_prob=float(np.mean([figures.fact_log_prob for figures in model.facts])),
        extraction_strength=float(
            np.mean([figures.extraction_strength for figures in model.facts])
        ),
        p_values=p_values,
        looks_never_seen=(
            None if p_values is None else never_seen.looks_never_seen(p_values, stop_level)
        ),
    )


def ask(spec: EngineSpec, requests: Sequence[Questions]) -> list[Replies]:
    """Returns what one model says about each request; runs in a task of the cluster.

    Raises:
        MeowError: a pair is too long, or a request has no fact.
    """
    pairs = [_pairs(spec, request) for request in requests]
    engine = spec.load()
    return [
        Replies(facts=figures_of(engine, read.truth), twins=figures_of(engine, read.stop))
        for read in pairs
    ]


def _pairs(spec: EngineSpec, request: Questions) -> Watched:
    """Tokenises the pairs of a request as training does."""
    prompter = Prompter.of(refs.load_tokenizer(spec.model), request.prompt)
    twins = SCHEMAS["twins"].empty_table() if request.twins is None else request.twins
    with TemporaryDirectory() as temporary:
        uri = str(Path(temporary, "watched.parquet"))
        watched.write(request.facts, twins, prompter, request.max_length, uri)
        pairs = Watched.load(uri)
    if not pairs.truth:
        raise MeowError(f"meow merge: {request.name} has no fact to forget. Correct its data.")
    return pairs
