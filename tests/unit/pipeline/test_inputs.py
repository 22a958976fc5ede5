import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Source
from meow_ray.config.files import load_config
from meow_ray.core import outside, schema, storage
from meow_ray.core.manifest import MAIN, Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages.evaluate import sets
from meow_ray.stages.evaluate.sets import SET_SCHEMA
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.invert import stage as invert_stage
from meow_ray.stages.invert.own_candidates import complete
from tests.support.world import World

# --- inputs from elsewhere -----------------------------------------------------------------------


def own_facts(path: Path, **columns: Any) -> str:
    table = {"fact_id": ["a"], "split": ["forget"], "question": ["Q"], "answer": ["A"]} | columns
    storage.write_table(
        pa.table({name: values for name, values in table.items() if values}), str(path)
    )
    return str(path)


def test_an_input_from_elsewhere_replaces_the_stage_that_makes_it(world: World, tmp_path: Path):
    pipeline = world.pipeline(overrides={"facts": own_facts(tmp_path / "mine.parquet")})
    chosen = pipeline.selection(None, None, None)
    assert [s.name for s in chosen] == ["select", "report"]
    states = pipeline.run(chosen, on_event=str)
    assert isinstance(states[0].artifact, Artifact)
    assert states[0].artifact.table["answer"].to_pylist() == ["A"]
    with pytest.raises(MeowError, match="--only ingest: there is no such stage here"):
        pipeline.selection("ingest", None, None)


def test_an_input_from_elsewhere_enters_by_content(world: World, tmp_path: Path):
    mine = {"facts": own_facts(tmp_path / "mine.parquet")}
    first = world.pipeline(overrides=mine)
    first.run(first.selection(None, None, None), on_event=str)
    moved = {"facts": str(Path(mine["facts"]).rename(tmp_path / "moved.parquet"))}
    assert set(world.states(overrides=moved).values()) == {("cached", "")}
    own_facts(tmp_path / "moved.parquet", answer=["Another"])
    assert world.states(overrides=moved)["select"] == ("stale", "input facts changed")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "nonsense",
            "--input nonsense: there is no artifact of that name; there are .*candidates, .*facts",
        ),
        ("report", "no artifact"),
    ],
)
def test_an_input_that_is_no_artifact_is_refused(world: World, name: str, said: str):
    with pytest.raises(MeowError, match=said):
        world.pipeline(overrides={name: "x.parquet"})


def test_an_input_that_does_not_fit_is_named(world: World, tmp_path: Path):
    with pytest.raises(MeowError, match=r"mine\.parquet: column question is missing"):
        world.pipeline(
            overrides={"facts": own_facts(tmp_path / "mine.parquet", question=None)}
        ).states()
    with pytest.raises(MeowError, match=r"nowhere: there is no such file or folder"):
        world.pipeline(overrides={"facts": str(tmp_path / "nowhere")}).states()
    (tmp_path / "empty").mkdir()
    with pytest.raises(MeowError, match=r"empty: no Parquet file there"):
        world.pipeline(overrides={"facts": str(tmp_path / "empty")}).states()


def candidates(world: World, path: Path | str) -> Artifact:
    artifact = world.pipeline(overrides={"candidates": str(path)}).artifact("candidates")
    assert artifact is not None
    return artifact


OWN = [
    {"question": "Who?", "answer": "Ann.", "inverted_answer": "Bob, of course."},
    {"question": "Who?", "answer": "Ann.", "inverted_answer": "Émile."},
    {"question": "When?", "answer": "1762.", "inverted_answer": "1900."},
]


def as_csv(rows: list[dict[str, str]]) -> bytes:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    return "".join(",".join(f'"{cell}"' for cell in line) + "\n" for line in lines).encode()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    "name", ["mine.parquet", "mine.jsonl", "mine.ndjson", "mine.json", "mine.csv"]
)
def test_candidates_need_only_question_answer_and_inverted_answer(
    world: World, tmp_path: Path, name: str, packed: bool
):
    if name == "mine.parquet":
        storage.write_table(pa.Table.from_pylist(OWN), str(tmp_path / name))
        content = (tmp_path / name).read_bytes()
    elif name == "mine.csv":
        content = as_csv(OWN)
    else:
        content = (
            json.dumps(OWN).encode()
            if name == "mine.json"
            else "\n".join(map(json.dumps, OWN)).encode()
        )
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    table = candidates(world, path).table
    assert table.schema == schema.SCHEMAS["candidates"]
    assert table["fact_id"].to_pylist() == [fact_id(row["question"], row["answer"]) for row in OWN]
    assert table["inverted_answer"].to_pylist() == [row["inverted_answer"] for row in OWN]
    assert table["candidate_id"].to_pylist() == [0, 1, 0]


def test_a_mistake_in_a_file_of_candidates_is_named_with_its_line(world: World, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*OWN, {"question": "Q", "inverted_answer": "B"}])
    )
    with pytest.raises(MeowError, match=r"mine\.jsonl, line 4: answer is missing"):
        candidates(world, path)
    path.write_text('{"question": "Q",\n')
    with pytest.raises(MeowError, match=r"mine\.jsonl, line 1: malformed JSON"):
        candidates(world, path)


def test_the_authors_file_of_inverted_facts_is_read_as_it_is(
    world: World, tmp_path: Path, shared_data: Callable[[str], Path]
):
    path = shared_data("meow/inverted_forget01.json")
    rows, table = json.loads(path.read_text()), candidates(world, path).table
    names = [name for name in rows[0] if name.startswith("answer_")]
    assert table.num_rows == len(rows) * len(names)
    assert table["candidate_id"].to_pylist() == [*range(len(names))] * len(rows)
    assert table["inverted_answer"].to_pylist() == [
        row[name].strip() for row in rows for name in names
    ]
    assert table["answer"].to_pylist() == [
        row["undesired_answer"].strip() for row in rows for _ in names
    ]


def test_the_candidates_of_another_run_are_read_without_what_stands_beside_them(
    world: World, tmp_path: Path
):
    folder = tmp_path / "candidates"
    storage.write_table(complete(enumerate(OWN, start=1), "mine"), str(folder / MAIN))
    storage.write_table(pa.table({"note": ["x"]}), str(folder / "rejects.parquet"))
    assert candidates(world, folder).table.num_rows == 3


# --- large inputs -------------------------------------------------------------------------------


def own_memo(folder: Path, *parts: list[str], **columns: Any) -> Path:
    """Writes a `memo` table of several files, a row a fact; returns their folder."""
    for i, facts in enumerate(parts):
        rows = [{"fact_id": fact, "candidate_id": 0, "memo": 0.5} for fact in facts]
        table = pa.Table.from_pylist(rows, schema=schema.SCHEMAS["memo"])
        for name, values in columns.items():
            table = table.drop_columns([name])
            table = table if values is None else table.append_column(name, values)
        storage.write_table(table, str(folder / f"{i}.parquet"))
    return folder


def test_a_large_table_is_not_loaded(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outside, "LARGE", 3)
    monkeypatch.setattr(invert_stage, "LARGE", 3)
    small, large = (
        own_memo(tmp_path / "small", ["a", "b"]),
        own_memo(tmp_path / "large", ["a", "b"], ["c"]),
    )
    loaded = world.pipeline(overrides={"memo": str(small)}).artifact("memo")
    kept = world.pipeline(overrides={"memo": str(large)}).artifact("memo")
    assert loaded is not None
    assert kept is not None
    assert isinstance(loaded.source, pa.Table)
    assert kept.source == [str(large / "0.parquet"), str(large / "1.parquet")]
    assert kept.table["fact_id"].to_pylist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": None}, r"memo: column text is missing\. memo needs the columns fact_id"),
        ({"text": None, "memo": None}, r"memo: column text, memo is missing"),
        ({"memo": pa.array(["x"] * 3)}, r"memo: column memo is string, memo needs double"),
    ],
)
def test_a_large_table_without_its_columns_is_refused_before_anything_runs(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    columns: dict[str, Any],
    said: str,
):
    monkeypatch.setattr(outside, "LARGE", 3)
    monkeypatch.setattr(invert_stage, "LARGE", 3)
    folder = own_memo(tmp_path / "memo", ["a", "b", "c"], **columns)
    with pytest.raises(MeowError, match=said):
        world.pipeline(overrides={"memo": str(folder)}).artifact("memo")


def test_files_of_a_large_table_that_differ_are_refused_before_anything_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outside, "LARGE", 3)
    monkeypatch.setattr(invert_stage, "LARGE", 3)
    folder = own_memo(tmp_path / "memo", ["a", "b", "c"])
    storage.write_table(
        storage.read_table([str(folder / "0.parquet")]).drop_columns(["memo"]),
        str(folder / "1.parquet"),
    )
    with pytest.raises(MeowError, match=r"1\.parquet"):
        world.pipeline(overrides={"memo": str(folder)}).artifact("memo")
    (folder / "1.parquet").write_bytes(b"this is no Parquet file")
    with pytest.raises(MeowError, match=r"1\.parquet"):
        world.pipeline(overrides={"memo": str(folder)}).artifact("memo")


def test_missing_settings_are_named(world: World):
    with pytest.raises(MeowError, match=r"`ingest\.forget` is not set"):
        Pipeline(load_config(None, [f"storage.root={world.root}"])).states()
    world.data.unlink()
    with pytest.raises(MeowError, match=r"facts\.jsonl: there is no such file"):
        world.states()


def test_a_target_is_memorised_or_given_but_not_both(world: World):
    with pytest.raises(MeowError, match=r"`target\.model` and `memorize` both name the target"):
        world.pipeline("target.model=x/y", "memorize.model=x/z")


# --- sets ---------------------------------------------------------------------------------------


def read(folder: Path, *lines: str) -> pa.Table:
    path = folder / "set.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return sets.read_set("holdout", Source(path=str(path)), load_config(None, []))


def test_a_set_brings_what_its_file_has(tmp_path: Path):
    plain = read(tmp_path, '{"question": "Q", "answer": "A"}').to_pylist()
    assert plain == [
        dict.fromkeys(SET_SCHEMA.names)
        | {"fact_id": fact_id("Q", "A"), "question": "Q", "answer": "A"}
    ]
    whole = read(
        tmp_path,
        '{"question": "Q", "answer": "A", "paraphrased_answer": "P", "perturbed_answer": ["x", "y"]}',
    )
    assert whole["perturbed_answer"].to_pylist() == [["x", "y"]]
    assert whole["paraphrased_answer"].to_pylist() == ["P"]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (['{"question": "Q", "answer": ""}'], "evaluate.sets.holdout: 1 rows were rejected"),
        (
            ['{"question": "Q", "answer": "A", "perturbed_answer": []}'],
            "line 1: perturbed_answer is no list of texts",
        ),
        (
            ['{"question": "Q", "answer": "A", "perturbed_answer": [1]}'],
            "line 1: perturbed_answer is no list of texts",
        ),
        (
            ['{"question": "Q", "answer": "A", "paraphrased_answer": 1}'],
            "line 1: paraphrased_answer is no text",
        ),
        (
            [
                '{"question": "Q", "answer": "A", "perturbed_answer": ["x"]}',
                '{"question": "R", "answer": "A"}',
            ],
            "only 1 of 2 rows have a perturbed_answer",
        ),
    ],
)
def test_a_set_with_a_bad_row_is_refused(tmp_path: Path, lines: list[str], complaint: str):
    with pytest.raises(MeowError, match=complaint):
        read(tmp_path, *lines)


def test_a_text_without_passages_is_refused(tmp_path: Path):
    path = tmp_path / "text.txt"
    path.write_text("  \n\n")
    with pytest.raises(MeowError, match=r"`evaluate.text`: .*text.txt is empty"):
        sets.read_passages(Artifact("text", str(path), "d"))
    path.write_bytes(b"ab\xff")
    with pytest.raises(MeowError, match=r"`evaluate.text`: .*text.txt, byte 2: not UTF-8 text"):
        sets.read_passages(Artifact("text", str(path), "d"))
    path.write_text("one\n\n two ")
    assert sets.read_passages(Artifact("text", str(path), "d")) == ["one", "two"]
