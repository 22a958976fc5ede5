"""Facts and sets of questions as the stage `evaluate` reads them."""

from typing import Any

import pyarrow as pa

from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import Query
from meow_ray.stages.evaluate.sets import SET_SCHEMA
from meow_ray.stages.ingest.facts import fact_id

BORN = ("Where was Basil born?", "Basil was born in Kuwait City.")


def fact_rows(*pairs: tuple[str, str], split: str = "forget") -> list[dict[str, str]]:
    """Returns rows of `facts` from questions and answers."""
    return [
        {
            "fact_id": fact_id(question, answer),
            "split": split,
            "question": question,
            "answer": answer,
        }
        for question, answer in pairs
    ]


def facts_query(rows: list[dict[str, str]]) -> Query:
    """Returns the query for a table `facts`."""
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["facts"])
    return Query("SELECT * FROM facts", {"facts": table})


def set_table(*pairs: tuple[str, str], **columns: Any) -> pa.Table:
    """Returns a set of `evaluate.sets`; `columns` are the same in all rows."""
    return pa.Table.from_pylist([fact | columns for fact in fact_rows(*pairs)], schema=SET_SCHEMA)
