"""Figures over all facts of a `memo` table: distributions, extremes, and the gap to candidates."""

from typing import Any

from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.core.tables import Query, TableSource

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""The levels of the quantiles in a distribution."""

BINS = 20
"""The number of bars of a histogram from 0 to 1."""

_IS_TRUE = f"candidate_id = {TRUE_ANSWER}"
_SCORED_TRUE = f"{_IS_TRUE} AND memo IS NOT NULL"
_SCORED_CANDIDATE = f"NOT {_IS_TRUE} AND memo IS NOT NULL"


def summarize(source: TableSource, num_extremes: int = 10) -> dict[str, Any]:
    """Returns the figures of a `memo` table for the manifest; they name facts by id only.

    `true_answers` and `candidates` are distributions of MEMO over the answers that have a score;
    `cv` is a standard deviation over its mean. `gap` is the mean over facts of the true answer's
    MEMO minus the mean MEMO of its candidates.

    Args:
        source: a `memo` table.
        num_extremes: the number of facts that `most_memorised` and `least_memorised` name.
    """
    totals = _totals(source)
    comparison = _compare_with_candidates(source)
    return {
        "answers": totals["answers"],
        "windows": totals["windows"] or 0,
        "too_short": totals["too_short"],
        "true_answers": _distribution(source, _SCORED_TRUE),
        "candidates": _distribution(source, _SCORED_CANDIDATE),
        "mean_cv_over_windows": totals["mean_cv"],
        "gap": comparison["gap"],
        "facts_true_above_all_candidates": comparison["true_above_all"],
        "facts_with_candidates": comparison["facts"],
        "most_memorised": _extremes(source, "DESC", num_extremes),
        "least_memorised": _extremes(source, "ASC", num_extremes),
    }


def _totals(source: TableSource) -> dict[str, Any]:
    """Counts answers and windows; `mean_cv` is the mean over true answers of `cv` over windows."""
    sql = f"""
        SELECT
            count(*) AS answers,
            sum(num_windows)::BIGINT AS windows,
            count(*) FILTER (WHERE memo IS NULL) AS too_short,
            avg(cv) FILTER (WHERE {_SCORED_TRUE}) AS mean_cv
        FROM memo
    """
    return Query(sql, {"memo": source}).rows()[0]


def _distribution(source: TableSource, condition: str) -> dict[str, Any]:
    """Returns the distribution of MEMO over the answers that meet an SQL condition."""
    levels = ", ".join(map(str, QUANTILES))
    sql = f"""
        SELECT
            count(*) AS count,
            avg(memo) AS mean,
            stddev_pop(memo) AS std,
            stddev_pop(memo) / nullif(avg(memo), 0) AS cv,
            quantile_cont(memo, [{levels}]) AS quantiles
        FROM memo
        WHERE {condition}
    """
    row = Query(sql, {"memo": source}).rows()[0]
    quantiles = row.pop("quantiles") or [None] * len(QUANTILES)
    by_level = dict(zip(map(str, QUANTILES), quantiles, strict=True))
    return row | {"quantiles": by_level, "histogram": _histogram(source, condition)}


def _histogram(source: TableSource, condition: str) -> list[int]:
    """Counts the answers in each bar; the last bar includes a MEMO of 1."""
    sql = f"""
        SELECT least(floor(memo * {BINS}), {BINS} - 1)::INTEGER AS bar, count(*) AS answers
        FROM memo
        WHERE {condition} AND memo >= 0
        GROUP BY bar
    """
    counts = {row["bar"]: row["answers"] for row in Query(sql, {"memo": source}).rows()}
    return [counts.get(bar, 0) for bar in range(BINS)]


def _compare_with_candidates(source: TableSource) -> dict[str, Any]:
    """Compares the true answers with their candidates, over the facts where both have a score."""
    sql = f"""
        WITH
        -- one row per fact: MEMO of its true answer, mean and largest MEMO of its candidates
        facts AS (
            SELECT
                max(memo) FILTER (WHERE {_IS_TRUE}) AS truth,
                avg(memo) FILTER (WHERE NOT {_IS_TRUE}) AS mean_candidate,
                max(memo) FILTER (WHERE NOT {_IS_TRUE}) AS best_candidate
            FROM memo
            GROUP BY fact_id
        )
        SELECT
            avg(truth - mean_candidate) AS gap,
            count(*) AS facts,
            count(*) FILTER (WHERE truth > best_candidate) AS true_above_all
        FROM facts
        WHERE truth IS NOT NULL AND mean_candidate IS NOT NULL
    """
    return Query(sql, {"memo": source}).rows()[0]


def _extremes(source: TableSource, order: str, limit: int) -> list[dict[str, Any]]:
    """Returns id and MEMO of the first facts by the true answer's MEMO; equal scores by id."""
    sql = f"""
        SELECT fact_id, memo
        FROM memo
        WHERE {_SCORED_TRUE}
        ORDER BY memo {order}, fact_id
        LIMIT {limit}
    """
    return Query(sql, {"memo": source}).rows()
