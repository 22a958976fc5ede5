"""Artifacts made elsewhere and given with `--input`: Parquet tables, candidates in any format."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from meow_ray.core import outside, schema, storage
from meow_ray.core.manifest import MAIN, REJECTS_FILE, Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.invert import stage as invert_stage
from meow_ray.stages.invert.own_candidates import complete
from tests.support.world import World


def write_facts(path: Path, **columns: Any) -> str:
    """Writes a table `facts` of one row; a column that is None is left out. Returns its path."""
    values = {"fact_id": ["a"], "split": ["forget"], "question": ["Q"], "answer": ["A"]} | columns
    present = {name: column for name, column in values.items() if column is not None}
    storage.write_table(pa.table(present), str(path))
    return str(path)


def given_artifact(name: str, path: Path | str) -> Artifact:
    """Returns what the real pipeline takes for `--input NAME=PATH`."""
    artifact = Pipeline(load_config(), {name: str(path)}).artifact(name)
    assert artifact is not None
    return artifact


# --- tables ---------------------------------------------------------------------------------------


def test_a_given_artifact_replaces_the_stage_that_makes_it(world: World, tmp_path: Path):
    pipeline = world.pipeline(overrides={"facts": write_facts(tmp_path / "mine.parquet")})
    chosen = pipeline.selection(None, None, None)
    assert [s.name for s in chosen] == ["select", "report"]
    states = pipeline.run(chosen, on_event=str)
    assert isinstance(states[0].artifact, Artifact)
    assert states[0].artifact.table["answer"].to_pylist() == ["A"]
    with pytest.raises(MeowError, match=r"^--only ingest: this run has no such stage\."):
        pipeline.selection("ingest", None, None)


def test_a_given_artifact_is_identified_by_its_content(world: World, tmp_path: Path):
    mine = {"facts": write_facts(tmp_path / "mine.parquet")}
    pipeline = world.pipeline(overrides=mine)
    pipeline.run(pipeline.selection(None, None, None), on_event=str)
    moved = {"facts": str(Path(mine["facts"]).rename(tmp_path / "moved.parquet"))}
    assert set(world.states(overrides=moved).values()) == {("cached", "")}
    write_facts(tmp_path / "moved.parquet", answer=["Another"])
    assert world.states(overrides=moved)["select"] == ("stale", "input facts changed")


@pytest.mark.parametrize("name", ["nonsense", "report"])
def test_an_input_that_is_not_a_known_artifact_is_refused(world: World, name: str):
    message = f"--input {name}: no artifact has that name. Choose from facts, selected."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        world.pipeline(overrides={name: "x.parquet"})


def test_the_real_pipeline_takes_the_artifacts_and_models_of_its_configuration():
    names = (
        "audit, base, candidates, facts, generator, guesses, memo, metrics, model, "
        "neighbours, paraphrases, reference, remaining, retain_model, selected, target, twins"
    )
    message = f"--input x: no artifact has that name. Choose from {names}."
    with pytest.raises(MeowError, match=f"^{re.escape(message)}$"):
        Pipeline(load_config(None, ["memorize.model=x/y"]), {"x": "x.parquet"})


def test_what_is_wrong_with_a_given_table_is_named(world: World, tmp_path: Path):
    def states(path: Path | str) -> None:
        world.pipeline(overrides={"facts": str(path)}).states()

    with pytest.raises(MeowError, match=r"mine\.parquet: column question is missing"):
        states(write_facts(tmp_path / "mine.parquet", question=None))
    with pytest.raises(MeowError, match=r"nowhere: there is no such file or folder"):
        states(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MeowError, match=r"empty: no Parquet file there"):
        states(tmp_path / "empty")


# --- candidates -----------------------------------------------------------------------------------


ROWS = [
    {"question": "Who?", "answer": "Ann.", "inverted_answer": "Bob, of course."},
    {"question": "Who?", "answer": "Ann.", "inverted_answer": "Émile."},
    {"question": "When?", "answer": "1762.", "inverted_answer": "1900."},
]


def as_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def as_csv(rows: list[dict[str, str]]) -> str:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines)


def as_parquet(rows: list[dict[str, str]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "mine.parquet": as_parquet(ROWS),
    "mine.jsonl": as_lines(ROWS).encode(),
    "mine.ndjson": as_lines(ROWS).encode(),
    "mine.json": json.dumps(ROWS).encode(),
    "mine.csv": as_csv(ROWS).encode(),
}


@pytest.mark.parametrize("suffix", ["", ".gz"], ids=["plain", "gzip"])
@pytest.mark.parametrize("name", FILES)
def test_candidates_need_only_question_answer_and_inverted_answer(
    tmp_path: Path, name: str, suffix: str
):
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(gzip.compress(FILES[name]) if suffix else FILES[name])
    table = given_artifact("candidates", path).table
    assert table.schema == schema.SCHEMAS["candidates"]
    assert table["fact_id"].to_pylist() == [fact_id(row["question"], row["answer"]) for row in ROWS]
    assert table["inverted_answer"].to_pylist() == [row["inverted_answer"] for row in ROWS]
    assert table["candidate_id"].to_pylist() == [0, 1, 0]


def test_a_mistake_in_a_file_of_candidates_is_named_with_its_line(tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(as_lines([*ROWS, {"question": "Q", "inverted_answer": "B"}]))
    with pytest.raises(MeowError, match=r"mine\.jsonl, line 4: answer is missing"):
        given_artifact("candidates", path)
    path.write_text('{"question": "Q",\n')
    with pytest.raises(MeowError, match=r"mine\.jsonl, line 1: malformed JSON"):
        given_artifact("candidates", path)


def test_a_missing_file_of_candidates_is_named(tmp_path: Path):
    for name in ("nowhere", "nowhere.parquet", "nowhere.jsonl"):
        with pytest.raises(MeowError, match=rf"{name}: there is no such file or folder"):
            given_artifact("candidates", tmp_path / name)


def test_the_inverted_facts_that_the_authors_of_meow_published_are_read_unchanged(
    shared_data: Callable[[str], Path],
):
    path = shared_data("meow/inverted_forget01.json")
    rows, table = json.loads(path.read_text()), given_artifact("candidates", path).table
    names = [name for name in rows[0] if name.startswith("answer_")]
    assert table.num_rows == len(rows) * len(names)
    assert table["candidate_id"].to_pylist() == [*range(len(names))] * len(rows)
    inverted = [row[name].strip() for row in rows for name in names]
    assert table["inverted_answer"].to_pylist() == inverted
    answers = [row["undesired_answer"].strip() for row in rows for _ in names]
    assert table["answer"].to_pylist() == answers


def test_of_another_runs_candidates_only_the_main_table_is_read(tmp_path: Path):
    folder = tmp_path / "candidates"
    storage.write_table(complete(enumerate(ROWS, start=1), "mine"), str(folder / MAIN))
    storage.write_table(pa.table({"note": ["x"]}), str(folder / REJECTS_FILE))
    assert given_artifact("candidates", folder).table.num_rows == 3


# --- large tables ---------------------------------------------------------------------------------


@pytest.fixture
def three_rows_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "LARGE", 3)
    monkeypatch.setattr(invert_stage, "LARGE", 3)


def write_memo(folder: Path, *parts: list[str], **columns: pa.Array | None) -> Path:
    """Writes a table `memo` in several files, one row per fact; returns their folder.

    `columns` replaces columns, or leaves out those that are None.
    """
    for number, facts in enumerate(parts):
        rows = [{"fact_id": fact, "candidate_id": 0, "memo": 0.5} for fact in facts]
        table = pa.Table.from_pylist(rows, schema=schema.SCHEMAS["memo"])
        for name, values in columns.items():
            table = table.drop_columns([name])
            if values is not None:
                table = table.append_column(name, values)
        storage.write_table(table, str(folder / f"{number}.parquet"))
    return folder


@pytest.mark.usefixtures("three_rows_are_large")
def test_a_large_table_is_not_loaded(tmp_path: Path):
    small = given_artifact("memo", write_memo(tmp_path / "small", ["a", "b"]))
    assert isinstance(small.source, pa.Table)
    folder = write_memo(tmp_path / "large", ["a", "b"], ["c"])
    large = given_artifact("memo", folder)
    assert large.source == [str(folder / "0.parquet"), str(folder / "1.parquet")]
    assert large.table["fact_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": None}, r"memo: column text is missing\. memo needs the columns fact_id"),
        ({"text": None, "memo": None}, r"memo: column text, memo is missing"),
        ({"memo": pa.array(["x"] * 3)}, r"memo: column memo is string, memo needs double"),
    ],
)
@pytest.mark.usefixtures("three_rows_are_large")
def test_a_large_table_without_its_columns_is_refused_before_anything_runs(
    tmp_path: Path, columns: dict[str, Any], message: str
):
    folder = write_memo(tmp_path / "memo", ["a", "b", "c"], **columns)
    with pytest.raises(MeowError, match=message):
        given_artifact("memo", folder)


@pytest.mark.parametrize("name", ["facts", "memo", "selected"])
def test_a_table_that_is_not_parquet_is_refused_in_words(tmp_path: Path, name: str):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Q", "answer": "A"}\n')
    with pytest.raises(MeowError) as caught:
        given_artifact(name, path)
    assert str(caught.value).startswith(f"{path}: not a Parquet file. `--input {name}` takes")


def test_candidates_are_read_by_their_content(tmp_path: Path):
    rows = [{"question": "Q", "answer": "A", "inverted_answer": "B"}]
    (tmp_path / "mine").write_text(json.dumps({"data": rows}))
    (tmp_path / "mine.parquet").write_text("question;answer;inverted_answer\nQ;A;B\n")
    for name in ("mine", "mine.parquet"):
        table = given_artifact("candidates", tmp_path / name).value
        assert table["inverted_answer"].to_pylist() == ["B"]


@pytest.mark.usefixtures("three_rows_are_large")
def test_files_of_a_large_table_that_differ_are_refused_before_anything_runs(tmp_path: Path):
    folder = write_memo(tmp_path / "memo", ["a", "b", "c"])
    narrower = storage.read_table([str(folder / "0.parquet")]).drop_columns(["memo"])
    storage.write_table(narrower, str(folder / "1.parquet"))
    with pytest.raises(MeowError, match=r"1\.parquet"):
        given_artifact("memo", folder)
    (folder / "1.parquet").write_bytes(b"this is no Parquet file")
    with pytest.raises(MeowError, match=r"1\.parquet"):
        given_artifact("memo", folder)
