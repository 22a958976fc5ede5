"""Tests of the `facts` table: ids, checks of rows, and the list of rejected rows."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meow_ray.core.schema import REJECTS_SCHEMA, SCHEMAS
from meow_ray.stages.ingest.facts import (
    FactRow,
    LengthCheck,
    build_facts,
    fact_id,
    rejects_text,
)

TEXT = st.text(st.characters(codec="utf-8"))


def fact_rows(file: str, pairs: Sequence[Any]) -> list[FactRow]:
    """Returns rows of (question, answer) pairs; their lines count from 1."""
    return [
        FactRow(file=file, line=line, question=question, answer=answer)
        for line, (question, answer) in enumerate(pairs, start=1)
    ]


def build(
    forget: Sequence[Any],
    retain: Sequence[Any] = (),
    too_long: LengthCheck = lambda question, answer: None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Builds the facts and the rejects of (question, answer) pairs."""
    table, rejects = build_facts(
        fact_rows("f.jsonl", forget), fact_rows("r.jsonl", retain), too_long
    )
    assert table.schema == SCHEMAS["facts"]
    assert rejects.schema == REJECTS_SCHEMA
    return table.to_pylist(), rejects.to_pylist()


# --- facts --------------------------------------------------------------------------------------


def test_facts_have_id_split_question_and_answer():
    table, rejects = build([("Who?", "She.")], [("When?", "Now.")])
    assert rejects == []
    assert table == [
        {
            "fact_id": fact_id("Who?", "She."),
            "split": "forget",
            "question": "Who?",
            "answer": "She.",
        },
        {
            "fact_id": fact_id("When?", "Now."),
            "split": "retain",
            "question": "When?",
            "answer": "Now.",
        },
    ]


def test_a_fact_id_is_the_beginning_of_a_sha256():
    text = "Who wrote Émile?\x1fJean-Jacques Rousseau."
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert fact_id("Who wrote Émile?", "Jean-Jacques Rousseau.") == expected
    assert fact_id("a", "b") == hashlib.sha256(b"a\x1fb").hexdigest()[:16]


@given(TEXT, TEXT)
def test_a_fact_id_does_not_depend_on_the_unicode_form(question: str, answer: str):
    nfc = [unicodedata.normalize("NFC", text) for text in (question, answer)]
    nfd = [unicodedata.normalize("NFD", text) for text in (question, answer)]
    expected = hashlib.sha256("\x1f".join(nfc).encode()).hexdigest()[:16]
    assert fact_id(question, answer) == fact_id(*nfc) == fact_id(*nfd) == expected


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6))
def test_each_row_becomes_a_fact_in_nfc_or_a_reject(pairs: list[tuple[str, str]]):
    table, rejects = build(pairs)
    assert len(table) + len(rejects) == len(pairs)
    assert len({row["fact_id"] for row in table}) == len(table)
    for row in table:
        assert row["question"] == unicodedata.normalize("NFC", row["question"]).strip() != ""
        assert row["answer"] == unicodedata.normalize("NFC", row["answer"]).strip() != ""
        assert row["fact_id"] == fact_id(row["question"], row["answer"])


def test_text_is_composed_and_trimmed_but_keeps_its_case():
    table, rejects = build(
        [(" WHO wrote E\u0301mile? ", "\tROUSSEAU\n"), ("Who wrote Émile?", "Rousseau")]
    )
    assert rejects == []
    assert [(row["question"], row["answer"]) for row in table] == [
        ("WHO wrote Émile?", "ROUSSEAU"),
        ("Who wrote Émile?", "Rousseau"),
    ]


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ((None, "a"), "question is missing"),
        (("q", None), "answer is missing"),
        (("", "a"), "question is empty"),
        (("q", " \n\t"), "answer is empty"),
        (
            ("q", 7),
            "answer is not a text but a number: write it, or the choice of this number, as text",
        ),
        ((["q"], "a"), "question is not a text but a list: write a row for each text"),
        (("q", b"a"), "answer is not a text but bytes"),
        (("q", True), "answer is not a text but bool"),
        (("Who?", "She."), f"duplicate of fact {fact_id('Who?', 'She.')}"),
        ((" Who?", "She.\n"), f"duplicate of fact {fact_id('Who?', 'She.')}"),
    ],
)
def test_an_unfit_row_is_rejected_with_its_line_and_reason(pair: tuple[Any, Any], reason: str):
    table, rejects = build([("Who?", "She."), pair, ("When?", "Now.")])
    assert [row["question"] for row in table] == ["Who?", "When?"]
    assert rejects == [{"file": "f.jsonl", "line": 2, "split": "forget", "reason": reason}]


def test_half_a_surrogate_pair_is_rejected():
    table, rejects = build([("Who?", json.loads(r'"\ud83d"')), ("When?", "Now.")])
    assert [row["question"] for row in table] == ["When?"]
    assert [row["line"] for row in rejects] == [1]


def test_a_retain_row_that_repeats_a_fact_to_forget_is_rejected():
    table, rejects = build([("Who?", "She.")], [("When?", "Now."), ("Who?", "She.")])
    assert [(row["question"], row["split"]) for row in table] == [
        ("Who?", "forget"),
        ("When?", "retain"),
    ]
    reason = f"duplicate of fact {fact_id('Who?', 'She.')} of the forget set"
    assert rejects == [{"file": "r.jsonl", "line": 2, "split": "retain", "reason": reason}]


def test_a_row_that_is_too_long_is_rejected_with_the_reason():
    table, rejects = build(
        [("Who?", "She."), ("Who?", "x" * 9)],
        too_long=lambda question, answer: "too long" if len(answer) > 8 else None,
    )
    assert len(table) == 1
    assert [(row["line"], row["reason"]) for row in rejects] == [(2, "too long")]


def test_the_message_about_rejects_names_the_first_of_them():
    rows = [
        {"file": "f.jsonl", "line": line, "split": "forget", "reason": "answer is empty"}
        for line in (3, 5, 8)
    ]
    rejects = pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA)
    assert rejects_text(rejects, most=2) == (
        "3 rows were rejected:\n"
        "  f.jsonl, line 3: answer is empty\n"
        "  f.jsonl, line 5: answer is empty\n"
        "  … and 1 more"
    )
    assert "more" not in rejects_text(rejects)
