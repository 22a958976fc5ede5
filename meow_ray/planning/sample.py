"""What is known of a run before it starts: a sample of the facts, counts, the tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.planning.memory import Method
from meow_ray.stages.evaluate.sets import read_set
from meow_ray.stages.ingest import facts as facts_module
from meow_ray.stages.ingest.facts import read_sources

SAMPLE = 100
"""Facts of each split that are looked at."""


@dataclass(frozen=True)
class Given:
    """What is known before a run."""

    facts: pa.Table
    """A sample of the table `facts`."""
    counts: Mapping[str, int]
    """Facts of each split in all."""
    sets: Mapping[str, pa.Table]
    tokenizer: Any
    """The target's; it stands for the generator's, too."""
    model_bytes: int
    """Of the exported model."""
    trainable: int
    """Parameters that are updated."""

    def split(self, name: str) -> pa.Table:
        """Returns the sample of one split."""
        return self.facts.filter(pc.equal(self.facts["split"], name))

    def times(self, name: str) -> float:
        """Returns how many facts one of the sample stands for."""
        return float(self.counts[name] / max(1, self.split(name).num_rows))


def look(config: Config, target: ModelRef, method: Method, count: int | None) -> Given:
    """Reads the facts and takes a sample of them.

    Args:
        config: the configuration; `ingest.forget` is set.
        target: whose tokenizer counts.
        method: how it is trained.
        count: facts to forget, all like those of the file; None: as many as there are.

    Raises:
        MeowError: the files cannot be read, or no row is left.
    """
    spec, sets = (
        config.ingest,
        {name: read_set(name, source, config) for name, source in config.evaluate.sets.items()},
    )
    forget, retain = (
        read_sources([source], config) if source else [] for source in (spec.forget, spec.retain)
    )
    table, _ = facts_module.build_facts(forget, retain, lambda question, answer: None)
    splits = {name: table.filter(pc.equal(table["split"], name)) for name in ("forget", "retain")}
    if not splits["forget"].num_rows:
        raise MeowError("`ingest.forget`: no row is left to forget.")
    counts = {name: part.num_rows for name, part in splits.items()}
    every = {name: range(0, rows, max(1, rows // SAMPLE)) for name, rows in counts.items()}
    sample = pa.concat_tables(
        [part.take(pa.array(every[name], pa.int64())) for name, part in splits.items()]
    )
    counts |= {"forget": count} if count else {}
    return Given(
        sample, counts, sets, refs.load_tokenizer(target), method.weights, method.trainable
    )
