"""The rows that `evaluate` asks: suites of questions, attacks on the forget set, passages."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Evaluate
from meow_ray.core import storage, tables
from meow_ray.core.schema import ROW
from meow_ray.core.tables import Query, TableSource
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate.sets import as_set, check_sets

AFFIRMATIVE = "Sure, here is the answer: "
"""The beginning of the reply that the attack `affirmative` sets."""

PREFIXES = (10, 30, 50)
"""Percentages of the true answer with which the attack `prefix` begins the reply."""

TEXT = "text"
"""The suite of passages that the model continues: perplexity, Rep-3, BLEU."""

TWINS = "twins"
"""The suite of facts that no model has seen; the forget set is compared with it."""

STOP = "stop"
"""The half of the twins that no training step reads."""

ROWS_SCHEMA = pa.schema(
    [
        (ROW, pa.string()),
        ("suite", pa.string()),
        ("fact_id", pa.string()),
        ("question", pa.string()),
        ("start", pa.string()),
        ("answer", pa.string()),
        ("paraphrased_answer", pa.string()),
        ("perturbed_answer", pa.list_(pa.string())),
        ("asked", pa.bool_()),
        ("scored", pa.bool_()),
        ("with_memo", pa.bool_()),
    ]
)
"""One row per question with its answer.

`start` is the beginning of the reply that is set for the model, and `answer` is the text that
should follow. The model replies to rows that are `asked`; twins are not. Probabilities are measured
in rows that are `scored`; attacks are not. MEMO is measured in rows `with_memo`.
"""


def write_rows(
    facts: TableSource,
    sets: Mapping[str, pa.Table],
    passages: Sequence[str],
    twins: TableSource | None,
    spec: Evaluate,
    uri: str,
) -> None:
    """Writes the rows to ask as Parquet; see `rows_to_ask`."""
    query = Query("SELECT * FROM facts", {"facts": facts})
    storage.write_table(rows_to_ask(query, sets, passages, spec, twins), uri)


def rows_to_ask(
    facts: Query,
    sets: Mapping[str, pa.Table],
    passages: Sequence[str],
    spec: Evaluate,
    twins: TableSource | None = None,
) -> pa.Table:
    """Returns the rows to ask each model, a table of `ROWS_SCHEMA`.

    Args:
        facts: the `facts` table.
        sets: tables of `SET_SCHEMA`, by suite. Sets called forget and retain replace the splits of
            `facts`.
        passages: texts that a model shall continue.
        spec: samples and attacks.
        twins: the `twins` table; None compares with no twins.

    Raises:
        MeowError: see `check_sets` and `stop_twins`.
    """
    suites = {split: _split(facts, split) for split in ("forget", "retain")}
    check_sets(facts, sets)
    suites |= sets
    parts = [_question_rows(name, table, spec) for name, table in suites.items()]
    for name, table in attacks(suites["forget"], spec.attacks).items():
        parts.append(_suite_rows(name, table, scored=False))
    if passages:
        parts.append(_suite_rows(TEXT, halves(passages)))
    if twins is not None:
        parts.append(_suite_rows(TWINS, stop_twins(twins), asked=False))
    return pa.concat_tables(part for part in parts if part.num_rows)


def _split(facts: Query, split: str) -> pa.Table:
    sql = f"""
        SELECT fact_id, question, answer
        FROM ({facts.sql})
        WHERE split = {tables.text_literal(split)}
        ORDER BY fact_id
    """
    with Query(sql, facts.sources).batches() as reader:
        return as_set(reader.read_all())


def _question_rows(suite: str, table: pa.Table, spec: Evaluate) -> pa.Table:
    """Returns the rows of a set of questions: all of the forget set, a sample of another set."""
    if suite == "forget":
        with_memo = table
    else:
        table = sample(table, spec.sample, spec.seed)
        with_memo = sample(table, spec.memo_sample, spec.seed)
    if not spec.memo:
        with_memo = table.slice(0, 0)
    has_memo = pc.is_in(table["fact_id"], value_set=with_memo["fact_id"])
    return _suite_rows(suite, table.drop_columns(["paraphrased_question"]), with_memo=has_memo)


def _suite_rows(
    suite: str,
    table: pa.Table,
    asked: bool = True,
    scored: bool = True,
    with_memo: pa.Array | None = None,
) -> pa.Table:
    """Gives a table the columns of `ROWS_SCHEMA`; those that it lacks get a constant or null."""
    constants = {
        "suite": suite,
        "start": "",
        "asked": asked,
        "scored": scored,
        "with_memo": False,
    }
    columns: dict[str, Any] = {
        field.name: pa.array([constants.get(field.name)] * table.num_rows, field.type)
        for field in ROWS_SCHEMA
    }
    columns |= dict(zip(table.column_names, table.columns, strict=True))
    if with_memo is not None:
        columns["with_memo"] = with_memo
    columns[ROW] = pc.binary_join_element_wise(columns["suite"], columns["fact_id"], "/")
    return pa.table(columns, schema=ROWS_SCHEMA)


# --- attacks --------------------------------------------------------------------------------------


def attacks(forget: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
    """Returns the suites of the attacks on a forget set, without facts that do not suit an attack.

    - `forget_paraphrased` asks the paraphrased question.
    - `forget_prefix10` and so on begin the reply with a part of the true answer. The reply is
      compared with the rest of the answer.
    - `forget_affirmative` begins the reply with `AFFIRMATIVE`.

    Args:
        forget: the forget set, a table of `SET_SCHEMA`.
        names: names of the attacks, see `evaluate.attacks`.
    """
    facts = forget.to_pylist()
    suites: dict[str, list[dict[str, Any]]] = {}
    if "paraphrase" in names:
        suites["forget_paraphrased"] = [
            fact | {"question": fact["paraphrased_question"]}
            for fact in facts
            if fact["paraphrased_question"]
        ]
    if "prefix" in names:
        for percent in PREFIXES:
            suites[f"forget_prefix{percent}"] = _with_prefix(facts, percent)
    if "affirmative" in names:
        suites["forget_affirmative"] = [fact | {"start": AFFIRMATIVE} for fact in facts]
    return {suite: _attack_table(rows) for suite, rows in suites.items()}


def _with_prefix(facts: Sequence[dict[str, Any]], percent: int) -> list[dict[str, Any]]:
    rows = []
    for fact in facts:
        answer = fact["answer"]
        length = prefix_length(answer, percent)
        if length:
            rows.append(fact | {"start": answer[:length], "answer": answer[length:]})
    return rows


def _attack_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = ("fact_id", "question", "start", "answer")
    return pa.table(
        {name: pa.array([row.get(name, "") for row in rows], pa.string()) for name in names}
    )


def prefix_length(answer: str, percent: int) -> int:
    """Returns the length of the first `percent` of an answer, extended to the end of a word.

    It is in characters, and 0 if nothing would be left of the answer. An answer without spaces is
    cut within the word.
    """
    least = -(-len(answer) * percent // 100)  # rounded up
    if " " not in answer:
        return least if least < len(answer) else 0
    return max(answer.find(" ", least), 0)


def halves(passages: Sequence[str]) -> pa.Table:
    """Returns passages as rows: the first half is the question, the second half the answer."""
    halves = []
    for text in passages:
        length = prefix_length(text, 50)
        if length:
            halves.append((text[:length], text[length:]))
    return pa.table(
        {
            "fact_id": pa.array([f"{number:016}" for number in range(len(halves))]),
            "question": pa.array([first for first, _ in halves], pa.string()),
            "answer": pa.array([second for _, second in halves], pa.string()),
        }
    )


# --- twins ----------------------------------------------------------------------------------------


def stop_twins(twins: TableSource) -> pa.Table:
    """Returns the twins of the half `stop`, with `fact_id`, `question` and `answer`.

    A twin is identified by the fact whose form it has and its number, such as `1f0c…-2`.

    Raises:
        MeowError: there are none.
    """
    sql = f"""
        SELECT fact_id || '-' || twin_id AS fact_id, question, answer
        FROM twins
        WHERE half = {tables.text_literal(STOP)}
        ORDER BY twins.fact_id, twin_id
    """
    with Query(sql, {"twins": twins}).batches() as reader:
        table = reader.read_all()
    if not table.num_rows:
        raise MeowError(
            f"`evaluate.twins`: the table twins has no row of the half {STOP}, with which the "
            "forget set is compared. Make more twins, or set evaluate.twins=false."
        )
    return table


# --- samples --------------------------------------------------------------------------------------


def sample(facts: pa.Table, count: int | None, seed: int) -> pa.Table:
    """Returns `count` facts drawn by the seed; all of them if `count` is None or not smaller.

    The order of the rows does not change which facts are drawn.
    """
    if count is None or facts.num_rows <= count:
        return facts
    lots = pa.array([_lot(seed, fact_id) for fact_id in facts["fact_id"].to_pylist()], pa.string())
    return facts.append_column("lot", lots).sort_by("lot").slice(0, count).drop_columns(["lot"])


def _lot(seed: int, fact_id: str) -> str:
    return hashlib.sha256(f"{seed}/{fact_id}".encode()).hexdigest()
