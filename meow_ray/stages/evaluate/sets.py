"""The sets of `evaluate.sets` and the passages of `evaluate.text`: reading and checking them."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from meow_ray.config import Config, Evaluate, Source
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate.tofu import MinKResult, ModelLog, check_same_forget_set
from meow_ray.stages.ingest import passages
from meow_ray.stages.ingest.facts import FactRow, read_sources, valid_facts

HOLDOUT = "holdout"
"""The set that no model has seen; membership inference compares the forget set with it."""

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
"""The columns of a set of `evaluate.sets`; those that its file lacks are null."""

ALTERNATIVES = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
"""The optional columns, which TOFU's perturbed files have; `perturbed_answer` has wrong answers."""

ALL_OR_NONE = ("paraphrased_answer", "perturbed_answer")
"""The columns that all rows of a file have, or none, because metrics compare whole sets."""


def as_set(table: pa.Table) -> pa.Table:
    """Returns a table with all columns of `SET_SCHEMA`; those that it lacks are null."""
    columns: dict[str, Any] = {
        field.name: pa.nulls(table.num_rows, field.type) for field in SET_SCHEMA
    }
    columns |= dict(zip(table.column_names, table.columns, strict=True))
    return pa.table(columns, schema=SET_SCHEMA)


# --- checks ---------------------------------------------------------------------------------------


def check_sets(facts: Query, sets: Mapping[str, pa.Table]) -> None:
    """Checks the sets of `evaluate.sets` against the `facts` table.

    Raises:
        MeowError: the set forget is not the forget set; another set has a fact of the forget set;
            or the holdout set has a fact of the retain set, which models have seen.
    """
    split_sizes = _count_by_split(facts)
    for name, table in sets.items():
        shared = _count_shared_by_split(facts, table)
        if name == "forget":
            _check_forget_set(table, shared["forget"], split_sizes["forget"])
        elif shared["forget"]:
            raise MeowError(
                f"evaluate.sets.{name}: the set has facts of the forget set "
                f"({shared['forget']} of them). Remove these rows."
            )
        elif name == HOLDOUT:
            _check_holdout_set(table, shared["retain"], sets.get("retain"))


def _check_forget_set(table: pa.Table, num_shared: int, num_forget: int) -> None:
    num_unknown = len(set(table["fact_id"].to_pylist())) - num_shared
    num_missing = num_forget - num_shared
    if num_unknown or num_missing:
        raise MeowError(
            "evaluate.sets.forget: this is not the forget set of this run "
            f"({num_unknown} of its facts are not in `ingest.forget`, and {num_missing} facts of "
            "`ingest.forget` are not in it). Give the file of this split."
        )


def _check_holdout_set(table: pa.Table, num_shared: int, retain: pa.Table | None) -> None:
    """Refuses facts of the retain split (`num_shared` of them) or of the set retain."""
    in_retain_set = set()
    if retain is not None:
        in_retain_set = set(table["fact_id"].to_pylist()) & set(retain["fact_id"].to_pylist())
    num_seen = max(num_shared, len(in_retain_set))
    if num_seen:
        raise MeowError(
            f"evaluate.sets.{HOLDOUT}: the set has facts of the retain set ({num_seen} of them). "
            "Membership inference compares the forget set with facts that no model has seen: "
            "remove these rows."
        )


def _count_by_split(facts: Query) -> Counter[str]:
    sql = f"SELECT split, count(*) AS n FROM ({facts.sql}) GROUP BY split"
    return Counter({row["split"]: row["n"] for row in Query(sql, facts.sources).rows()})


def _count_shared_by_split(facts: Query, table: pa.Table) -> Counter[str]:
    """Counts the facts of each split that are in a set, too."""
    shared = f"SELECT * FROM ({facts.sql}) WHERE fact_id IN (SELECT fact_id FROM evaluated_set)"
    return _count_by_split(Query(shared, {**facts.sources, "evaluated_set": table}))


def check_retain_results(
    forget: pa.Table | None,
    holdout: pa.Table | None,
    retain_log: ModelLog,
    spec: Evaluate,
    where: str,
) -> None:
    """Checks that results of the retain model can be compared with those of this run.

    Args:
        forget: the set forget of `evaluate.sets`; None if there is none.
        holdout: the set holdout of `evaluate.sets`; None if there is none.
        retain_log: results of the retain model, read from a file.
        spec: the attacks of membership inference, and the definitions of metrics.
        where: the place of that file, for errors.

    Raises:
        MeowError: the file serves neither forget quality nor PrivLeak, or it has results on other
            sets, or by another definition.
    """
    min_k = retain_log.min_k
    serves_privleak = min_k is not None and holdout is not None and "min_k" in spec.membership
    if min_k is not None and serves_privleak:
        _check_min_k(min_k, {"forget": forget, HOLDOUT: holdout}, spec, where)
    has_truth_ratios = forget is not None and forget["perturbed_answer"].null_count == 0
    if forget is not None and has_truth_ratios and "forget" in retain_log.suites:
        answers = forget["answer"].to_pylist()
        check_same_forget_set(forget.num_rows, answers, retain_log.suites["forget"], where)
    elif not serves_privleak:
        lacking = where if has_truth_ratios else "evaluate.sets.forget"
        raise MeowError(
            "`evaluate.retain_model`: forget quality needs truth ratios of the forget set, but "
            f"{lacking} has none. Give TOFU's perturbed file of the split as evaluate.sets.forget."
        )


def _check_min_k(
    min_k: MinKResult, sets: Mapping[str, pa.Table | None], spec: Evaluate, where: str
) -> None:
    """Checks that PrivLeak can compare this run's AUC of Min-K % with that of open-unlearning."""
    if spec.definitions != "open_unlearning":
        raise MeowError(
            f"`evaluate.retain_model`: {where} has the AUC of Min-K % by open-unlearning's "
            "definition, which reads an answer without its end, so PrivLeak cannot compare it with "
            "this run's. Set evaluate.definitions=open_unlearning, or remove min_k from "
            "evaluate.membership."
        )
    num_rows = {"forget": min_k.num_forget, HOLDOUT: min_k.num_holdout}
    for name, table in sets.items():
        count = num_rows[name]
        if table is not None and count is not None and count != table.num_rows:
            raise MeowError(
                f"`evaluate.retain_model`: {where} has the AUC of Min-K % on another {name} set "
                f"({count} rows) than evaluate.sets.{name} ({table.num_rows} rows). Give the "
                "results of the retain model on the same sets."
            )


# --- reading --------------------------------------------------------------------------------------


def read_sets(sources: Mapping[str, Source], config: Config) -> dict[str, pa.Table]:
    """Reads all sets of `evaluate.sets`; see `read_set`."""
    return {name: read_set(name, source, config) for name, source in sources.items()}


def read_set(name: str, source: Source, config: Config) -> pa.Table:
    """Reads a set of `evaluate.sets` as a table of `SET_SCHEMA`.

    Raises:
        MeowError: a row is refused, a paraphrase or a wrong answer is not a text, or only some
            rows have one.
    """
    rows = read_sources([source], config)
    table = valid_facts(rows, where=f"evaluate.sets.{name}")
    facts = [
        fact | {column: _alternative(row, column) for column in ALTERNATIVES}
        for fact, row in zip(table.to_pylist(), rows, strict=True)
    ]
    for column in ALL_OR_NONE:
        count = sum(fact[column] is not None for fact in facts)
        if 0 < count < len(facts):
            raise MeowError(
                f"{storage.display(source.path)}: only some rows have a {column} "
                f"({count} of {len(facts)}). Give all rows one, or none."
            )
    return pa.Table.from_pylist(facts, schema=SET_SCHEMA)


def _alternative(row: FactRow, column: str) -> Any:
    """Returns a text or a list of texts of a row, as the column's type asks; None if absent."""
    value = row.record.get(column)
    if value is None:
        return None
    if pa.types.is_list(SET_SCHEMA.field(column).type):
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and texts and all(map(_is_text, texts)):
            return texts
        wanted = "a list of texts that are not empty"
    elif _is_text(value):
        return value
    else:
        wanted = "a text that is not empty"
    raise MeowError(f"{row.file}, line {row.line}: {column} must be {wanted}.")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def read_passages(text: Artifact, encoding: str | None = None) -> list[str]:
    """Reads the passages of `evaluate.text`; none if the input has no file.

    Raises:
        MeowError: the file cannot be read, or has no passage.
    """
    if not text.uri:
        return []
    try:
        texts = passages.read_passages(text.uri, encoding)
    except MeowError as error:
        raise MeowError(f"`evaluate.text`: {error}") from error
    if not texts:
        raise MeowError(
            f"`evaluate.text`: {storage.display(text.uri)} is empty. Give it one passage per line."
        )
    return texts
