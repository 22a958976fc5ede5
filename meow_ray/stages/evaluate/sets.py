"""Sets of questions and answers that are evaluated besides the facts."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from meow_ray.config import Config, Source
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu
from meow_ray.stages.evaluate.tofu import Results
from meow_ray.stages.ingest import facts as facts_module
from meow_ray.stages.ingest.facts import read_sources, rejects_text

HOLDOUT = "holdout"
"""The set whose facts no model has seen: membership inference compares the forget set with it."""


SET_SCHEMA = pa.schema(
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
    """Gives a table the columns of `SET_SCHEMA`, null where it has none."""
    nulls = {field.name: pa.nulls(table.num_rows, field.type) for field in SET_SCHEMA}
    return pa.table(
        nulls | dict(zip(table.column_names, table.columns, strict=True)), schema=SET_SCHEMA
    )


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
            raise MeowError(
                f"evaluate.sets.{name}: {shared['forget']} of its facts are in the forget set."
            )
        elif name == HOLDOUT:
            retain = given & set(sets["retain"]["fact_id"].to_pylist()) if "retain" in sets else ()
            if seen := max(shared["retain"], len(retain)):
                raise MeowError(
                    f"evaluate.sets.{name}: {seen} of its facts are in the retain set. Membership inference compares "
                    "the forget set with facts that no model has seen."
                )


def _count_by_split(facts: Query, given: pa.Table | None = None) -> Counter[str]:
    """Counts the facts of each split; with a table, those that are in it too."""
    only, more = (
        ("", {})
        if given is None
        else ("WHERE fact_id IN (SELECT fact_id FROM given)", {"given": given})
    )
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
            f"`evaluate.retain_model`: forget quality needs truth ratios of the forget set, {lacking} has none. "
            "Give TOFU's perturbed file of the split as evaluate.sets.forget."
        )
    tofu.check_reference(forget.num_rows, forget["answer"].to_pylist(), imported["forget"], where)


def read_sets(sources: Mapping[str, Source], config: Config) -> dict[str, pa.Table]:
    """Reads `evaluate.sets`, see `read_set`."""
    return {name: read_set(name, source, config) for name, source in sources.items()}


def read_set(name: str, source: Source, config: Config) -> pa.Table:
    """Reads a set of `evaluate.sets`: a table of `evaluation.SET`, with what TOFU's perturbed files have.

    Raises:
        MeowError: a row is refused, or a paraphrase or a wrong answer is no text.
    """
    rows = read_sources([source], config)
    table, rejects = facts_module.build_facts(rows, [], lambda question, answer: None)
    if rejects.num_rows:
        raise MeowError(f"evaluate.sets.{name}: {rejects_text(rejects)}")
    more = [{column: _further(row, column) for column in SET_SCHEMA.names[3:]} for row in rows]
    facts = [fact | extra for fact, extra in zip(table.to_pylist(), more, strict=True)]
    for column in SET_SCHEMA.names[4:]:
        count = sum(fact[column] is not None for fact in facts)
        if 0 < count < len(facts):
            raise MeowError(
                f"{storage.display(source.path)}: only {count} of {len(facts)} rows have a {column}."
            )
    return pa.Table.from_pylist(facts, schema=SET_SCHEMA)


def _further(row: facts_module.FactRow, column: str) -> Any:
    value = row.record.get(column)
    if column == "perturbed_answer" and isinstance(value, str):
        value = [value]
    wanted = pa.types.is_list(SET_SCHEMA.field(column).type)
    texts = [] if value is None else list(value) if wanted and isinstance(value, list) else [value]
    if any(not isinstance(text, str) or not text.strip() for text in texts) or (
        wanted and value == []
    ):
        raise MeowError(
            f"{row.file}, line {row.line}: {column} is {'no list of texts' if wanted else 'no text'}."
        )
    return texts if wanted and texts else value


def read_passages(text: Artifact) -> list[str]:
    """Reads the passages of `evaluate.text`, one a line.

    Raises:
        MeowError: the file is not UTF-8, or has no passage.
    """
    if not text.uri:
        return []
    try:
        found = [
            line.strip()
            for line in storage.read_bytes(text.uri).decode().splitlines()
            if line.strip()
        ]
    except UnicodeDecodeError as error:
        raise MeowError(
            f"`evaluate.text`: {storage.display(text.uri)}, byte {error.start}: not UTF-8 text."
        ) from None
    if not found:
        raise MeowError(f"`evaluate.text`: {storage.display(text.uri)} is empty.")
    return found
