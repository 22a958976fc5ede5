"""Chooses by MEMO which inverted facts are trained on (MEOW, arXiv 2409.11844, section 3.3)."""

from typing import Any

from meow_ray.config import Select
from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.core.tables import Query, TableSource


def select(memo: TableSource, spec: Select) -> Query:
    """Takes the `top_k` candidates of each fact from a `memo` table, sorted by fact and rank.

    Candidates without a score are never chosen; equal scores go to the lower candidate_id. The result does not
    depend on the order or the partitioning of the rows.
    """
    key = {
        "largest": "memo DESC",
        "smallest": "memo ASC",
        "random": f"sha256(concat('{spec.seed}/', fact_id, '/', candidate_id))",
    }[spec.order]
    sql = f"""
        WITH memo AS (SELECT fact_id, candidate_id, question, text, memo FROM memo)
        SELECT fact_id, candidate_id::INTEGER AS candidate_id,
            (row_number() OVER (PARTITION BY fact_id ORDER BY {key}, candidate_id) - 1)::INTEGER AS rank,
            question, text AS answer, memo::DOUBLE AS memo
        FROM memo WHERE {_SCORED}
        QUALIFY rank < {spec.top_k}
        ORDER BY fact_id, rank
    """
    return Query(sql, {"memo": memo})


_SCORED = f"candidate_id <> {TRUE_ANSWER} AND memo IS NOT NULL AND NOT isnan(memo)"


def summarize(
    memo: TableSource, selected: TableSource, spec: Select, most: int = 100
) -> dict[str, Any]:
    """Counts for the manifest what `select` gave; `fewer` names up to `most` of the facts that fell short."""
    counts = f"""
        SELECT (SELECT count(DISTINCT fact_id) FROM memo) AS facts, count(*) AS chosen,
            count(*) FILTER (WHERE n < {spec.top_k}) AS short FROM (SELECT count(*) AS n FROM selected GROUP BY fact_id)
    """
    short = f"""
        SELECT fact_id, count(*) AS n FROM selected GROUP BY fact_id
        HAVING n < {spec.top_k} ORDER BY fact_id LIMIT {most}
    """
    found = Query(counts, {"memo": memo, "selected": selected}).rows()[0]
    return {
        "facts": found["facts"],
        "facts_with_top_k": found["chosen"] - found["short"],
        "facts_with_fewer": found["short"],
        "facts_with_none": found["facts"] - found["chosen"],
        "fewer": {row["fact_id"]: row["n"] for row in Query(short, {"selected": selected}).rows()},
    }
