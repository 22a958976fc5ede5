"""The pairs of question and answer that training reads, by role.

They are a query, since the pairs may not fit into memory.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from meow_ray.config import RetainSource
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError

PAIRS = pa.schema(
    [
        ("item", pa.int32()),
        ("wording", pa.int32()),
        *SCHEMAS["reference"],
        ("opposite", pa.string()),
        ("original", pa.string()),
        ("shift", pa.float64()),
    ]
)
"""One row per pair.

The pairs of one item are consecutive: those of each wording of its question, in the order of the
objective's roles. Wording 0 is the question itself, which `original` repeats. The pairs of the
retain set come last; they belong to no item. `log_probs` are those of the answer's tokens in the
model before training. `opposite` is the true answer for an inverted one of the same item, and the
inverted answer for the true one; null if the item does not have both. `shift` is that of the
answer's floors, in log-odds; null without guesses.
"""

WITHOUT_ITEM = (
    "NULL::INTEGER AS item, 0 AS wording, NULL::DOUBLE[] AS log_probs, "
    "NULL::VARCHAR AS opposite, question AS original, NULL::DOUBLE AS shift"
)
"""SQL of the columns of `PAIRS` that say nothing of a pair outside an item."""


def pairs_of(
    roles: Sequence[str],
    facts: TableSource | None,
    selected: TableSource | None,
    idk_answers: Sequence[str] = (),
    *,
    neighbours: TableSource | None = None,
    retain: RetainSource = "given",
    paraphrases: TableSource | None = None,
    num_paraphrases: int = 0,
    reference: TableSource | None = None,
    compared: Sequence[str] = (),
    guesses: TableSource | None = None,
) -> Query:
    """Returns a query of the pairs that an objective trains on, as `PAIRS`.

    An item is one inverted fact if the roles contain `inverted`, else one fact to forget.

    Args:
        roles: the roles of an item, in order; `retain` among them adds the retain set.
        facts: the artifact; None if no role reads it.
        selected: the artifact; None if no role reads it.
        idk_answers: the refusals that the role `idk` draws from.
        neighbours: the artifact; None if the retain set has none.
        retain: what the retain set consists of.
        paraphrases: the artifact; None if each item has its question alone.
        num_paraphrases: the largest number of further wordings of an item's question.
        reference: the artifact that fills `log_probs`; None leaves the column null.
        compared: the roles whose pairs `reference` has to contain.
        guesses: the artifact that fills `shift`; None leaves the column null.

    Raises:
        MeowError: there is no retain set, `selected` has an unknown fact, or `reference` or
            `guesses` lacks a pair.
    """
    item_roles = [role for role in roles if role != "retain"]
    tables: dict[str, TableSource] = {}
    if facts is not None:
        tables["facts"] = facts
    if selected is not None:
        tables["selected"] = selected
    if neighbours is not None:
        tables["neighbours"] = neighbours
    if paraphrases is not None:
        tables["paraphrases"] = paraphrases
    if reference is not None:
        tables["reference"] = reference
    if guesses is not None:
        tables["guesses"] = guesses
    if "idk" in roles:
        assert facts is not None
        tables["refusals"] = _draw_refusals(facts, idk_answers)
    if "inverted" in roles and item_roles != ["inverted"]:
        _check_selected_facts(tables)
    retained = RETAIN_SETS[retain] if "retain" in roles else ()
    for name in retained:
        _check_retain_set(name, tables)
    steps = _steps(
        item_roles,
        retained,
        num_paraphrases=num_paraphrases if paraphrases is not None else 0,
        has_reference=reference is not None,
        has_guesses=guesses is not None,
    )
    if compared:
        _check_reference(steps, compared, tables)
    if guesses is not None:
        _check_guesses(steps, tables)
    sql = f"""
        WITH {steps}
        SELECT item, wording, role, fact_id, question, answer, log_probs, opposite, original, shift
        FROM shifted_pairs
        ORDER BY item NULLS LAST, wording, number, fact_id
    """
    return Query(sql, tables)


# --- steps of the query -------------------------------------------------------------------------

_FORGET_FACTS = "SELECT fact_id, question, answer FROM facts WHERE split = 'forget'"
_RETAIN_FACTS = {
    "facts": "SELECT fact_id, question, answer FROM facts WHERE split = 'retain'",
    "neighbours": """SELECT
            concat_ws('/', fact_id, kind, neighbour_id) AS fact_id, question, answer
        FROM neighbours""",
}
"""The pairs to retain in each table."""

RETAIN_SETS: Mapping[RetainSource, tuple[str, ...]] = {
    "none": (),
    "given": ("facts",),
    "neighbours": ("neighbours",),
    "both": ("facts", "neighbours"),
}
"""The tables with pairs to retain by `train.retain`."""

_ITEMS_OF_INVERTED_FACTS = """
    SELECT row_number() OVER (ORDER BY fact_id, rank) - 1 AS item, fact_id, question, answer
    FROM selected
"""
_ITEMS_OF_FORGET_FACTS = """
    SELECT row_number() OVER (ORDER BY fact_id) - 1 AS item, fact_id, question, answer
    FROM forget_facts
"""

_TEXTS_OF_ROLE = {
    "inverted": "items.question, items.answer FROM items",
    "forget": """forget_facts.question, forget_facts.answer
        FROM items JOIN forget_facts USING (fact_id)""",
    "idk": """forget_facts.question, refusals.answer
        FROM items JOIN forget_facts USING (fact_id) JOIN refusals USING (fact_id)""",
}
"""The question and the answer in the pairs of each role, and the tables that they come from."""

_OPPOSITE_OF_ROLE = {
    "inverted": "(SELECT f.answer FROM forget_facts AS f WHERE f.fact_id = items.fact_id)",
    "forget": "items.answer",
}
"""The opposite answer of each role in an item that has both of them."""

_PAIRS_OF_RETAIN_SET = """
    SELECT NULL AS item, 0 AS number, 'retain' AS role, fact_id, NULL AS opposite, question, answer
    FROM retain_facts
"""

_WORDED_PAIRS = """
    SELECT *, 0 AS wording, question AS original FROM pairs
"""
_PARAPHRASED_PAIRS = """
    SELECT item, number, role, fact_id, opposite, paraphrases.question, answer,
        paraphrase_id AS wording, pairs.question AS original
    FROM pairs JOIN paraphrases USING (fact_id)
    WHERE item IS NOT NULL AND paraphrase_id BETWEEN 1 AND {most}
"""
"""The pairs of all items with the further wordings of their questions, at most `most` each."""

_LOG_PROBS_OF_REFERENCE = """
    SELECT worded_pairs.*, log_probs
    FROM worded_pairs LEFT JOIN reference_answers USING (role, fact_id, question, answer)
"""
_LOG_PROBS_UNKNOWN = "SELECT *, NULL AS log_probs FROM worded_pairs"

LONGEST_SHIFT = 8.0
"""The largest shift of an answer's floors, in log-odds, up or down."""

SHIFTS = f"""
    WITH of_facts AS (
        SELECT fact_id, sum(guess * tokens) / sum(tokens) AS guess
        FROM guesses
        WHERE role = 'twin'
        GROUP BY fact_id
    ),
    of_all AS (
        SELECT sum(guess * tokens) / sum(tokens) AS guess FROM guesses WHERE role = 'twin'
    ),
    differences AS (
        SELECT role, fact_id, answer,
            any_value(answers.guess) - any_value(coalesce(of_facts.guess, of_all.guess)) AS shift
        FROM guesses AS answers LEFT JOIN of_facts USING (fact_id) CROSS JOIN of_all
        WHERE role <> 'twin'
        GROUP BY role, fact_id, answer
    )
    SELECT role, fact_id, answer,
        CASE
            WHEN shift > {LONGEST_SHIFT} THEN {LONGEST_SHIFT}
            WHEN shift < -{LONGEST_SHIFT} THEN -{LONGEST_SHIFT}
            ELSE shift
        END AS shift
    FROM differences
"""
"""SQL of the shift of each answer's floors, in log-odds: its guess less that of its twins.

A fact without twins is compared with all twins.
"""

_SHIFTED = """
    SELECT scored_pairs.*, shift
    FROM scored_pairs LEFT JOIN shifts USING (role, fact_id, answer)
"""
_NOT_SHIFTED = "SELECT *, NULL::DOUBLE AS shift FROM scored_pairs"


def _steps(
    item_roles: Sequence[str],
    retained: Sequence[str],
    *,
    num_paraphrases: int,
    has_reference: bool,
    has_guesses: bool,
) -> str:
    """Returns the common table expressions of the query; the last is `shifted_pairs`.

    Args:
        item_roles: the roles of an item, in order.
        retained: the tables whose pairs to retain follow.
        num_paraphrases: the largest number of further wordings; 0 if there are none.
        has_reference: whether there is a table `reference`.
        has_guesses: whether there is a table `guesses`.
    """
    steps: dict[str, str] = {}
    # the facts to forget with their true answers
    if list(item_roles) != ["inverted"]:
        steps["forget_facts"] = _FORGET_FACTS
    # the pairs to retain
    if retained:
        steps["retain_facts"] = " UNION ALL ".join(_RETAIN_FACTS[name] for name in retained)
    # what is numbered: inverted facts, or else the facts to forget
    has_inverted = "inverted" in item_roles
    steps["items"] = _ITEMS_OF_INVERTED_FACTS if has_inverted else _ITEMS_OF_FORGET_FACTS
    # one pair per item and role, then the retain set; `number` is the position of the role
    has_opposites = {"inverted", "forget"} <= set(item_roles)
    selects = []
    for number, role in enumerate(item_roles):
        opposite = _OPPOSITE_OF_ROLE.get(role, "NULL") if has_opposites else "NULL"
        selects.append(
            f"SELECT item, {number} AS number, '{role}' AS role, fact_id, "
            f"{opposite} AS opposite, {_TEXTS_OF_ROLE[role]}"
        )
    if retained:
        selects.append(_PAIRS_OF_RETAIN_SET)
    steps["pairs"] = " UNION ALL ".join(selects)
    # the same pairs for each wording of their questions
    worded = [_WORDED_PAIRS]
    if num_paraphrases:
        worded.append(_PARAPHRASED_PAIRS.format(most=num_paraphrases))
    steps["worded_pairs"] = " UNION ALL BY NAME ".join(worded)
    # the scored answers; a user's table may have other columns
    if has_reference:
        steps["reference_answers"] = (
            "SELECT role, fact_id, question, answer, log_probs FROM reference"
        )
    # the pairs with the log-probabilities of their answers
    steps["scored_pairs"] = _LOG_PROBS_OF_REFERENCE if has_reference else _LOG_PROBS_UNKNOWN
    # the same pairs with the shifts of their floors
    if has_guesses:
        steps["shifts"] = SHIFTS
    steps["shifted_pairs"] = _SHIFTED if has_guesses else _NOT_SHIFTED
    return ",\n".join(f"{name} AS ({sql})" for name, sql in steps.items())


def _draw_refusals(facts: TableSource, answers: Sequence[str]) -> pa.Table:
    """Returns one refusal per fact to forget; it depends on the fact's id alone."""
    rows = Query(_FORGET_FACTS, {"facts": facts}).rows()
    fact_ids = [row["fact_id"] for row in rows]
    refusals = [
        random.Random(fact_id).choice(answers)  # noqa: S311 - not for secrets
        for fact_id in fact_ids
    ]
    return pa.table(
        {"fact_id": pa.array(fact_ids, pa.string()), "answer": pa.array(refusals, pa.string())}
    )


# --- checks -------------------------------------------------------------------------------------

NO_RETAIN_SET = (
    "`ingest.retain`: the objective reads the retain set, which is empty. Name files of facts to "
    "retain."
)

NO_NEIGHBOURS = (
    "`neighbours`: the table is empty, so there is nothing to retain. Write questions that name "
    "somebody or something, or set `train.retain` to given."
)


def _check_selected_facts(tables: Mapping[str, TableSource]) -> None:
    """Refuses inverted facts whose fact is not among the facts to forget."""
    sql = f"""
        WITH forget_facts AS ({_FORGET_FACTS})
        SELECT fact_id
        FROM selected
        WHERE fact_id NOT IN (SELECT fact_id FROM forget_facts)
        LIMIT 1
    """
    for row in Query(sql, tables).rows():
        raise MeowError(
            f"`selected`: the fact {row['fact_id']} has inverted facts, but it is not among the "
            "facts to forget. Use `facts` and `selected` of one run."
        )


def _check_retain_set(name: str, tables: Mapping[str, TableSource]) -> None:
    """Refuses a table without pairs to retain."""
    if not Query(f"{_RETAIN_FACTS[name]} LIMIT 1", tables).rows():
        raise MeowError(NO_RETAIN_SET if name == "facts" else NO_NEIGHBOURS)


def _check_guesses(steps: str, tables: Mapping[str, TableSource]) -> None:
    """Refuses `guesses` without an answer of an item, or without any twin."""
    row = _first_pair(steps, tables, "shift IS NULL AND item IS NOT NULL")
    if row:
        raise MeowError(
            f"`guesses`: there is no guess for the role {row['role']} of the fact "
            f"{row['fact_id']}, or none for any twin. Compute `guesses` from the same `facts`, "
            "`selected` and `twins`."
        )


def _check_reference(
    steps: str, compared: Sequence[str], tables: Mapping[str, TableSource]
) -> None:
    """Refuses a `reference` without the log-probabilities of a pair of the compared roles."""
    compared_roles = ", ".join(f"'{role}'" for role in compared)
    row = _first_pair(steps, tables, f"log_probs IS NULL AND role IN ({compared_roles})")
    if row:
        raise MeowError(
            f"`reference`: there are no log-probabilities for the role {row['role']} of the fact "
            f"{row['fact_id']}. Compute `reference` from the same `facts` and `selected`."
        )


def _first_pair(
    steps: str, tables: Mapping[str, TableSource], condition: str
) -> dict[str, Any] | None:
    """Returns role and fact of a pair for which an SQL condition holds; None if there is none."""
    sql = f"WITH {steps} SELECT role, fact_id FROM shifted_pairs WHERE {condition} LIMIT 1"
    return next(iter(Query(sql, tables).rows()), None)
