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


def summarize(
    source: TableSource, num_extremes: int = 10, has_bounds: bool = False
) -> dict[str, Any]:
    """Returns the figures of a `memo` table for the manifest; they name facts by id only.

    `true_answers` and `candidates` are distributions of MEMO over the answers that have a score;
    `cv` is a standard deviation over its mean. `gap` is the mean over facts of the true answer's
    MEMO minus the mean MEMO of its candidates.

    With `has_bounds`, some answers have only bounds of MEMO. `bounds` then has the number of such
    true answers and candidates, and bounds of the mean over all of them. A figure over answers that
    include such ones is left out, since those with a score are no sample of them.

    Args:
        source: a `memo` table.
        num_extremes: the number of facts that `most_memorised` and `least_memorised` name.
        has_bounds: whether the table has the columns `memo_low` and `memo_high`.
    """
    bounds = _bounds(source) if has_bounds else {}
    scored_true = _unless_bounded(_SCORED_TRUE, bounds, "true_answers")
    scored_candidate = _unless_bounded(_SCORED_CANDIDATE, bounds, "candidates")
    totals = _totals(source, scored_true)
    comparison = _compare_with_candidates(source, scored_true, scored_candidate)
    figures = {
        "answers": totals["answers"],
        "windows": totals["windows"] or 0,
        "too_short": totals["without_score"] - sum(part["bounded"] for part in bounds.values()),
        "true_answers": _distribution(source, scored_true),
        "candidates": _distribution(source, scored_candidate),
        "mean_cv_over_windows": totals["mean_cv"],
        "gap": comparison["gap"],
        "facts_true_above_all_candidates": comparison["true_above_all"],
        "facts_with_candidates": comparison["facts"],
        "most_memorised": _extremes(source, scored_true, "DESC", num_extremes),
        "least_memorised": _extremes(source, scored_true, "ASC", num_extremes),
    }
    return figures | ({"bounds": bounds} if has_bounds else {})


def _bounds(source: TableSource) -> dict[str, dict[str, Any]]:
    """Returns for true answers and candidates how many have only bounds, and bounds of the mean."""
    sql = f"""
        SELECT
            {_IS_TRUE} AS is_true,
            count(*) FILTER (WHERE memo IS NULL AND memo_low IS NOT NULL) AS bounded,
            avg(memo_low) AS mean_low,
            avg(memo_high) AS mean_high
        FROM memo
        GROUP BY is_true
    """
    parts = {row.pop("is_true"): row for row in Query(sql, {"memo": source}).rows()}
    none = {"bounded": 0, "mean_low": None, "mean_high": None}
    return {"true_answers": parts.get(True, none), "candidates": parts.get(False, none)}


def _unless_bounded(condition: str, bounds: dict[str, dict[str, Any]], part: str) -> str:
    """Returns an SQL condition that no answer meets if one of its part has only bounds."""
    return "false" if bounds and bounds[part]["bounded"] else condition


def _totals(source: TableSource, scored_true: str) -> dict[str, Any]:
    """Counts answers and windows; `mean_cv` is the mean over true answers of `cv` over windows."""
    sql = f"""
        SELECT
            count(*) AS answers,
            sum(num_windows)::BIGINT AS windows,
            count(*) FILTER (WHERE memo IS NULL) AS without_score,
            avg(cv) FILTER (WHERE {scored_true}) AS mean_cv
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


def _compare_with_candidates(
    source: TableSource, scored_true: str, scored_candidate: str
) -> dict[str, Any]:
    """Compares the true answers with their candidates, over the facts where both have a score."""
    sql = f"""
        WITH
        -- one row per fact: MEMO of its true answer, mean and largest MEMO of its candidates
        facts AS (
            SELECT
                max(memo) FILTER (WHERE {scored_true}) AS truth,
                avg(memo) FILTER (WHERE {scored_candidate}) AS mean_candidate,
                max(memo) FILTER (WHERE {scored_candidate}) AS best_candidate
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


def _extremes(
    source: TableSource, scored_true: str, order: str, limit: int
) -> list[dict[str, Any]]:
    """Returns id and MEMO of the first facts by the true answer's MEMO; equal scores by id."""
    sql = f"""
        SELECT fact_id, memo
        FROM memo
        WHERE {scored_true}
        ORDER BY memo {order}, fact_id
        LIMIT {limit}
    """
    return Query(sql, {"memo": source}).rows()
