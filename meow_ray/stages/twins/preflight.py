"""What `twins` would find only after the inverted facts were written, found before the run."""

from collections.abc import Iterator

import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core.stage import Known
from meow_ray.stages.invert.rules import Fact
from meow_ray.stages.neighbours.questions import other_questions

FEWEST_CANDIDATES = 2
"""Inverted facts that a fact needs for a twin in each half."""
WITHOUT_TWINS = "do without twins (train.objective=meow evaluate.twins=false)"


def _check_entities(config: Config, known: Known) -> Iterator[str]:
    """Finds that no question names anybody or anything."""
    if "facts" not in known:
        return
    table = known["facts"].table
    rows = table.filter(pc.equal(table["split"], "forget")).to_pylist()
    seed = config.twins.seed
    has_entity = any(
        other_questions(Fact(row["question"], row["answer"]), row["fact_id"], 1, seed)
        for row in rows
    )
    if rows and not has_entity:
        yield (
            f"`twins`: none of the {len(rows)} questions to forget names somebody or something, so "
            "no facts about others can be made of them. Write questions that name whom or what "
            f"they ask about, give --input twins=URI, or {WITHOUT_TWINS}."
        )


def _check_candidates(config: Config, known: Known) -> Iterator[str]:
    """Finds that too few inverted facts are given or asked for."""
    number = config.invert.num_candidates
    if "candidates" in known:
        ids = known["candidates"].table["candidate_id"].to_pylist()
        if ids and max(ids) < FEWEST_CANDIDATES - 1:
            yield (
                f"`candidates`: the twins need at least {FEWEST_CANDIDATES} inverted facts of a "
                "fact, and no fact has as many. Add some, give --input twins=URI, or "
                f"{WITHOUT_TWINS}."
            )
    elif number < FEWEST_CANDIDATES:
        yield (
            f"`invert.num_candidates`: the twins need at least {FEWEST_CANDIDATES} inverted facts "
            f"per fact ({number}). Set invert.num_candidates={FEWEST_CANDIDATES} or more, give "
            f"--input twins=URI, or {WITHOUT_TWINS}."
        )


CHECKS = (_check_entities, _check_candidates)
