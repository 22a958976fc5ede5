"""The table of questions that a model is asked: those of all attacks about all subjects."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from meow_ray.config import Audit
from meow_ray.core.schema import ROW
from meow_ray.stages.audit.attack import Attack, Question, Subject

_CONTENT = pa.schema(
    [
        ("question", pa.string()),
        ("answer", pa.string()),
        ("start", pa.string()),
        ("system", pa.string()),
        ("is_chat", pa.bool_()),
        ("num_replies", pa.int32()),
        ("is_scored", pa.bool_()),
    ]
)

CONTENT = tuple(_CONTENT.names)
"""The columns that decide what a model is asked: the fields of a `Question` but the variant."""

QUESTIONS_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("attack", "variant", "group", "fact_id")),
        ("number", pa.int32()),
        *_CONTENT,
        (ROW, pa.string()),
    ]
)
"""One row per question, with the attack that asks it. `number` counts the questions of a variant
from 0. Questions with the same content have the same `row_id`, and a model is asked once."""

QUESTIONS_KEY = ("attack", "variant", "group", "fact_id", "number")


def questions_of(
    attacks: Sequence[Attack], subjects: Iterable[Subject], spec: Audit
) -> Iterator[dict[str, Any]]:
    """Yields the rows of `QUESTIONS_SCHEMA` that attacks ask about subjects."""
    for subject in subjects:
        for attack in attacks:
            numbers: dict[str, int] = {}
            for asked in attack.ask(subject, spec):
                number = numbers.get(asked.variant, 0)
                numbers[asked.variant] = number + 1
                yield question_row(attack.name, subject, asked, number)


def question_row(attack: str, subject: Subject, asked: Question, number: int = 0) -> dict[str, Any]:
    """Returns a row of `QUESTIONS_SCHEMA`.

    Args:
        attack: name of the attack.
        subject: the fact or twin that the question is about.
        asked: the question.
        number: counts the questions of its variant from 0.
    """
    content = {name: getattr(asked, name) for name in CONTENT}
    return {
        "attack": attack,
        "variant": asked.variant,
        "group": subject.group,
        "fact_id": subject.fact_id,
        "number": number,
        **content,
        ROW: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32],
    }


def as_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Returns rows as a table of `QUESTIONS_SCHEMA`, sorted by its key."""
    table = pa.Table.from_pylist(list(rows), schema=QUESTIONS_SCHEMA)
    return table.sort_by([(name, "ascending") for name in QUESTIONS_KEY])
