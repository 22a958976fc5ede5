"""The table of examples, and which replies state an inverted fact."""

from pathlib import Path

import pyarrow as pa

from meow_ray.config import Evaluate
from meow_ray.core import storage, tables
from meow_ray.core.schema import EXAMPLES_SCHEMA, SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.stages.evaluate import examples, suites
from meow_ray.stages.ingest.facts import fact_id
from tests.support.sets import BORN, fact_rows, facts_query

OTHER = ("R?", "S.")


def replies(text: str) -> Query:
    """Returns rows as `EvaluateSteps` gives them, where each reply is `text`."""
    rows = suites.rows_to_ask(facts_query(fact_rows(BORN, OTHER)), {}, [], Evaluate(attacks=()))
    table = rows.append_column("generated", pa.array([text] * rows.num_rows))
    for field in EXAMPLES_SCHEMA:
        if field.name not in {*table.column_names, "model", "states_inverted"}:
            table = table.append_column(field.name, pa.nulls(rows.num_rows, field.type))
    return Query("SELECT * FROM answered", {"answered": table})


def inverted_facts(*answers: str) -> pa.Table:
    """Returns a table `selected` with inverted answers to `BORN`."""
    rows = [
        {
            "fact_id": fact_id(*BORN),
            "candidate_id": rank,
            "rank": rank,
            "question": BORN[0],
            "answer": answer,
            "memo": 0.5,
        }
        for rank, answer in enumerate(answers)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["selected"])


def test_examples_tell_which_replies_state_an_inverted_fact(tmp_path: Path):
    path = str(tmp_path / "examples.parquet")
    selected = inverted_facts("Basil was born in Cairo.", "Basil was born in Oslo.")
    examples.write_examples(
        {"before": replies("Kuwait City"), "after": replies("In Oslo")}, selected, path
    )
    table = storage.read_table([path])
    assert table.schema.remove_metadata() == EXAMPLES_SCHEMA
    stated = {(row["question"], row["model"]): row["states_inverted"] for row in table.to_pylist()}
    assert stated == {
        (BORN[0], "before"): 0.0,
        (BORN[0], "after"): 1.0,
        (OTHER[0], "before"): None,
        (OTHER[0], "after"): None,
    }
    keys = list(
        zip(*(table[name].to_pylist() for name in ("suite", "fact_id", "model")), strict=True)
    )
    assert keys == sorted(keys)
    assert tables.count_rows([path]) == 4


def test_a_model_may_have_any_name(tmp_path: Path):
    path = str(tmp_path / "examples.parquet")
    examples.write_examples(
        {"it's mine / 2": replies("In Oslo")}, inverted_facts("Basil was born in Oslo."), path
    )
    rows = storage.read_table([path]).to_pylist()
    assert [row["model"] for row in rows] == ["it's mine / 2"] * 2
    assert sorted(row["states_inverted"] or 0.0 for row in rows) == [0.0, 1.0]
