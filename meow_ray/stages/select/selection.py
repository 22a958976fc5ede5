"""Chooses by MEMO which inverted facts are trained on (MEOW, arXiv 2409.11844, section 3.3)."""

from typing import Any

from meow_ray.config import Select
from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.core.tables import Query, TableSource


def select(memo: TableSource, spec: Select) -> Query:
    """Returns a query of the `top_k` candidates of each fact, sorted by fact and rank.

    Candidates without a score are chosen only in order random, which needs none. Of equal scores,
    the lower candidate_id comes first. The result does not depend on the order or the partitioning
    of the rows.

    Args:
        memo: a `memo` table.
        spec: number, order and seed.
    """
    order = {
        "largest": "memo DESC",
        "smallest": "memo ASC",
        "random": f"sha256(concat('{spec.seed}/', fact_id, '/', candidate_id))",
    }[spec.order]
    is_number = "NOT isnan(memo)"
    can_be_chosen = f"(memo IS NULL OR {is_number})" if spec.order == "random" else is_number
    sql = f"""
        WITH
        -- the candidates that can be chosen
        scored AS (
            SELECT fact_id, candidate_id, question, text, memo
            FROM memo
            WHERE candidate_id <> {TRUE_ANSWER} AND {can_be_chosen}
        ),
        -- their ranks within each fact, from 0
        ranked AS (
            SELECT *, row_number() OVER (PARTITION BY fact_id ORDER BY {order}, candidate_id) - 1
                AS rank
            FROM scored
        )
        SELECT fact_id, candidate_id::INTEGER AS candidate_id, rank::INTEGER AS rank,
            question, text AS answer, memo::DOUBLE AS memo
        FROM ranked
        WHERE rank < {spec.top_k}
        ORDER BY fact_id, rank
    """
    return Query(sql, {"memo": memo})


def count_undecided(memo: TableSource, spec: Select) -> int:
    """Counts the facts of which a candidate that has only bounds of MEMO could be chosen.

    Such a candidate has no score, but its best score is not behind the scores of `top_k` others.

    Args:
        memo: a `memo` table with the columns `memo_low` and `memo_high`.
        spec: number and order; an order that needs no score leaves nothing undecided.
    """
    if spec.order == "random":
        return 0
    order = {"largest": "best DESC", "smallest": "best ASC"}[spec.order]
    best = {"largest": "memo_high", "smallest": "memo_low"}[spec.order]
    sql = f"""
        WITH
        -- the candidates with the best score that each can have
        candidates AS (
            SELECT fact_id, candidate_id, memo, coalesce(memo, {best}) AS best
            FROM memo
            WHERE candidate_id <> {TRUE_ANSWER}
        ),
        -- their ranks by it
        ranked AS (
            SELECT *, row_number() OVER (PARTITION BY fact_id ORDER BY {order}, candidate_id) - 1
                AS rank
            FROM candidates
            WHERE NOT isnan(best)
        )
        SELECT count(DISTINCT fact_id) AS facts
        FROM ranked
        WHERE rank < {spec.top_k} AND memo IS NULL
    """
    return int(Query(sql, {"memo": memo}).rows()[0]["facts"])


def summarize_selection(
    memo: TableSource, selected: TableSource, spec: Select, num_named: int = 100
) -> dict[str, Any]:
    """Returns the figures of a selection for the manifest.

    Args:
        memo: the table that was chosen from.
        selected: the chosen rows.
        spec: the settings of `select`.
        num_named: the largest number of facts that `fewer` names; it maps their ids to the number
            of their candidates.
    """
    counts = f"""
        WITH
        -- one row per fact that has any chosen candidate
        facts AS (SELECT count(*) AS candidates FROM selected GROUP BY fact_id)
        SELECT
            (SELECT count(DISTINCT fact_id) FROM memo) AS facts,
            count(*) AS facts_with_any,
            count(*) FILTER (WHERE candidates < {spec.top_k}) AS facts_with_fewer
        FROM facts
    """
    fewer = f"""
        SELECT fact_id, count(*) AS candidates
        FROM selected
        GROUP BY fact_id
        HAVING candidates < {spec.top_k}
        ORDER BY fact_id
        LIMIT {num_named}
    """
    total = Query(counts, {"memo": memo, "selected": selected}).rows()[0]
    named = Query(fewer, {"selected": selected}).rows()
    return {
        "facts": total["facts"],
        "facts_with_top_k": total["facts_with_any"] - total["facts_with_fewer"],
        "facts_with_fewer": total["facts_with_fewer"],
        "facts_with_none": total["facts"] - total["facts_with_any"],
        "fewer": {row["fact_id"]: row["candidates"] for row in named},
    }
