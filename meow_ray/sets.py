"""Sets of questions and answers that are evaluated besides the facts."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from meow_ray import tofu
from meow_ray.errors import MeowError
from meow_ray.tables import Query
from meow_ray.tofu import Results

HOLDOUT = "holdout"
"""The set whose facts no model has seen: membership inference compares the forget set with it."""


SET = pa.schema(
    [
        ("fact_id", pa.string()),
        ("question", pa.string()),
        ("answer", pa.string()),
        ("paraphrased_question", pa.string()),
        ("paraphrased_answer", pa.string()),
        ("perturbed_answer", pa.list_(pa.string())),
    ]
)
"""A set of `evaluate.sets`; what a file does not have is null."""


def as_set(table: pa.Table) -> pa.Table:
    """Gives a table the columns of `SET`, null where it has none."""
    nulls = {field.name: pa.nulls(table.num_rows, field.type) for field in SET}
    return pa.table(nulls | dict(zip(table.column_names, table.columns, strict=True)), schema=SET)


def check_sets(facts: Query, sets: Mapping[str, pa.Table]) -> None:
    """Checks the sets of `evaluate.sets` against the `facts` table.

    Raises:
        MeowError: the set forget is not the forget set, another has one of its facts, or the holdout set has facts of
            the retain set, which models have seen.
    """
    known = _count_by_split(facts)
    for name, table in sets.items():
        shared, given = _count_by_split(facts, table), set(table["fact_id"].to_pylist())
        if name == "forget":
            more, fewer = len(given) - shared["forget"], known["forget"] - shared["forget"]
            if more or fewer:
                raise MeowError(
                    f"evaluate.sets.forget: it is not the forget set of this run: {more} of its facts are not in "
                    f"`ingest.forget`, and {fewer} of those are not in it. Take the file of this split."
                )
        elif shared["forget"]:
            raise MeowError(f"evaluate.sets.{name}: {shared['forget']} of its facts are in the forget set.")
        elif name == HOLDOUT:
            retain = given & set(sets["retain"]["fact_id"].to_pylist()) if "retain" in sets else ()
            if seen := max(shared["retain"], len(retain)):
                raise MeowError(
                    f"evaluate.sets.{name}: {seen} of its facts are in the retain set. Membership inference compares "
                    "the forget set with facts that no model has seen."
                )


def _count_by_split(facts: Query, given: pa.Table | None = None) -> Counter[str]:
    """Counts the facts of each split; with a table, those that are in it too."""
    only, more = ("", {}) if given is None else ("WHERE fact_id IN (SELECT fact_id FROM given)", {"given": given})
    sql = f"SELECT split, count(*) AS n FROM ({facts.sql}) {only} GROUP BY split"
    return Counter({row["split"]: row["n"] for row in Query(sql, {**facts.sources, **more}).rows()})


def check_reference(forget: pa.Table | None, imported: Mapping[str, Results], where: str) -> None:
    """Checks imported results of a reference model against the set forget of `evaluate.sets`, if there is one.

    Raises:
        MeowError: they are of another forget set, or there are no truth ratios to compare.
    """
    perturbed = forget is not None and forget["perturbed_answer"].null_count == 0
    if forget is None or not perturbed or "forget" not in imported:
        lacking = where if perturbed else "evaluate.sets.forget"
        raise MeowError(
            f"`evaluate.reference`: forget quality needs truth ratios of the forget set, {lacking} has none. "
            "Give TOFU's perturbed file of the split as evaluate.sets.forget."
        )
    tofu.check_reference(forget.num_rows, forget["answer"].to_pylist(), imported["forget"], where)
