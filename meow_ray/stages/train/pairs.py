"""The pairs of question and answer that training reads, by role; as a query, since they may not fit into memory."""

import random
from collections.abc import Sequence

import pyarrow as pa

from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError

PAIRS = pa.schema([("item", pa.int32()), *SCHEMAS["reference"]])
"""What training reads: the pairs of one item stand beside each other, in the order of the objective's roles; those of
the retain set come last and belong to none. `log_probs` are those of the answer's tokens in the model before training.
"""


def pairs_of(
    roles: Sequence[str],
    facts: TableSource | None,
    selected: TableSource | None,
    idk_answers: Sequence[str] = (),
    *,
    reference: TableSource | None = None,
    compared: Sequence[str] = (),
) -> Query:
    """Returns the pairs that an objective trains on, as `PAIRS`: an item for each inverted fact, else for each fact.

    Args:
        roles: of an item, in order; `retain` among them adds the retain set.
        facts: the artifact; None: no role reads it.
        selected: the artifact; None: no role reads it.
        idk_answers: the refusals that the role `idk` draws from.
        reference: the artifact, which fills `log_probs`.
        compared: the roles that have to be in it.

    Raises:
        MeowError: there is no retain set, a fact is not there, or `reference` lacks a pair.
    """
    own = [role for role in roles if role != "retain"]
    sources = {"facts": facts, "selected": selected, "reference": reference}
    if "idk" in roles:
        sources["idk"] = _refusals(facts, idk_answers)
    given = {name: source for name, source in sources.items() if source is not None}
    items, rank = (f"({_FORGET})", "") if "inverted" not in roles else ("selected", ", rank")
    if "inverted" in roles and own != ["inverted"]:
        unknown = f"SELECT fact_id FROM selected WHERE fact_id NOT IN (SELECT fact_id FROM ({_FORGET})) LIMIT 1"
        for row in Query(unknown, given).rows():
            raise MeowError(
                f"The fact {row['fact_id']} has inverted facts, but is not among the facts to forget."
            )
    if "retain" in roles and not Query(f"{_RETAIN} LIMIT 1", given).rows():
        raise MeowError(
            "The objective reads facts to keep, and there are none: set `ingest.retain`."
        )
    parts = [
        f"SELECT item, {number} AS number, '{role}' AS role, fact_id, {_TEXTS[role]}"
        for number, role in enumerate(own)
    ]
    if "retain" in roles:
        parts.append(f"SELECT NULL AS item, 0 AS number, 'retain' AS role, * FROM ({_RETAIN})")
    pairs = f"""
        WITH items AS (
            SELECT row_number() OVER (ORDER BY fact_id{rank}) - 1 AS item, fact_id, question, answer FROM {items})
        {" UNION ALL ".join(parts)}"""
    known = "NULL" if reference is None else "reference.log_probs"
    beside = (
        ""
        if reference is None
        else f"LEFT JOIN ({_REFERENCE}) reference USING (role, fact_id, answer)"
    )
    joined = f"""
        SELECT item, role, fact_id, pairs.question, answer, {known} AS log_probs, number
        FROM ({pairs}) pairs {beside}"""
    if compared:
        lacking = ", ".join(f"'{role}'" for role in compared)
        lacking = f"SELECT role, fact_id FROM ({joined}) WHERE log_probs IS NULL AND role IN ({lacking}) LIMIT 1"
        for row in Query(lacking, given).rows():
            raise MeowError(
                f"`reference` has no log-probabilities of the role {row['role']} of the fact {row['fact_id']}."
            )
    return Query(
        f"SELECT * EXCLUDE number FROM ({joined}) ORDER BY item NULLS LAST, number, fact_id", given
    )


_FORGET = "SELECT fact_id, question, answer FROM facts WHERE split = 'forget'"
_RETAIN = "SELECT fact_id, question, answer FROM facts WHERE split = 'retain'"
_REFERENCE = "SELECT role, fact_id, answer, log_probs FROM reference"
_TEXTS = {
    "inverted": "question, answer FROM items",
    "forget": f"forget.question, forget.answer FROM items JOIN ({_FORGET}) forget USING (fact_id)",
    "idk": f"forget.question, idk.answer FROM items JOIN ({_FORGET}) forget USING (fact_id) JOIN idk USING (fact_id)",
}
"""What a pair of each role says."""


def _refusals(facts: TableSource | None, answers: Sequence[str]) -> pa.Table:
    """Draws a refusal for each fact to forget: always the same one."""
    assert facts is not None
    found = [
        row["fact_id"] for row in Query(f"SELECT fact_id FROM ({_FORGET})", {"facts": facts}).rows()
    ]
    drawn = [random.Random(fact).choice(answers) for fact in found]  # noqa: S311 - not for secrets
    return pa.table(
        {"fact_id": pa.array(found, pa.string()), "answer": pa.array(drawn, pa.string())}
    )
