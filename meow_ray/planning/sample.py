"""A sample of a run's facts, from which its work is estimated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.planning.methods import Method
from meow_ray.stages.evaluate.sets import read_set
from meow_ray.stages.ingest import facts as ingest_facts

SAMPLE = 100
"""About how many facts of each split are sampled."""


@dataclass(frozen=True)
class FactSample:
    """Sampled facts of a run, with the counts and sizes that are known before the run starts."""

    facts: pa.Table
    """Sampled rows of the table `facts`."""
    counts: Mapping[str, int]
    """The number of all facts by split."""
    sets: Mapping[str, pa.Table]
    """The evaluation sets by name."""
    tokenizer: Any
    """The target's tokenizer, which is also used to estimate the generator's tokens."""
    model_bytes: int
    """Bytes of the exported model."""
    trainable: int
    """Parameters that the optimiser updates."""

    def split(self, name: str) -> pa.Table:
        """Returns the sampled facts of one split."""
        return self.facts.filter(pc.equal(self.facts["split"], name))

    def scale(self, name: str) -> float:
        """Returns how many facts of a split each sampled fact represents."""
        return float(self.counts[name] / max(1, self.split(name).num_rows))


def sample_facts(
    config: Config, target: ModelRef, method: Method, num_forget: int | None
) -> FactSample:
    """Reads the configured facts and samples them at even distances.

    Args:
        config: the configuration; `ingest.forget` is set.
        target: the model whose tokenizer is used.
        method: the method of fine-tuning.
        num_forget: the number of facts to forget, all similar to those in the file; None uses the
            number in the file.

    Raises:
        MeowError: a file cannot be read, or no fact to forget is left.
    """
    sources = config.ingest
    sets = {name: read_set(name, source, config) for name, source in config.evaluate.sets.items()}
    forget, retain = (
        ingest_facts.read_sources([source], config) if source else []
        for source in (sources.forget, sources.retain)
    )
    table, _ = ingest_facts.build_facts(forget, retain, lambda question, answer: None)
    splits = {name: table.filter(pc.equal(table["split"], name)) for name in ("forget", "retain")}
    if not splits["forget"].num_rows:
        raise MeowError(
            "`ingest.forget`: no valid row is left to forget (0). "
            "Run `meow stage ingest` to see why rows were rejected."
        )
    counts = {name: split.num_rows for name, split in splits.items()}
    sampled = [_evenly_spaced(split) for split in splits.values()]
    if num_forget:
        counts["forget"] = num_forget
    return FactSample(
        facts=pa.concat_tables(sampled),
        counts=counts,
        sets=sets,
        tokenizer=refs.load_tokenizer(target),
        model_bytes=method.weights,
        trainable=method.trainable,
    )


def _evenly_spaced(rows: pa.Table) -> pa.Table:
    indices = range(0, rows.num_rows, max(1, rows.num_rows // SAMPLE))
    return rows.take(pa.array(indices, pa.int64()))
