"""Chooses by MEMO which inverted facts are trained on (MEOW, arXiv 2409.11844, section 3.3)."""

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Select
from meow_ray.schema import SCHEMAS

TRUE_ANSWER = -1
"""The candidate_id under which `memo` scores the true answer."""


def select(memo: pa.Table, spec: Select) -> tuple[pa.Table, dict[str, Any]]:
    """Takes the `top_k` candidates of each fact from a `memo` table.

    Candidates without a score are never chosen; equal scores go to the lower candidate_id. The result does not
    depend on the order of the rows.

    Returns:
        The `selected` table, sorted by fact and rank, and the counts for the manifest.
    """
    wanted = pc.and_(pc.not_equal(memo["candidate_id"], TRUE_ANSWER), pc.is_valid(memo["memo"]))
    pool = memo.select(SCHEMAS["memo"].names).filter(wanted)
    if spec.order == "random":
        key = pa.array([_lot(spec.seed, f, c) for f, c in zip(*_ids(pool), strict=True)], pa.string())
        direction = "ascending"
    else:
        key = pool["memo"]
        direction = "descending" if spec.order == "largest" else "ascending"
    pool = pool.append_column("key", key).sort_by(
        [("fact_id", "ascending"), ("key", direction), ("candidate_id", "ascending")]
    )
    ranks, previous, rank = [], None, 0
    for fact_id in pool["fact_id"].to_pylist():
        rank = rank + 1 if fact_id == previous else 0
        ranks.append(rank)
        previous = fact_id
    chosen = pool.append_column("rank", pa.array(ranks, pa.int32())).rename_columns({"text": "answer"})
    chosen = chosen.filter(pc.less(chosen["rank"], spec.top_k)).select(SCHEMAS["selected"].names)

    facts = len(set(memo["fact_id"].to_pylist()))
    have = chosen.group_by("fact_id").aggregate([([], "count_all")])
    short = {row["fact_id"]: row["count_all"] for row in have.to_pylist() if row["count_all"] < spec.top_k}
    return chosen, {
        "facts": facts,
        "facts_with_top_k": have.num_rows - len(short),
        "facts_with_fewer": short,
        "facts_with_none": facts - have.num_rows,
    }


def sample(facts: pa.Table, count: int | None, seed: int) -> pa.Table:
    """Returns `count` facts drawn by seed, the same whatever the order of the rows; all if there are no more."""
    if count is None or facts.num_rows <= count:
        return facts
    lots = pa.array([_lot(seed, fact, 0) for fact in facts["fact_id"].to_pylist()], pa.string())
    return facts.append_column("lot", lots).sort_by("lot").slice(0, count).drop_columns(["lot"])


def _ids(table: pa.Table) -> tuple[list[str], list[int]]:
    return table["fact_id"].to_pylist(), table["candidate_id"].to_pylist()


def _lot(seed: int, fact_id: str, candidate_id: int) -> str:
    return hashlib.sha256(f"{seed}/{fact_id}/{candidate_id}".encode()).hexdigest()
