"""Rows of JSON text: lines, arrays, and objects that hold all rows."""

import json
from typing import Any

import pandas as pd
import pytest

from meow_ray.errors import MeowError
from meow_ray.stages.ingest.columns import Columns
from meow_ray.stages.ingest.json_rows import json_rows

ROWS = [
    {"question": "Who wrote Émile?", "answer": "Rousseau."},
    {"question": "When?", "answer": "1762."},
]
FRAME = pd.DataFrame(ROWS)
LINES = "\n".join(json.dumps(row) for row in ROWS)


def rows_of(text: str, columns: Columns | None = None, key: str = "train") -> list[Any]:
    return [row for _, row in json_rows("a.json", text, columns or Columns(), key)]


def lines_of(text: str) -> list[int]:
    return [line for line, _ in json_rows("a.json", text, Columns(), "train")]


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.replace("\n", "\r\n\r\n") + "\r\n",
        LINES.replace("\n", ""),
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.0", "count": 2, "tags": ["a"], "data": ROWS}, indent=1),
        json.dumps({"test": ROWS[:1], "train": ROWS}),
        FRAME.to_json(),
        FRAME.to_json(orient="records"),
        FRAME.to_json(orient="records", lines=True),
        FRAME.to_json(orient="split"),
        FRAME.to_json(orient="index"),
        json.dumps(FRAME.to_dict(orient="list")),
        json.dumps({"train": FRAME.to_dict(orient="list")}),
        json.dumps({"data": {"rows": ROWS}}),
        json.dumps({"train": {"a": ROWS[0], "b": ROWS[1]}, "test": {}}),
        json.dumps(
            {
                "features": [{"name": "question"}],
                "rows": [{"row_idx": n, "row": row} for n, row in enumerate(ROWS)],
            }
        ),
        json.dumps({"id-a": ROWS[0], "id-b": ROWS[1]}),
    ],
    ids=lambda text: text[:30],
)
def test_each_form_gives_the_same_rows(text: str):
    assert rows_of(text) == ROWS


def test_the_table_form_of_pandas_is_read():
    rows = rows_of(FRAME.to_json(orient="table"))
    assert [(row["question"], row["answer"]) for row in rows] == [
        ("Who wrote Émile?", "Rousseau."),
        ("When?", "1762."),
    ]


def test_columns_of_any_name_are_read_as_columns():
    frame = pd.DataFrame([{"id": "a", "input": "Who?", "output": "She."}])
    assert rows_of(frame.to_json()) == [{"id": "a", "input": "Who?", "output": "She."}]
    by_row = rows_of(frame.to_json(orient="index"), Columns(["input"], ["output"]))
    assert by_row == [{"id": "a", "input": "Who?", "output": "She."}]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Who?", "answer": "She."},
        {"question": "Who?", "answer": "She.", "perturbed_answer": ["He.", "They."]},
        {"question": "Who?", "answer": "She.", "sources": [{"page": 1}]},
        {"messages": [{"role": "user", "content": "Who?"}]},
        {"conversations": [{"from": "human", "value": "Who?"}]},
    ],
)
def test_one_object_may_be_one_row(row: dict[str, Any]):
    assert rows_of(json.dumps(row)) == [row]
    assert rows_of(json.dumps(row) + "\n" + json.dumps(row)) == [row, row]


def test_lines_of_rows_are_those_of_the_text():
    assert lines_of("\n" + LINES) == [2, 3]
    assert lines_of(json.dumps(ROWS, indent=1)) == [2, 6]
    assert lines_of(json.dumps({"version": 1, "data": ROWS}, indent=1)) == [4, 8]
    assert lines_of("\n".join(json.dumps(row, indent=1) for row in ROWS)) == [1, 5]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"question": "q"}\n{"question" "q"}', "line 2: malformed JSON (Expecting ':' delimiter)"),
        ('{"question": "q"}\n{"question": "q",', "line 2: malformed JSON (Expecting property name"),
        (
            '{"a": 1}\n\n{"question": "q,\n{"a": 1}',
            "line 3: malformed JSON (Invalid control character at)",
        ),
        (
            '{"question": "q",\n{"question": "r"}',
            "line 1: malformed JSON (Expecting property name enclosed in double quotes). Correct",
        ),
        (
            '{"question": "q",\n "answer" "a"}',
            "line 2: malformed JSON (Expecting ':' delimiter) in the object that begins on line 1.",
        ),
        ('[{"question": "q"},\n{"question": "r"}', "malformed JSON (Expecting ',' delimiter)"),
        ("{'question': 'q'}", "line 1: malformed JSON (Expecting property name"),
        (
            '{"question": "q"},\n{"question": "r"}',
            "line 1: malformed JSON (Expecting value, found ',')",
        ),
        ('{"question": "q"} and more', "line 1: malformed JSON (Expecting value)"),
        ("[" * 100_000, "line 1: JSON with too many brackets"),
        ('{"a": ' + "9" * 5000 + "}", "line 1: malformed JSON (invalid number)"),
        ('{"columns": ["q", "a"], "data": [[1, 2], [3]]}', "row 2: it has 1 cells, but `columns`"),
        ('{"question": {"0": "q"}, "answer": {"1": "a"}}', "columns, and they differ in their"),
        ('{"question": ["q", "r"], "answer": ["a"]}', "they differ in their number of rows"),
        ('{"a": [{"q": 1}], "b": [{"q": 2}]}', "the file holds 2 arrays of objects"),
    ],
)
def test_what_is_malformed_is_named_with_its_line(text: str, expected: str):
    with pytest.raises(MeowError) as caught:
        rows_of(text)
    assert str(caught.value).startswith("a.json")
    assert expected in str(caught.value)


def test_one_of_several_arrays_is_chosen_by_the_split():
    text = json.dumps({"forget": ROWS[:1], "retain": ROWS[1:]})
    assert rows_of(text, key="retain") == ROWS[1:]
