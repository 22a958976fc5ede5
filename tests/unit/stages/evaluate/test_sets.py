"""Reading the sets of `evaluate.sets` and the passages of `evaluate.text`."""

from pathlib import Path

import pyarrow as pa
import pytest

from meow_ray.config import Source
from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.evaluate import sets
from meow_ray.stages.evaluate.sets import SET_SCHEMA
from meow_ray.stages.ingest.facts import fact_id


def read(folder: Path, *lines: str) -> pa.Table:
    """Reads a set from a JSONL file of these lines."""
    path = folder / "set.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return sets.read_set("holdout", Source(path=str(path)), load_config(None, []))


def test_a_set_has_the_columns_of_its_file_and_nulls_elsewhere(tmp_path: Path):
    plain = read(tmp_path, '{"question": "Q", "answer": "A"}').to_pylist()
    assert plain == [
        dict.fromkeys(SET_SCHEMA.names)
        | {"fact_id": fact_id("Q", "A"), "question": "Q", "answer": "A"}
    ]
    whole = read(
        tmp_path,
        '{"question": "Q", "answer": "A", '
        '"paraphrased_answer": "P", "perturbed_answer": ["x", "y"]}',
    )
    assert whole["perturbed_answer"].to_pylist() == [["x", "y"]]
    assert whole["paraphrased_answer"].to_pylist() == ["P"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"question": "Q", "answer": ""}'], "evaluate.sets.holdout: 1 rows were rejected"),
        (
            ['{"question": "Q", "answer": "A", "perturbed_answer": []}'],
            "line 1: perturbed_answer must be a list of texts that are not empty",
        ),
        (
            ['{"question": "Q", "answer": "A", "perturbed_answer": [1]}'],
            "line 1: perturbed_answer must be a list of texts that are not empty",
        ),
        (
            ['{"question": "Q", "answer": "A", "paraphrased_answer": 1}'],
            "line 1: paraphrased_answer must be a text that is not empty",
        ),
        (
            [
                '{"question": "Q", "answer": "A", "perturbed_answer": ["x"]}',
                '{"question": "R", "answer": "A"}',
            ],
            r"only some rows have a perturbed_answer \(1 of 2\)",
        ),
    ],
)
def test_a_set_with_a_bad_row_is_refused(tmp_path: Path, lines: list[str], message: str):
    with pytest.raises(MeowError, match=message):
        read(tmp_path, *lines)


def test_an_empty_or_binary_text_is_refused(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("  \n\n")
    with pytest.raises(MeowError, match=r"`evaluate.text`: .*text.txt: the file is empty"):
        sets.read_passages(Artifact("text", str(path), "d"))
    path.write_bytes(b"ab\xff")
    with pytest.raises(MeowError, match=r"`evaluate.text`: .*text.txt, line 1: not UTF-8"):
        sets.read_passages(Artifact("text", str(path), "d"))


def test_each_line_of_a_text_that_is_not_empty_is_a_passage(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("one\n\n two ")
    assert sets.read_passages(Artifact("text", str(path), "d")) == ["one", "two"]
