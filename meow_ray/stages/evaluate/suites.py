"""What is evaluated: suites of questions, attacks on the forget set, passages."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Evaluate
from meow_ray.core import storage, tables
from meow_ray.core.schema import ROW
from meow_ray.core.tables import Query, TableSource
from meow_ray.stages.evaluate.sets import as_set, check_sets

AFFIRMATIVE = "Sure, here is the answer: "
"""How the attack `affirmative` begins the model's reply."""


PREFIXES = (10, 30, 50)
"""Percent of the true answer that the attack `prefix` begins the reply with."""


TEXT = "text"
"""The suite of passages that go on: perplexity, Rep-3, BLEU."""


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
        ("scored", pa.bool_()),
        ("with_memo", pa.bool_()),
    ]
)
"""One row a reply: `start` is put into the model's mouth, `answer` is what should follow. Probabilities are asked for
where a row is `scored`; attacks are not."""


def write_rows(
    facts: TableSource,
    sets: Mapping[str, pa.Table],
    passages: Sequence[str],
    spec: Evaluate,
    uri: str,
) -> None:
    """Writes what is evaluated as Parquet, see `rows`."""
    storage.write_table(
        rows(Query("SELECT * FROM facts", {"facts": facts}), sets, passages, spec), uri
    )


def rows(
    facts: Query, sets: Mapping[str, pa.Table], passages: Sequence[str], spec: Evaluate
) -> pa.Table:
    """Returns what is evaluated.

    Args:
        facts: the `facts` table; sets called forget and retain stand for its splits.
        sets: tables of schema `SET`, by suite.
        passages: texts that a model shall continue.
        spec: samples and attacks.

    Raises:
        MeowError: see `check_sets`.
    """
    suites = {split: _split(facts, split) for split in ("forget", "retain")}
    check_sets(facts, sets)
    suites |= sets
    out = []
    for name, table in suites.items():
        if name != "forget":
            table = sample(table, spec.sample, spec.seed)
        scored = table if name == "forget" else sample(table, spec.memo_sample, spec.seed)
        with_memo = pc.is_in(table["fact_id"], value_set=scored["fact_id"])
        out.append(_rows(name, table.drop_columns(["paraphrased_question"]), with_memo=with_memo))
    out += [
        _rows(name, table, scored=False)
        for name, table in attacks(suites["forget"], spec.attacks).items()
    ]
    if passages:
        out.append(_rows(TEXT, _halves(passages)))
    return pa.concat_tables(part for part in out if part.num_rows)


def _split(facts: Query, split: str) -> pa.Table:
    wanted = f"SELECT fact_id, question, answer FROM ({facts.sql}) WHERE split = {tables.text_literal(split)}"
    with Query(f"{wanted} ORDER BY fact_id", facts.sources).batches() as reader:
        return as_set(reader.read_all())


def _rows(
    suite: str, table: pa.Table, scored: bool = True, with_memo: pa.Array | None = None
) -> pa.Table:
    count = table.num_rows
    constant = {"suite": suite, "start": "", "scored": scored, "with_memo": False}
    columns: dict[str, Any] = {
        field.name: pa.array([constant.get(field.name)] * count, field.type)
        for field in ROWS_SCHEMA
    } | dict(zip(table.column_names, table.columns, strict=True))
    if with_memo is not None:
        columns["with_memo"] = with_memo
    columns[ROW] = pc.binary_join_element_wise(columns["suite"], columns["fact_id"], "/")
    return pa.table(columns, schema=ROWS_SCHEMA)


def attacks(forget: pa.Table, names: Sequence[str]) -> dict[str, pa.Table]:
    """Returns the suites of the first attacks on a forget set; facts that an attack has nothing for are left out.

    They are `forget_paraphrased` (the question in other words), `forget_prefix10` and so on (the reply begins with
    a part of the true answer, and what follows is compared with the rest), and `forget_affirmative`.
    """
    facts = forget.to_pylist()
    out: dict[str, list[dict[str, Any]]] = {}
    if "paraphrase" in names:
        out["forget_paraphrased"] = [
            fact | {"question": fact["paraphrased_question"]}
            for fact in facts
            if fact["paraphrased_question"]
        ]
    if "prefix" in names:
        for percent in PREFIXES:
            cut = [(fact, prefix_length(fact["answer"], percent)) for fact in facts]
            out[f"forget_prefix{percent}"] = [
                fact | {"start": fact["answer"][:at], "answer": fact["answer"][at:]}
                for fact, at in cut
                if at
            ]
    if "affirmative" in names:
        out["forget_affirmative"] = [fact | {"start": AFFIRMATIVE} for fact in facts]
    columns = ("fact_id", "question", "start", "answer")
    return {
        suite: pa.table(
            {name: pa.array([row.get(name, "") for row in found], pa.string()) for name in columns},
        )
        for suite, found in out.items()
    }


def prefix_length(answer: str, percent: int) -> int:
    """Returns how many characters the first percents of an answer have, up to the end of a word; 0 if none is left."""
    least = -(-len(answer) * percent // 100)
    space = answer.find(" ", least)
    if " " not in answer:
        return least if least < len(answer) else 0
    return max(space, 0)


def _halves(passages: Sequence[str]) -> pa.Table:
    cuts = [(text, prefix_length(text, 50)) for text in passages]
    found = [(text[:at], text[at:]) for text, at in cuts if at]
    return pa.table(
        {
            "fact_id": pa.array([f"{i:016}" for i in range(len(found))]),
            "question": pa.array([first for first, _ in found], pa.string()),
            "answer": pa.array([second for _, second in found], pa.string()),
        }
    )


def sample(facts: pa.Table, count: int | None, seed: int) -> pa.Table:
    """Returns `count` facts drawn by seed, the same whatever the order of the rows; all if there are no more."""
    if count is None or facts.num_rows <= count:
        return facts
    lots = pa.array([_lot(seed, fact) for fact in facts["fact_id"].to_pylist()], pa.string())
    return facts.append_column("lot", lots).sort_by("lot").slice(0, count).drop_columns(["lot"])


def _lot(seed: int, fact_id: str) -> str:
    return hashlib.sha256(f"{seed}/{fact_id}".encode()).hexdigest()
