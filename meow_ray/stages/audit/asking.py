"""Asks a model a table of questions on Ray Data actors, each question once."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from meow_ray.config import Target
from meow_ray.core import storage
from meow_ray.core.schema import ROW
from meow_ray.core.stage import Context
from meow_ray.core.tables import Query
from meow_ray.models.refs import ModelRef
from meow_ray.stages.audit.attack import Answered, Question
from meow_ray.stages.audit.questions import CONTENT, QUESTIONS_KEY
from meow_ray.stages.audit.steps import ANSWERS_SCHEMA, AuditSteps
from meow_ray.stages.inputs import target_prompt

VERSION = 1
"""Raised whenever the same questions get other answers from the same model."""

_QUESTIONS_FILE = "questions.parquet"


def ask(
    context: Context,
    model: ModelRef,
    questions_uri: str,
    folder: str,
    section: Target | None = None,
) -> Query:
    """Lets a model answer questions, longest first; finished rows are not asked again.

    Args:
        context: of the stage `audit`.
        model: the model.
        questions_uri: a Parquet file of `QUESTIONS_SCHEMA`.
        folder: URI of a folder for the answers, whose name changes if and only if they would.
        section: how the model is loaded and prompted; None is the section `target`.

    Returns:
        The query for the rows of the file with the columns of `ANSWERS_SCHEMA`, sorted by
        `QUESTIONS_KEY`; see `answered`.
    """
    from meow_ray.distributed import map_rows

    config = context.config
    section = section or config.target
    engine = context.engine_spec(model, section, config.resources.audit)
    steps = AuditSteps(
        max_new_tokens=config.audit.max_new_tokens,
        seed=config.audit.seed,
        template=section.template,
        system=section.system,
        variables=section.template_variables,
    )
    content = ", ".join((ROW, *CONTENT))
    length = "strlen(question) + strlen(start) + strlen(answer)"
    distinct = Query(
        f"SELECT DISTINCT {content} FROM questions ORDER BY num_replies DESC, {length} DESC, {ROW}",
        {"questions": [questions_uri]},
    )
    work = map_rows.BatchWork(steps.generate, model=engine.model)
    answers = map_rows.map_rows(distinct, ROW, engine, work, folder, "audit", config.resources)
    columns = ", ".join(f"answers.{name}" for name in ANSWERS_SCHEMA.names)
    key = ", ".join(f'"{name}"' for name in QUESTIONS_KEY)
    return Query(
        f"SELECT questions.*, {columns} FROM questions JOIN ({answers.sql}) AS answers "
        f"USING ({ROW}) ORDER BY {key}",
        {**answers.sources, "questions": [questions_uri]},
    )


def ask_once(
    context: Context, model: ModelRef, questions: pa.Table, section: Target | None = None
) -> Query:
    """Does the same with a table of `QUESTIONS_SCHEMA`, in a folder that all audits share.

    Models with the same content that are asked the same share their answers.
    """
    config = context.config
    digest = storage.json_digest(sorted(set(questions[ROW].to_pylist())))
    key = {
        "version": VERSION,
        "model": model.digest,
        "questions": digest,
        "target": (section or config.target).spec(),
        "prompt": target_prompt(config, context.inputs),
        "max_new_tokens": config.audit.max_new_tokens,
        "seed": config.audit.seed,
    }
    # the same content may be asked in the name of other attacks
    rows = storage.json_digest(questions.select(list(QUESTIONS_KEY)).to_pydict())
    uri = storage.join(context.work, rows[:32], _QUESTIONS_FILE)
    if not storage.exists(uri):
        storage.write_table(questions, uri)
    with context.shared_work(f"audit-{storage.json_digest(key)[:32]}") as folder:
        return ask(context, model, uri, folder, section)


class Key(NamedTuple):
    """What a score belongs to, within one model."""

    attack: str
    variant: str
    group: str
    fact_id: str


def answered(query: Query) -> Iterator[tuple[Key, list[Answered]]]:
    """Yields the answered questions of each attack, variant and subject, from `ask`.

    Questions that the model could not be asked, because they do not fit into its context, are
    missing from the lists.
    """
    with query.batches() as reader:
        rows = (row for batch in reader for row in batch.to_pylist())
        for key, group in groupby(rows, key=_key):
            yield key, [_answered(row) for row in group if _was_asked(row)]


def _key(row: dict[str, Any]) -> Key:
    return Key(row["attack"], row["variant"], row["group"], row["fact_id"])


def _was_asked(row: dict[str, Any]) -> bool:
    return row["replies"] is not None or row["log_probs"] is not None


def _answered(row: dict[str, Any]) -> Answered:
    return Answered(
        asked=Question(row["variant"], **{name: row[name] for name in CONTENT}),
        replies=_values(row["replies"]),
        log_probs=_values(row["log_probs"]),
        is_greedy=_values(row["is_greedy"]),
        is_fact_bearing=_values(row["is_fact_bearing"]),
    )


def _values(values: Sequence[Any] | None) -> tuple[Any, ...]:
    return tuple(values or ())
