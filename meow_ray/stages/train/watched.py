"""The pairs that training watches and does not learn: the true answers, and twins of the facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.tables import Query, TableSource
from meow_ray.models.prompts import Prompter
from meow_ray.stages.train import batches
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.pairs import SHIFTS, WITHOUT_ITEM

WATCHED_FACTS = 400
"""The largest number of facts, and of twins of the half `stop`, whose figures are taken."""


@dataclass(frozen=True)
class Watched:
    """The watched pairs, tokenised."""

    pairs: pa.Table
    """`batches.TOKENS` with the roles `truth`, `calibration` and `stop`; no pair has an item."""

    @classmethod
    def load(cls, uri: str) -> "Watched":
        """Reads the pairs that `write` wrote."""
        return cls(storage.read_table([uri]))

    @cached_property
    def truth(self) -> Sequence[Pair]:
        """The facts to forget with their true answers."""
        return self._pairs_of("truth")

    @cached_property
    def calibration(self) -> Sequence[Pair]:
        """The twins that set the floors."""
        return self._pairs_of("calibration")

    @cached_property
    def stop(self) -> Sequence[Pair]:
        """The twins that end training. No floor is made of them."""
        return self._pairs_of("stop")

    def _pairs_of(self, role: str) -> list[Pair]:
        rows = enumerate(self.pairs.to_pylist())
        return [batches.pair_of(row, number) for number, row in rows if row["role"] == role]


def write(
    facts: TableSource,
    twins: TableSource,
    prompter: Prompter,
    max_length: int,
    uri: str,
    guesses: TableSource | None = None,
) -> None:
    """Tokenises the watched pairs into a Parquet file.

    Args:
        facts: the artifact.
        twins: the artifact.
        prompter: writes and tokenises the prompts of the model.
        max_length: the largest number of tokens of a pair.
        uri: the file to write.
        guesses: the artifact; twins of the half `stop` are shifted as the floors of their fact's
            true answer are. None shifts none.

    Raises:
        MeowError: a pair is longer than `max_length`.
    """
    query = Query(_PAIRS, {"facts": facts, "twins": twins})
    if guesses is not None:
        query = Query(_SHIFTED, {"facts": facts, "twins": twins, "guesses": guesses})
    batches.write_token_pairs(query, prompter, max_length, uri, marks_facts=True)


_PAIRS = f"""
    WITH truths AS (
        SELECT fact_id, question, answer
        FROM facts
        WHERE split = 'forget'
        ORDER BY md5(fact_id)
        LIMIT {WATCHED_FACTS}
    ),
    stop_twins AS (
        SELECT fact_id, twin_id, question, answer
        FROM twins
        WHERE half = 'stop'
        ORDER BY md5(concat_ws('/', fact_id, twin_id))
        LIMIT {WATCHED_FACTS}
    ),
    watched AS (
        SELECT 'truth' AS role, fact_id, 0 AS twin_id, question, answer FROM truths
        UNION ALL
        SELECT 'calibration', fact_id, twin_id, question, answer
        FROM twins
        WHERE half = 'calibration'
        UNION ALL
        SELECT 'stop', fact_id, twin_id, question, answer FROM stop_twins
    )
    SELECT
        {WITHOUT_ITEM}, role, fact_id, twin_id, question, answer
    FROM watched
    ORDER BY role, fact_id, twin_id
"""
"""The watched pairs as `pairs.PAIRS`. Which facts are left out does not depend on their order."""

_SHIFTED = f"""
    WITH shifts AS ({SHIFTS}),
    pairs AS ({_PAIRS})
    SELECT pairs.* EXCLUDE (shift), of_truth.shift
    FROM pairs LEFT JOIN (SELECT fact_id, shift FROM shifts WHERE role = 'forget') AS of_truth
    ON pairs.role = 'stop' AND pairs.fact_id = of_truth.fact_id
    ORDER BY role, pairs.fact_id, twin_id
"""
