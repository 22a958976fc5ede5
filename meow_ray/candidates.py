"""The `candidates` table: of what a generator has written, or of a user's own rows."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from meow_ray import schema, tables
from meow_ray.errors import MeowError
from meow_ray.facts import fact_id
from meow_ray.manifest import MAIN, REJECTS, SHORTFALL
from meow_ray.schema import KEYS, SCHEMAS, TRUE_ANSWER
from meow_ray.tables import Query


def write(found: Query, wanted: int, on_shortfall: str, generator: str, paths: Mapping[str, str]) -> dict[str, Any]:
    """Writes the candidates, the refused proposals and the facts with too few; returns the figures for the manifest.

    Args:
        found: rows of `fact_id`, `question`, `answer` and what `InvertSteps` adds.
        wanted: candidates of a fact that has enough.
        on_shortfall: fail, keep or drop; see `invert.on_shortfall`.
        generator: its name for the table.
        paths: where the tables go, by the names of an artefact's files.

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
    rules = query(f"SELECT r.reason AS reason, count(*) AS n FROM ({rejects}) GROUP BY 1 ORDER BY n DESC, 1").rows()
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
            f"\n  {row['fact_id']}: {row['num_candidates']} of {wanted} ({row['reasons']})" for row in first
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
    tables.write(candidates, paths[MAIN], SCHEMAS["candidates"], KEYS["candidates"])
    refused = query(f"""
        SELECT fact_id, number, r.attempt AS attempt, r.style AS style, r.reason AS reason, r.text AS text
        FROM (SELECT fact_id, unnest(rejects) AS r, unnest(range(len(rejects))) AS number FROM ({found.sql}))
        ORDER BY fact_id, number
    """)
    tables.write(refused, paths[REJECTS], schema.CANDIDATE_REJECTS, ("fact_id", "number"))
    tables.write(short, paths[SHORTFALL], schema.SHORTFALL, ("fact_id",))
    return total | {
        "rejected_by_rule": by_rule,
        "facts_short": {row["fact_id"]: row["num_candidates"] for row in first},
    }


def complete(records: Iterable[tuple[int, Any]], source: str) -> pa.Table:
    """Makes a candidates table of a user's own rows; `records` are (line, row).

    A row has `question`, `answer` (or `undesired_answer`) and an `inverted_answer`, or several as `answer_0`,
    `answer_1`, … as the MEOW authors publish them; the rest is filled in. A row without any asks for the true answer
    alone, which `memo` then scores: its candidate_id is -1.

    Raises:
        MeowError: a row lacks a question or an answer, has an empty one, or contradicts another row.
    """
    rows: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    facts: dict[str, tuple[str, str]] = {}
    for line, record in records:
        if not isinstance(record, dict):
            raise MeowError(f"{source}, line {line}: expected an object with a question and an answer.")
        name = "answer" if "answer" in record or "undesired_answer" not in record else "undesired_answer"
        question, answer = _text(record, "question", source, line), _text(record, name, source, line)
        given: dict[str, Any] = {
            k: _text(record, k, source, line) for k in ("fact_id", "generator") if record.get(k) is not None
        }
        given |= {k: _number(record, k, source, line) for k in _NUMBERS if record.get(k) is not None}
        key = given.get("fact_id") or fact_id(question, answer)
        if facts.setdefault(key, (question, answer)) != (question, answer):
            raise MeowError(f"{source}, line {line}: fact_id {key} names two different facts.")
        wide = sorted(
            (k for k in record if _WIDE.fullmatch(k) and record[k] is not None), key=lambda k: int(k.rpartition("_")[2])
        )
        names = ["inverted_answer"] if record.get("inverted_answer") is not None else wide
        made = {"fact_id": key, "question": question, "answer": answer}
        made |= {"attempt": 0, "seed": 0, "generator": "external"}
        made |= {k: given[k] for k in ("attempt", "seed", "generator") if k in given}
        for name in names:
            own = given.get("candidate_id") if name == "inverted_answer" else None
            number = counts.get(key, 0) if own is None else own
            counts[key] = counts.get(key, 0) + 1
            rows.append(made | {"candidate_id": number, "inverted_answer": _text(record, name, source, line)})
        if not names:
            rows.append(made | {"candidate_id": TRUE_ANSWER, "inverted_answer": None})
        if names and rows[-1]["candidate_id"] < 0:
            raise MeowError(f"{source}, line {line}: candidate_id is not a whole number from 0.")
    if not rows:
        raise MeowError(f"{source}: the file has no rows.")
    return pa.Table.from_pylist(rows, schema=SCHEMAS["candidates"])


_WIDE = re.compile(r"answer_\d+")
_NUMBERS = ("candidate_id", "attempt", "seed")


def _number(record: dict[str, Any], name: str, source: str, line: int) -> int:
    """Returns a whole number that fits its column; a CSV file has it as text."""
    value, least = record[name], TRUE_ANSWER if name == "candidate_id" else 0
    if isinstance(value, str) and re.fullmatch(r"-?\d+", value, re.ASCII):
        value = int(value)
    most = 2 ** (SCHEMAS["candidates"].field(name).type.bit_width - 1)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most:
        raise MeowError(f"{source}, line {line}: {name} is not a whole number from 0.")
    return value


def _text(record: dict[str, Any], name: str, source: str, line: int) -> str:
    value = record.get(name)
    if not isinstance(value, str) or not value.strip():
        missing = name not in record
        raise MeowError(f"{source}, line {line}: {name} is {'missing' if missing else 'empty or not a text'}.")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise MeowError(f"{source}, line {line}: {name} has half a surrogate pair.")
    return unicodedata.normalize("NFC", value).strip()
