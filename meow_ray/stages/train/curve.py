"""What a model at a share of the way to the tuned one still knows: one point of the curve."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from meow_ray.config import Target
from meow_ray.core import storage
from meow_ray.core.tables import Query, TableSource
from meow_ray.engines import Engine, EngineSpec, TeacherForced
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages import never_seen
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.train import batches, soup, watched
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.pairs import WITHOUT_ITEM
from meow_ray.stages.train.watched import Watched

TARGET_SHARE = 0.0
"""The share at which the model is the target."""


@dataclass(frozen=True)
class Step:
    """A step of training, and what the models on its way are asked."""

    engine: EngineSpec
    """The target."""
    tuned: ModelRef
    prompt: Target
    """The section that says how a question becomes a prompt."""
    max_length: int
    """The largest number of tokens of a pair."""
    facts: TableSource
    twins: TableSource
    neighbours: TableSource | None = None


@dataclass(frozen=True)
class Answers:
    """What one model says."""

    facts: list[Figures]
    """Of the true answers of the facts to forget."""
    twins: list[Figures]
    """Of the twins of the half `stop`; only the target is asked about them."""
    probability: float | None
    """Mean probability of the neighbours' answers; None without neighbours."""


@dataclass(frozen=True)
class Point:
    """One point of the curve."""

    share: float
    p_values: Mapping[str, float]
    """One-sided p-values by figure; small if the facts look more memorised than the twins."""
    looks_never_seen: bool
    """Whether all of them exceed the stop level."""
    retained_probability: float | None
    """See `Answers.probability`."""


def point(share: float, model: Answers, target: Answers, stop_level: float) -> Point:
    """Compares what a model says of the facts with what the target says of the twins."""
    p_values = never_seen.compare(model.facts, target.twins).p_values_of_more
    return Point(
        share=share,
        p_values=p_values,
        looks_never_seen=never_seen.looks_never_seen(p_values, stop_level),
        retained_probability=model.probability,
    )


# --- in a task of the cluster ---------------------------------------------------------------------


def ask(step: Step, share: float) -> Answers:
    """Returns what the model at a share of a step says.

    Raises:
        MeowError: the models differ, a pair is too long, or there is no fact or no twin.
    """
    with TemporaryDirectory() as temporary:
        pairs = _read_pairs(step, Path(temporary))
        if share == TARGET_SHARE:
            return _ask(step.engine, pairs)
        folder = Path(temporary, "model")
        _interpolate(step, share, folder)
        model = replace(step.engine.model, uri=str(folder), digest=str(folder), commit=None)
        return _ask(replace(step.engine, model=model), replace(pairs, twins=()))


def write(step: Step, share: float, uri: str) -> None:
    """Writes the model at a share of a step to a URI.

    Raises:
        MeowError: the models differ, or the URI cannot be written.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        _interpolate(step, share, folder)
        storage.copy_folder(str(folder), uri)


def _interpolate(step: Step, share: float, folder: Path) -> None:
    """Writes the model at a share of a step into a new folder; adapters are merged before."""
    folder.mkdir()
    soup.interpolate(step.engine.model.folder, step.tuned.folder, share, folder)


@dataclass(frozen=True)
class _Pairs:
    """The tokenised pairs that a model is asked."""

    facts: Sequence[Pair]
    twins: Sequence[Pair]
    neighbours: Sequence[Pair]


def _read_pairs(step: Step, folder: Path) -> _Pairs:
    """Tokenises the pairs as training does."""
    prompter = Prompter.of(refs.load_tokenizer(step.engine.model), step.prompt)
    uri = str(folder / "watched.parquet")
    watched.write(step.facts, step.twins, prompter, step.max_length, uri)
    pairs = Watched.load(uri)
    for name, found in (("fact to forget", pairs.truth), ("twin of the half `stop`", pairs.stop)):
        if not found:
            raise MeowError(f"meow soup: there is no {name}. Run the stages before it again.")
    return _Pairs(
        facts=pairs.truth, twins=pairs.stop, neighbours=_read_neighbours(step, prompter, folder)
    )


def _read_neighbours(step: Step, prompter: Prompter, folder: Path) -> list[Pair]:
    if step.neighbours is None:
        return []
    uri = str(folder / "neighbours.parquet")
    query = Query(_NEIGHBOURS, {"neighbours": step.neighbours})
    batches.write_token_pairs(query, prompter, step.max_length, uri)
    rows = storage.read_table([uri]).to_pylist()
    return [batches.pair_of(row, number) for number, row in enumerate(rows)]


_NEIGHBOURS = f"""
    SELECT
        {WITHOUT_ITEM}, 'retain' AS role, fact_id, question, answer
    FROM neighbours
    ORDER BY md5(concat_ws('/', fact_id, neighbour_id))
    LIMIT {watched.WATCHED_FACTS}
"""
"""The neighbours as `pairs.PAIRS`, no more than facts are watched."""


def _ask(spec: EngineSpec, pairs: _Pairs) -> Answers:
    engine = spec.load()
    probabilities = [
        np.exp(np.mean(forced.log_probs)) for forced in _teacher_force(engine, pairs.neighbours)
    ]
    return Answers(
        facts=figures_of(engine, pairs.facts),
        twins=figures_of(engine, pairs.twins),
        probability=float(np.mean(probabilities)) if probabilities else None,
    )


def figures_of(engine: Engine, pairs: Sequence[Pair]) -> list[Figures]:
    """Returns the figures of the answers of some pairs."""
    return [
        never_seen.figures(forced.log_probs, forced.is_greedy, pair.fact_mask)
        for pair, forced in zip(pairs, _teacher_force(engine, pairs), strict=True)
    ]


def _teacher_force(engine: Engine, pairs: Sequence[Pair]) -> list[TeacherForced]:
    starts = [pair.labels.count(IGNORE) for pair in pairs]
    prompts = [pair.input_ids[:start] for pair, start in zip(pairs, starts, strict=True)]
    answers = [pair.input_ids[start:] for pair, start in zip(pairs, starts, strict=True)]
    return engine.teacher_force(prompts, answers)
