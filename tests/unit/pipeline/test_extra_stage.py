"""A stage that is not part of the package: registered by its value, with nothing patched."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import meow_ray
from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput, table_adopter
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.errors import MeowError
from meow_ray.pipeline.graph import STAGES
from meow_ray.pipeline.pipeline import Pipeline, load_config
from tests.support.world import World

COUNTS = pa.schema([("fact_id", pa.string()), ("num_stop_words", pa.int32())])
KEY = ("fact_id",)


def count_stop_words(context: Context) -> dict[str, Any]:
    words = set(context.inputs["stop_words"].value)
    rows = [
        {"fact_id": row["fact_id"], "num_stop_words": len(words & set(row["answer"].split()))}
        for row in context.inputs["facts"].table.to_pylist()
    ]
    context.write(pa.Table.from_pylist(rows, schema=COUNTS))
    return {"total": sum(row["num_stop_words"] for row in rows)}


def stage_reading(path: Path) -> Stage:
    """Returns a stage that counts the stop words of each answer; `path` is the list of words."""

    def resolve(config: Config, verify: bool) -> Artifact:
        uri = storage.absolute(str(path))
        words = storage.read_bytes(uri).decode().split()
        digest = storage.content_digest(uri, verify=verify)
        return Artifact("stop_words", uri, digest, value=words)

    return Stage(
        name="count",
        artifact="counts",
        version=1,
        sections=(),
        inputs=("facts", OutsideInput("stop_words", resolve)),
        run=count_stop_words,
        schema=COUNTS,
        key=KEY,
        adopt=table_adopter(COUNTS, KEY),
    )


class Extended:
    """The small pipeline of `World` with the extra stage at its end."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.words = world, folder / "stop_words.txt"
        self.words.write_text("the of")
        world.write("the north of Oslo", "Rome")
        self.extra = stage_reading(self.words)
        world.use(*world.stages, self.extra)

    def run(self, **options: Any) -> Artifact:
        """Runs all stages; returns the artifact of the extra stage."""
        self.world.run(**options)
        artifact = self.world.pipeline().artifact("counts")
        assert artifact is not None
        return artifact

    def state(self, **options: Any) -> tuple[str, str]:
        return self.world.states(**options)["count"]


@pytest.fixture
def extended(world: World, tmp_path: Path) -> Extended:
    return Extended(world, tmp_path)


def counts_of(artifact: Artifact) -> list[int]:
    return artifact.table["num_stop_words"].to_pylist()


def write_counts(path: Path, **columns: list[Any]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_the_stage_runs_after_the_stage_that_it_reads(extended: Extended):
    assert extended.state() == ("missing", "waits for facts")
    extended.run()
    messages = extended.world.messages
    finished = [text.split(":")[0] for text in messages if " rows in " in text]
    assert finished == ["[1/4] ingest", "[2/4] select", "[4/4] count"]
    assert "[4/4] count: never run" in messages


def test_its_table_is_published_and_read_back(extended: Extended):
    artifact = extended.run()
    assert artifact.table.schema == COUNTS
    assert counts_of(artifact) == [2, 0]
    assert Path(storage.display(artifact.uri)).parts[-3] == "counts"


def test_its_summary_and_what_identifies_it_are_in_the_manifest(extended: Extended):
    manifest = extended.run().manifest
    assert manifest is not None
    assert (manifest.stage, manifest.artifact, manifest.rows) == ("count", "counts", 2)
    assert manifest.summary == {"total": 2}
    facts = extended.world.pipeline().artifact("facts")
    assert facts is not None
    assert manifest.ingredients == {
        "stage": "count",
        "version": 1,
        "schema": {"fact_id": "string", "num_stop_words": "int32"},
        "spec": {},
        "inputs": {
            "facts": facts.digest,
            "stop_words": storage.content_digest(str(extended.words)),
        },
    }


def test_it_is_cached_on_a_second_run(extended: Extended):
    first = extended.run()
    assert extended.state() == ("cached", "")
    assert extended.run() == first
    assert extended.world.messages[-1] == "[4/4] count: cached"
    assert extended.run(force=True).number == 2


def test_a_changed_byte_of_its_outside_file_makes_it_stale(extended: Extended):
    extended.run()
    extended.words.write_text("the oF")
    os.utime(extended.words, ns=(10**18, 10**18))
    assert extended.state() == ("stale", "input stop_words changed")
    assert counts_of(extended.run()) == [1, 0]
    assert extended.world.messages[-2] == "[4/4] count: input stop_words changed"


def test_a_moved_outside_file_does_not(extended: Extended):
    extended.run()
    moved = extended.words.rename(extended.words.with_name("moved.txt"))
    extended.world.use(*extended.world.stages[:-1], stage_reading(moved))
    assert extended.state() == ("cached", "")


def test_changed_facts_make_it_stale(extended: Extended):
    extended.run()
    extended.world.write("Rome")
    extended.world.run(only="ingest")
    assert extended.state() == ("stale", "input facts changed")


def test_a_raised_version_makes_it_stale(extended: Extended):
    extended.run()
    extended.world.use(*extended.world.stages[:-1], replace(extended.extra, version=2))
    assert extended.state() == ("stale", "code version: 1 → 2")


def test_its_artifact_is_taken_from_elsewhere(extended: Extended, tmp_path: Path):
    path = write_counts(tmp_path / "mine.parquet", fact_id=["a"], num_stop_words=[7])
    pipeline = extended.world.pipeline(overrides={"counts": path})
    assert [s.name for s in pipeline.selection(None, None, None)] == ["ingest", "select", "report"]
    artifact = pipeline.artifact("counts")
    assert artifact is not None
    assert artifact.table == pa.table({"fact_id": ["a"], "num_stop_words": [7]}, schema=COUNTS)


def test_its_schema_and_key_are_checked_in_tables_from_elsewhere(
    extended: Extended, tmp_path: Path
):
    def adopt(path: str) -> Artifact | None:
        return extended.world.pipeline(overrides={"counts": path}).artifact("counts")

    with pytest.raises(MeowError, match=r"narrow\.parquet: column num_stop_words is missing"):
        adopt(write_counts(tmp_path / "narrow.parquet", fact_id=["a"]))
    with pytest.raises(MeowError, match=r"twice\.parquet: 1 keys"):
        adopt(write_counts(tmp_path / "twice.parquet", fact_id=["a"] * 2, num_stop_words=[1, 2]))


def test_without_adopt_its_artifact_cannot_be_given(extended: Extended):
    extended.world.use(*extended.world.stages[:-1], replace(extended.extra, adopt=None))
    with pytest.raises(MeowError, match=r"^--input counts: no artifact has that name\. Choose"):
        extended.world.pipeline(overrides={"counts": "x.parquet"})


def test_its_own_schema_is_checked_when_it_writes(extended: Extended):
    def wrong(context: Context) -> dict[str, Any]:
        context.write(pa.table({"fact_id": ["a"]}))
        return {}

    extended.world.use(*extended.world.stages[:-1], replace(extended.extra, run=wrong))
    with pytest.raises(MeowError, match="counts: column num_stop_words is missing"):
        extended.run()
    assert extended.state() == ("missing", "never run")


def test_a_missing_outside_file_stops_the_run_before_any_stage(extended: Extended):
    extended.words.unlink()
    with pytest.raises(MeowError, match=r"stop_words\.txt: there is no such file"):
        extended.world.run()
    assert extended.world.ran == []


# --- with the real stages and the public API ------------------------------------------------------


@pytest.fixture
def facts_file(tmp_path: Path) -> str:
    row = {"fact_id": "a", "split": "forget", "question": "Where?", "answer": "the north"}
    path = tmp_path / "facts.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMAS["facts"]), path)
    return str(path)


def test_it_is_one_of_the_stages_of_the_real_pipeline(tmp_path: Path):
    words = tmp_path / "stop_words.txt"
    words.write_text("the of")
    pipeline = Pipeline(load_config(), stages=(*STAGES, stage_reading(words)))
    assert [step.name for step in pipeline.selection("count", None, None)] == ["count"]
    assert pipeline.selection(None, None, None)[-1].name == "count"
    with pytest.raises(MeowError, match=r"Choose from ingest, .*, report, count\.$"):
        pipeline.selection("nonsense", None, None)


def test_the_public_api_runs_it(tmp_path: Path, facts_file: str):
    words = tmp_path / "stop_words.txt"
    words.write_text("the of")
    events: list[str] = []

    def run(on_event: Callable[[Any], Any]) -> Artifact:
        return meow_ray.run_stage(
            "count",
            overrides=[f"storage.root={tmp_path}/root"],
            inputs={"facts": facts_file},
            stages=(*STAGES, stage_reading(words)),
            on_event=on_event,
        )

    artifact = run(lambda event: events.append(json.dumps(event.as_row())))
    assert artifact.table.to_pylist() == [{"fact_id": "a", "num_stop_words": 1}]
    assert [json.loads(text)["event"] for text in events] == ["started", "finished"]
    assert run(print) == artifact


def test_the_public_api_takes_its_artifact(tmp_path: Path):
    path = write_counts(tmp_path / "mine.parquet", fact_id=["a"], num_stop_words=[7])
    words = tmp_path / "stop_words.txt"
    words.write_text("the of")

    def total(context: Context) -> dict[str, Any]:
        values = counts_of(context.inputs["counts"])
        context.write(pa.table({"total": pa.array([sum(values)], pa.int32())}))
        return {}

    reader = Stage(
        name="total",
        artifact="totals",
        version=1,
        sections=(),
        inputs=("counts",),
        run=total,
        schema=pa.schema([("total", pa.int32())]),
        key=("total",),
    )
    artifact = meow_ray.run_stage(
        "total",
        overrides=[f"storage.root={tmp_path}/root"],
        inputs={"counts": path},
        stages=(stage_reading(words), reader),
        on_event=str,
    )
    assert artifact.table.to_pylist() == [{"total": 7}]
