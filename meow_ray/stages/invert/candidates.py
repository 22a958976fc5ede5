"""The tables that `invert` writes: candidates, rejected proposals, and facts with too few."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from meow_ray.core import tables
from meow_ray.core.manifest import MAIN, REJECTS_FILE, SHORTFALL_FILE
from meow_ray.core.schema import CANDIDATE_REJECTS_SCHEMA, KEYS, SCHEMAS, SHORTFALL_SCHEMA
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError

NAMED_FACTS = 20
"""Facts with too few candidates that the manifest and an error name, at most."""


def write_candidates(
    results: Query, wanted: int, on_shortfall: str, generator: str, paths: Mapping[str, str]
) -> dict[str, Any]:
    """Writes the tables of `invert` and returns the figures for the manifest.

    Args:
        results: one row per fact, with `fact_id`, `question`, `answer` and the columns that
            `InvertSteps` adds.
        wanted: the number of candidates that a fact needs.
        on_shortfall: `fail`, `keep` or `drop`; see `invert.on_shortfall`.
        generator: the generator's name for the table.
        paths: URIs of the tables, by the names of the artifact's files.

    Raises:
        MeowError: there is no candidate at all, or a fact has too few and `on_shortfall` is fail.
    """
    outcome = _Outcome(results, wanted)
    totals = outcome.totals()
    rejected_by_rule = outcome.rejected_by_rule()
    short_facts = outcome.short_facts(NAMED_FACTS)
    _check_enough(totals, rejected_by_rule, short_facts, wanted, on_shortfall)
    tables.write_sorted(
        outcome.candidates(generator, only_enough=on_shortfall == "drop"),
        paths[MAIN],
        SCHEMAS["candidates"],
        KEYS["candidates"],
    )
    tables.write_sorted(
        outcome.rejects(), paths[REJECTS_FILE], CANDIDATE_REJECTS_SCHEMA, ("fact_id", "number")
    )
    tables.write_sorted(outcome.shortfall(), paths[SHORTFALL_FILE], SHORTFALL_SCHEMA, ("fact_id",))
    return totals | {
        "rejected_by_rule": rejected_by_rule,
        "left_out": outcome.left_out(),
        "facts_short": {row["fact_id"]: row["num_candidates"] for row in short_facts},
    }


def _check_enough(
    totals: Mapping[str, Any],
    rejected_by_rule: Mapping[str, int],
    short_facts: list[dict[str, Any]],
    wanted: int,
    on_shortfall: str,
) -> None:
    """Raises MeowError if no table can be written, or if a shortfall is to fail the stage."""
    facts = totals["facts"]
    num_short = facts - totals["facts_with_enough"]
    if num_short and on_shortfall == "fail":
        lines = "".join(
            f"\n  {row['fact_id']}: {row['num_candidates']} of {wanted} ({row['reasons']})"
            for row in short_facts
        )
        raise MeowError(
            f"`invert`: {num_short} of {facts} facts have fewer than {wanted} inverted facts:"
            f"{lines}\nSet `invert.on_shortfall` to keep or drop to continue with the answers so "
            "far, or set `invert.model` to a larger model."
        )
    amount = None
    if not totals["candidates"]:
        amount = f"no valid inverted facts for any of {facts} facts"
    elif on_shortfall == "drop" and num_short == facts:
        amount = f"too few valid inverted facts for each of {facts} facts"
    if amount:
        raise MeowError(
            f"`invert`: the generator wrote {amount} (rejects by rule: {dict(rejected_by_rule)}). "
            "Use a larger model, set `invert.style` to prefill for a small one, or relax the rules "
            "(`invert.skip_rules`; their names are above)."
        )


@dataclass(frozen=True)
class _Outcome:
    """The generator's results for all facts, with the queries that make tables of them."""

    results: Query
    wanted: int

    def totals(self) -> dict[str, Any]:
        """Returns numbers of facts and candidates, and two mean distances."""
        query = self._query(f"""
            SELECT
                count(*) AS facts,
                count(*) FILTER (WHERE {self._enough}) AS facts_with_enough,
                count(*) FILTER (WHERE len(candidates) = 0) AS facts_with_none,
                sum(len(candidates))::BIGINT AS candidates,
                avg(distance) AS mean_distance,
                avg(distinctness) AS mean_distinctness
            FROM asked
        """)
        return query.rows()[0]

    def rejected_by_rule(self) -> dict[str, int]:
        """Returns the number of rejected proposals by rule, the most frequent first."""
        query = self._query("""
            SELECT reject.reason AS reason, count(*) AS n
            FROM rejected
            GROUP BY 1
            ORDER BY n DESC, 1
        """)
        return {row["reason"]: row["n"] for row in query.rows()}

    def left_out(self) -> dict[str, int]:
        """Returns the number of facts that were asked without a setting, by the setting's name."""
        query = self._query("""
            SELECT name, count(*) AS n
            FROM (SELECT unnest(left_out) AS name FROM asked)
            GROUP BY 1
            ORDER BY 1
        """)
        return {row["name"]: row["n"] for row in query.rows()}

    def shortfall(self) -> Query:
        """Returns the facts with too few candidates, with the reasons of their rejects."""
        return self._query(f"""
            , counted AS (  -- one row per fact and rule
                SELECT fact_id, reject.reason AS reason, count(*) AS n
                FROM rejected
                GROUP BY ALL
            ), explained AS (  -- one row per fact with rejects, such as "loop 2, meta 1"
                SELECT
                    fact_id,
                    string_agg(reason || ' ' || n, ', ' ORDER BY n DESC, reason) AS reasons
                FROM counted
                GROUP BY fact_id
            )
            SELECT
                fact_id,
                len(candidates) AS num_candidates,
                coalesce(reasons, 'nothing was proposed') AS reasons
            FROM asked LEFT JOIN explained USING (fact_id)
            WHERE NOT {self._enough}
            ORDER BY fact_id
        """)

    def short_facts(self, most: int) -> list[dict[str, Any]]:
        """Returns the first rows of `shortfall`."""
        query = self.shortfall()
        return Query(f"{query.sql} LIMIT {most}", query.sources).rows()

    def candidates(self, generator: str, only_enough: bool) -> Query:
        """Returns one row per candidate; with `only_enough` of the facts that have enough."""
        return self._query(f"""
            , numbered AS (  -- one row per candidate; the candidates of a fact count from 0
                SELECT
                    fact_id,
                    question,
                    answer,
                    unnest(candidates) AS candidate,
                    unnest(range(len(candidates))) AS candidate_id
                FROM asked
                WHERE {self._enough if only_enough else "true"}
            )
            SELECT
                fact_id,
                candidate_id,
                question,
                answer,
                candidate.text AS inverted_answer,
                candidate.attempt AS attempt,
                candidate.seed AS seed,
                {tables.text_literal(generator)} AS generator
            FROM numbered
            ORDER BY fact_id, candidate_id
        """)

    def rejects(self) -> Query:
        """Returns one row per rejected proposal; those of a fact count from 0."""
        return self._query("""
            SELECT
                fact_id,
                number,
                reject.attempt AS attempt,
                reject.style AS style,
                reject.reason AS reason,
                reject.text AS text
            FROM rejected
            ORDER BY fact_id, number
        """)

    @property
    def _enough(self) -> str:
        """A condition on a row of `asked`: the fact has enough candidates."""
        return f"len(candidates) >= {self.wanted}"

    def _query(self, sql: str) -> Query:
        """Returns a query that may read `asked` and `rejected`; `sql` may add more CTEs."""
        common = f"""
            WITH asked AS NOT MATERIALIZED (  -- one row per fact, with lists
                {self.results.sql}
            ), rejected AS (  -- one row per rejected proposal
                SELECT
                    fact_id,
                    unnest(rejects) AS reject,
                    unnest(range(len(rejects))) AS number
                FROM asked
            )
        """
        return Query(f"{common}{sql}", self.results.sources)
