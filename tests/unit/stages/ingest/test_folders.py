"""Folders of data: parts of a table, saved datasets, and copies of hub datasets."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest

from meow_ray.config import Source
from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.ingest.readers import Row, read_source

UUIDS = ("5f0c3a1e-1111-4222-8333-944445555666", "0a0b0c0d-2222-4222-8333-a44445555666")
ROWS = [{"question": f"Q{n}?", "answer": f"A{n}."} for n in range(4)]


def questions(path: Path | str, **source: str) -> list[str]:
    return [row.record["question"] for row in read_source(Source(path=str(path), **source))]


def parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("first", "second", "writer"),
    [
        ("part-00000.parquet", "part-00001.parquet", parquet),
        (
            f"part-0-{UUIDS[0]}.c000.parquet",
            f"part-1-{UUIDS[1]}.c000.parquet",
            parquet,
        ),
        ("9_000000_000000.json", "9_000001_000000.json", lines),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", lines),
        ("year=2023/data_0.parquet", "year=2024/data_0.parquet", parquet),
        ("data/0000.json.gz", "data/0001.json.gz", lambda rows: gzip.compress(lines(rows))),
    ],
)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_the_parts_of_a_table_are_read_in_order(
    tmp_path: Path, s3: Callable[[str], str], place: str, first: str, second: str, writer
):
    folder = str(tmp_path / "facts.parquet") if place == "local" else s3(f"parts/{first}/x.parquet")
    storage.write_bytes(storage.join(folder, second), writer(ROWS[2:]))
    storage.write_bytes(storage.join(folder, first), writer(ROWS[:2]))
    for other in ("_SUCCESS", ".part-00000.crc", "README.md", ".cache/x.json", "_temporary/0"):
        storage.write_bytes(storage.join(folder, other), b"x")
    storage.write_bytes(storage.join(folder, second.replace("1", "2").replace("24", "25")), b"")
    rows = list(read_source(Source(path=folder)))
    assert [row.record for row in rows] == ROWS
    assert rows[3] == Row(storage.display(storage.join(folder, second)), 2, ROWS[3])


@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_saved_dataset_is_read(tmp_path: Path, s3: Callable[[str], str], place: str):
    datasets = pytest.importorskip("datasets")
    saved = tmp_path / "saved"
    parts = {"train": ROWS[:3], "test": ROWS[3:]}
    datasets.DatasetDict(
        {name: datasets.Dataset.from_list(rows) for name, rows in parts.items()}
    ).save_to_disk(str(saved))
    path = str(saved)
    if place == "s3":
        path = s3("saved/dataset")
        storage.copy_folder(str(saved), path)
    assert questions(path) == ["Q0?", "Q1?", "Q2?"]
    assert questions(path, split="test") == ["Q3?"]
    with pytest.raises(MeowError, match=r"has no split retain, only train, test\. Set `split`"):
        questions(path, split="retain")


def test_a_copy_of_a_hub_dataset_is_read_by_subset_and_split(tmp_path: Path):
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: forget01\n  data_files: forget01.json\n"
        "- config_name: retain99\n  data_files: retain99.json\n---\n# Facts\n"
    )
    (tmp_path / "forget01.json").write_bytes(lines(ROWS[:1]))
    (tmp_path / "retain99.json").write_bytes(lines(ROWS[1:]))
    assert questions(tmp_path, subset="retain99") == ["Q1?", "Q2?", "Q3?"]
    with pytest.raises(MeowError, match=r"cannot be read \(.*\)\. Set `subset` and `split`"):
        questions(tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "the folder has no data file"),
        (["README.md", "_SUCCESS"], "the folder has no data file"),
        (
            ["forget.jsonl", "retain.jsonl"],
            "2 files that are not parts of one table",
        ),
        (
            ["train-0.jsonl", "test-0.jsonl"],
            "such as test-0.jsonl and train-0.jsonl",
        ),
        (["part-0.jsonl", "part-1.csv"], "not parts of one table"),
        (
            ["_delta_log/0.json", "part-0.parquet"],
            "a log of its changes (_delta_log/)",
        ),
    ],
)
def test_a_folder_that_is_not_one_table_is_refused(tmp_path: Path, names: list[str], expected: str):
    for name in names:
        storage.write_bytes(str(tmp_path / name), lines(ROWS))
    with pytest.raises(MeowError) as caught:
        questions(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert expected in str(caught.value)
