"""The `candidates` table: of what a generator has written, or of a user's own rows."""

from collections.abc import Mapping
from typing import Any

from meow_ray.core import schema, tables
from meow_ray.core.manifest import MAIN, REJECTS_FILE, SHORTFALL_FILE
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError


def write(
    found: Query, wanted: int, on_shortfall: str, generator: str, paths: Mapping[str, str]
) -> dict[str, Any]:
    """Writes the candidates, the refused proposals and the facts with too few; returns the figures for the manifest.

    Args:
        found: rows of `fact_id`, `question`, `answer` and what `InvertSteps` adds.
        wanted: candidates of a fact that has enough.
        on_shortfall: fail, keep or drop; see `invert.on_shortfall`.
        generator: its name for the table.
        paths: where the tables go, by the names of an artifact's files.

    Raises:
        MeowError: there is no candidate at all, or a fact has too few and `on_shortfall` is fail.
    """

    def query(sql: str) -> Query:
        return Query(sql, found.sources)

    enough = f"len(candidates) >= {wanted}"
    total = query(f"""
        SELECT count(*) AS facts, count(*) FILTER (WHERE {enough}) AS facts_with_enough,
            count(*) FILTER (WHERE len(candidates) = 0) AS facts_with_none, sum(len(candidates))::BIGINT AS candidates,
            avg(distance) AS mean_distance, avg(distinctness) AS mean_distinctness
        FROM ({found.sql})
    """).rows()[0]
    rejects = f"SELECT fact_id, unnest(rejects) AS r FROM ({found.sql})"
    rules = query(
        f"SELECT r.reason AS reason, count(*) AS n FROM ({rejects}) GROUP BY 1 ORDER BY n DESC, 1"
    ).rows()
    by_rule = {row["reason"]: row["n"] for row in rules}
    short = query(f"""
        SELECT fact_id, len(candidates) AS num_candidates, coalesce(reasons, 'nothing was proposed') AS reasons
        FROM ({found.sql}) LEFT JOIN (
            SELECT fact_id, string_agg(reason || ' ' || n, ', ' ORDER BY n DESC, reason) AS reasons
            FROM (SELECT fact_id, r.reason AS reason, count(*) AS n FROM ({rejects}) GROUP BY ALL) GROUP BY fact_id
        ) USING (fact_id) WHERE NOT {enough} ORDER BY fact_id
    """)
    num_short = total["facts"] - total["facts_with_enough"]
    first = query(f"{short.sql} LIMIT 20").rows()
    if num_short and on_shortfall == "fail":
        lines = "".join(
            f"\n  {row['fact_id']}: {row['num_candidates']} of {wanted} ({row['reasons']})"
            for row in first
        )
        raise MeowError(
            f"{num_short} of {total['facts']} facts have fewer than {wanted} inverted facts:{lines}\n"
            "Their proposals are kept: set invert.on_shortfall=keep or drop to go on, or ask a larger model."
        )
    if not total["candidates"] or (on_shortfall == "drop" and num_short == total["facts"]):
        raise MeowError(
            f"The generator wrote {'too few valid' if total['candidates'] else 'no valid'} inverted facts for "
            f"{'each' if total['candidates'] else 'any'} of {total['facts']} facts (rejects by rule: "
            f"{by_rule}). Try invert.style=prefill for a small model, a larger model, or laxer rules."
        )
    kept = f"WHERE {enough}" if on_shortfall == "drop" else ""
    candidates = query(f"""
        SELECT fact_id, candidate_id, question, answer, c.text AS inverted_answer, c.attempt AS attempt,
            c.seed AS seed, {tables.text_literal(generator)} AS generator
        FROM (SELECT fact_id, question, answer, unnest(candidates) AS c,
            unnest(range(len(candidates))) AS candidate_id FROM ({found.sql}) {kept})
        ORDER BY fact_id, candidate_id
    """)
    tables.write_sorted(candidates, paths[MAIN], SCHEMAS["candidates"], KEYS["candidates"])
    refused = query(f"""
        SELECT fact_id, number, r.attempt AS attempt, r.style AS style, r.reason AS reason, r.text AS text
        FROM (SELECT fact_id, unnest(rejects) AS r, unnest(range(len(rejects))) AS number FROM ({found.sql}))
        ORDER BY fact_id, number
    """)
    tables.write_sorted(
        refused, paths[REJECTS_FILE], schema.CANDIDATE_REJECTS_SCHEMA, ("fact_id", "number")
    )
    tables.write_sorted(short, paths[SHORTFALL_FILE], schema.SHORTFALL_SCHEMA, ("fact_id",))
    return total | {
        "rejected_by_rule": by_rule,
        "facts_short": {row["fact_id"]: row["num_candidates"] for row in first},
    }
