"""Rows of tables in text: delimiters, headers, quotes, and rows that do not fit the header."""

from typing import Any

import pytest

from meow_ray.errors import MeowError
from meow_ray.stages.ingest.columns import Columns
from meow_ray.stages.ingest.csv_rows import csv_rows

ROW = {"question": "Who, then; or when?", "answer": "She."}


def read(text: str, columns: Columns | None = None) -> list[tuple[int, Any]]:
    return list(csv_rows("a.csv", text, columns or Columns()))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_the_header_tells_the_delimiter(delimiter: str, line_end: str):
    text = delimiter.join(["question", "answer"]) + line_end
    text += delimiter.join([f'"{ROW["question"]}"', "She."]) + line_end
    assert read(text) == [(2, ROW)]


def test_the_wanted_columns_tell_the_delimiter_where_the_header_has_several():
    text = 'id, or key;question;answer\n1;"Who, then; or when?";She.\n'
    assert [row["question"] for _, row in read(text)] == ["Who, then; or when?"]
    text = "Frage;Antwort, kurz;Nr\nWer?;Sie.;1\n"
    assert read(text, Columns(["Frage"], ["Antwort, kurz"])) == [
        (2, {"Frage": "Wer?", "Antwort, kurz": "Sie.", "Nr": "1"})
    ]


@pytest.mark.parametrize("mark", ["sep=;", "SEP=;", '"sep=;"', "sep=;;"])
def test_the_first_line_may_name_the_delimiter(mark: str):
    text = f'{mark}\r\nquestion;answer\r\n"Who, then; or when?";She.\r\n'
    assert read(text) == [(3, ROW)]


@pytest.mark.parametrize(
    "header",
    ["question, answer", " question ,answer ", '"question", "answer"', "question\t, answer"],
)
def test_blanks_around_names_in_the_header_do_not_count(header: str):
    assert read(f'{header}\n"Who, then; or when?","She."\n') == [(2, ROW)]


def test_blanks_after_delimiters_are_skipped_if_the_header_has_them():
    assert read('question, answer\n"Who, then; or when?", "She."\n') == [(2, ROW)]
    assert read("question,answer\nWho?, She.\n") == [(2, {"question": "Who?", "answer": " She."})]


def test_a_row_has_the_line_on_which_it_begins():
    text = '\nquestion,answer\n"Who,\nthen?","She\nwas."\n\n,\nWhen?,Now.\n'
    assert read(text) == [
        (3, {"question": "Who,\nthen?", "answer": "She\nwas."}),
        (8, {"question": "When?", "answer": "Now."}),
    ]


def test_empty_cells_after_the_last_column_are_dropped():
    assert read("question,answer\nWho?,She.,,\n") == [(2, {"question": "Who?", "answer": "She."})]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "question;answer\nq;a;b\n",
            "a.csv, line 2: more cells than the header has columns (3, not 2)",
        ),
        ("question;answer\nq;a;b\n", "Put cells that contain semicolons in quotes."),
        (
            "question,answer\nq\n",
            "a.csv, line 2: fewer cells than the header has columns (1, not 2)",
        ),
        ('sep=,\nquestion,answer\n"q,a\n', "a.csv, line 3: malformed CSV"),
        (
            'question,answer\n"q,\na\nb\n',
            "line 4: malformed CSV (unexpected end of data) in the row that begins on line 2",
        ),
        ('question,answer\n"q" , "a"\n', "line 2: malformed CSV (',' expected after '\"')"),
        ("question,answer,answer\nq,a,b\n", "a.csv: the header has 2 columns named answer"),
        (
            "| question | answer |\n|---|:---:|\n| q | a |\n",
            "line 2: the line below the header of a",
        ),
        ("Only prose here.\nAnd more.\n", "a.csv: neither JSON nor a table"),
    ],
)
def test_what_does_not_fit_is_named_with_its_line(text: str, expected: str):
    with pytest.raises(MeowError) as caught:
        read(text)
    assert expected in str(caught.value)
