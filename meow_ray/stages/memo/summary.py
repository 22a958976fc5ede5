"""Figures over the facts of a `memo` table: distribution, extremes, gap."""

from typing import Any

from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.core.tables import Query, TableSource

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


BINS = 20
"""Bars of a histogram over 0 … 1."""


def summarize(source: TableSource, most: int = 10) -> dict[str, Any]:
    """Returns what people ask of a `memo` table: distribution, extremes, and the gap between truth and candidates.

    The true answers' distribution is over facts; `cv` is its standard deviation over its mean. `gap` is the mean over
    facts of the true answer's MEMO minus the mean of its candidates'. Facts are named by id.
    """
    is_true = f"candidate_id = {TRUE_ANSWER}"
    truth = f"{is_true} AND memo IS NOT NULL"
    levels = ", ".join(map(str, QUANTILES))
    bins = ", ".join(
        f"count(*) FILTER (WHERE least(floor(memo * {BINS}), {BINS} - 1) = {i}) AS bin{i}"
        for i in range(BINS)
    )
    figures = f"""
        count(*) AS count, avg(memo) AS mean, stddev_pop(memo) AS std,
        stddev_pop(memo) / nullif(avg(memo), 0) AS cv, quantile_cont(memo, [{levels}]) AS quantiles, {bins}
    """
    sources = {"memo": source}

    def distribution(where: str) -> dict[str, Any]:
        row = Query(f"SELECT {figures} FROM memo WHERE {where}", sources).rows()[0]
        bins = [row.pop(f"bin{i}") for i in range(BINS)]
        quantiles = dict(
            zip(map(str, QUANTILES), row.pop("quantiles") or [None] * len(QUANTILES), strict=True)
        )
        return row | {"quantiles": quantiles, "histogram": bins}

    def extremes(order: str) -> list[dict[str, Any]]:
        sql = f"SELECT fact_id, memo FROM memo WHERE {truth} ORDER BY memo {order}, fact_id LIMIT {most}"
        return Query(sql, sources).rows()

    counts = f"""
        count(*) AS answers, sum(num_windows)::BIGINT AS windows, count(*) FILTER (WHERE memo IS NULL) AS short,
        avg(cv) FILTER (WHERE {truth}) AS cv
    """
    gap = f"""
        SELECT avg(truth - others) AS gap, count(*) AS facts, count(*) FILTER (WHERE truth > best) AS above FROM (
            SELECT max(memo) FILTER (WHERE {is_true}) AS truth, avg(memo) FILTER (WHERE NOT {is_true})
            AS others, max(memo) FILTER (WHERE NOT {is_true}) AS best FROM memo GROUP BY fact_id)
        WHERE truth IS NOT NULL AND others IS NOT NULL
    """
    total = Query(f"SELECT {counts} FROM memo", sources).rows()[0]
    between = Query(gap, sources).rows()[0]
    return {
        "answers": total["answers"],
        "windows": total["windows"] or 0,
        "too_short": total["short"],
        "true_answers": distribution(truth),
        "candidates": distribution(f"NOT {is_true} AND memo IS NOT NULL"),
        "mean_cv_over_windows": total["cv"],
        "gap": between["gap"],
        "facts_true_above_all_candidates": between["above"],
        "facts_with_candidates": between["facts"],
        "most_memorised": extremes("DESC"),
        "least_memorised": extremes("ASC"),
    }
