import gzip
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray import inversion, schema, storage
from meow_ray import pipeline as pipeline_module
from meow_ray.config_files import load_config
from meow_ray.errors import MeowError
from meow_ray.facts import fact_id
from meow_ray.pipeline import Pipeline
from meow_ray.stage import MAIN, Artifact, Context, Stage, execute
from meow_ray.stages import STAGES

Run = Callable[[Context], dict[str, Any]]


class World:
    """Three small stages over one data file: ingest (facts), select (selected), report (a page)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data, self.root, self.ran = folder / "facts.jsonl", folder / "root", []
        self.runs: dict[str, Run] = {"ingest": self._ingest, "select": self._select, "report": self._report}
        self.stages = (
            Stage("ingest", "facts", 1, ("ingest",), ("data",), self._calls("ingest")),
            Stage("select", "selected", 1, ("select",), ("facts",), self._calls("select")),
            Stage("report", "report", 1, ("report",), ("facts", "selected"), self._calls("report")),
        )
        self._patch = monkeypatch
        self.use(*self.stages)
        self.write("A", "B")

    def use(self, *stages: Stage) -> None:
        self._patch.setattr(pipeline_module, "STAGES", stages)

    def write(self, *answers: str) -> None:
        self.data.write_text("".join(json.dumps({"question": "Q", "answer": text}) + "\n" for text in answers))

    def pipeline(self, *overrides: str, **options: Any) -> Pipeline:
        return Pipeline(
            load_config(None, [f"ingest.forget={self.data}", f"storage.root={self.root}", *overrides]), **options
        )

    def run(
        self,
        *overrides: str,
        only: str | None = None,
        start: str | None = None,
        until: str | None = None,
        **options: Any,
    ) -> list[str]:
        """Runs what is asked for; returns the names of the stages that were executed."""
        pipeline, before = self.pipeline(*overrides), len(self.ran)
        self.said: list[str] = []
        pipeline.run(pipeline.selection(only, start, until), say=self.said.append, **options)
        return self.ran[before:]

    def states(self, *overrides: str, **options: Any) -> dict[str, tuple[str, str]]:
        before = len(self.ran)
        found = {s.stage.name: (s.state, s.reason) for s in self.pipeline(*overrides, **options).states()}
        assert len(self.ran) == before, "to ask for states runs nothing"
        return found

    def files(self) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in sorted(self.root.rglob("*")) if path.is_file()}

    def _calls(self, name: str) -> Run:
        def run(context: Context) -> dict[str, Any]:
            self.ran.append(name)
            return self.runs[name](context)

        return run

    def _ingest(self, context: Context) -> dict[str, Any]:
        rows = [json.loads(line) for line in Path(context.inputs["data"].value["forget"].path).read_text().splitlines()]
        facts = [row | {"fact_id": fact_id(row["question"], row["answer"]), "split": "forget"} for row in rows]
        context.write(pa.Table.from_pylist(facts, schema=schema.SCHEMAS["facts"]))
        return {"forget": len(facts)}

    def _select(self, context: Context) -> dict[str, Any]:
        rows = context.inputs["facts"].table.to_pylist()[: context.config.select.top_k]
        made = [row | {"candidate_id": 0, "rank": 0, "memo": 0.5} for row in rows]
        context.write(pa.Table.from_pylist(made, schema=schema.SCHEMAS["selected"]))
        return {}

    def _report(self, context: Context) -> dict[str, Any]:
        count = context.inputs["selected"].table.num_rows
        storage.write_bytes(storage.join(context.out, "report.html"), f"{context.config.report.title} {count}".encode())
        return {}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


ALL = ["ingest", "select", "report"]
CACHED = dict.fromkeys(ALL, ("cached", ""))


# --- the cache --------------------------------------------------------------------------------------------------------


def test_nothing_is_there_at_first(world: World):
    assert world.states() == {
        "ingest": ("missing", "never run"),
        "select": ("missing", "waits for facts"),
        "report": ("missing", "waits for facts, selected"),
    }
    assert not world.root.exists()


def test_all_stages_run_once_and_are_cached_then(world: World):
    assert world.run() == ALL
    assert world.said[0] == "[1/3] ingest: never run"
    assert world.said[1].startswith("[1/3] ingest: 2 rows in ")
    before = world.files()
    assert world.states() == CACHED
    assert world.run() == []
    assert world.said == ["[1/3] ingest: cached", "[2/3] select: cached", "[3/3] report: cached"]
    assert world.files() == before


def test_a_run_returns_the_states_afterwards(world: World):
    pipeline = world.pipeline()
    states = pipeline.run(pipeline.selection(None, None, None), say=str)
    assert [(s.stage.name, s.state) for s in states] == [(name, "cached") for name in ALL]
    rows = [s.as_row() for s in states]
    assert [row["rows"] for row in rows] == [2, 2, None]
    assert [Path(row["uri"]).parts[-3] for row in rows] == ["facts", "selected", "report"]
    assert json.loads(json.dumps(rows)) == rows


def test_a_changed_key_makes_its_stage_stale_and_says_which(world: World):
    world.run()
    assert world.states("select.top_k=1") == CACHED | {
        "select": ("stale", "select.top_k: 3 → 1"),
        "report": ("stale", "waits for selected"),
    }
    assert world.run("select.top_k=1") == ["select", "report"]
    assert world.said[:2] == ["[1/3] ingest: cached", "[2/3] select: select.top_k: 3 → 1"]
    assert world.states("select.top_k=1") == CACHED


def test_going_back_to_what_ran_before_runs_nothing(world: World):
    world.run()
    world.run("select.top_k=1")
    assert world.states() == CACHED
    assert world.run() == []


def test_the_reason_compares_with_the_last_run_and_not_with_an_older_one(world: World):
    for value in (3, 1, 7):
        world.run(f"select.top_k={value}")
    assert world.states("select.top_k=4")["select"] == ("stale", "select.top_k: 7 → 4")


def test_equal_output_stops_the_change_from_going_further(world: World):
    world.run()
    assert world.run("select.top_k=2") == ["select"]
    assert world.states("select.top_k=2") == CACHED


@pytest.mark.parametrize(
    "override",
    ["resources.memo.num_actors=4", "resources.train.num_workers=2", "resources.autoscaling=true", "memo.stride=9"],
)
def test_resources_and_other_sections_change_nothing(world: World, override: str):
    world.run()
    assert world.states(override) == CACHED
    assert world.run(override) == []


def test_a_changed_byte_of_the_data_is_noticed(world: World):
    world.run()
    world.write("A", "C")
    os.utime(world.data, ns=(10**18, 10**18))
    assert world.states()["ingest"] == ("stale", "input data changed")
    assert world.run() == ALL


def test_a_byte_changed_behind_the_times_back_is_noticed_by_verify(world: World):
    os.utime(world.data, ns=(10**18, 10**18))
    world.run()
    world.write("A", "C")
    os.utime(world.data, ns=(10**18, 10**18))
    assert world.states() == CACHED
    assert world.states(verify=True)["ingest"] == ("stale", "input data changed")


def test_moved_data_is_the_same_data(world: World):
    world.run()
    world.data = world.data.rename(world.data.with_name("moved.jsonl"))
    assert world.states() == CACHED


def test_a_raised_code_version_is_a_reason(world: World):
    world.run()
    ingest, select, report = world.stages
    world.use(ingest, replace(select, version=2), report)
    assert world.states()["select"] == ("stale", "code version: 1 → 2")
    assert world.run() == ["select"]


def test_a_changed_schema_is_a_reason(world: World, monkeypatch: pytest.MonkeyPatch):
    world.run()
    wider = schema.SCHEMAS["selected"].append(pa.field("note", pa.string()))
    monkeypatch.setitem(schema.SCHEMAS, "selected", wider)
    assert world.states()["select"] == ("stale", "schema changed")


def test_several_reasons_are_all_named(world: World):
    world.run()
    world.write("A", "C", "D")
    assert world.states("ingest.on_reject=skip")["ingest"] == (
        "stale",
        "input data changed; ingest.on_reject: 'fail' → 'skip'",
    )


# --- which stages run -------------------------------------------------------------------------------------------------


def test_only_from_and_until_choose_stages(world: World):
    pipeline = world.pipeline()

    def names(*options: str | None) -> list[str]:
        return [s.name for s in pipeline.selection(*options)]

    assert names(None, None, None) == ALL
    assert names("select", None, None) == ["select"]
    assert names(None, "select", None) == ["select", "report"]
    assert names(None, None, "select") == ["ingest", "select"]
    assert names(None, "select", "select") == ["select"]


@pytest.mark.parametrize(
    ("options", "option"), [(("x",), "--only"), ((None, "x"), "--from"), ((None, None, "x"), "--until")]
)
def test_an_unknown_stage_is_refused_with_those_there_are(world: World, options: tuple, option: str):
    only, start, until = (*options, None, None)[:3]
    with pytest.raises(MeowError, match=f"^{option} x: there is no such stage here; there are ingest, select, report"):
        world.pipeline().selection(only, start, until)


def test_a_first_stage_behind_the_last_is_refused(world: World):
    with pytest.raises(MeowError, match=r"--from report.*--until ingest"):
        world.pipeline().selection(None, "report", "ingest")


def test_stages_before_the_first_must_be_cached(world: World):
    with pytest.raises(MeowError) as caught:
        world.run(only="select")
    said = "Stage select needs facts, which is not there (stage ingest: never run)."
    assert str(caught.value).startswith(said)
    assert "--until ingest" in str(caught.value)
    assert "--input facts=URI" in str(caught.value)
    assert world.run(until="ingest") == ["ingest"]
    assert world.run(only="select") == ["select"]
    assert world.run(start="select") == ["report"]


def test_only_runs_nothing_else_even_where_something_is_stale(world: World):
    world.run()
    assert world.run("report.title=New", "select.top_k=1", only="select") == ["select"]
    assert world.states("report.title=New", "select.top_k=1")["report"][0] == "stale"


# --- force ------------------------------------------------------------------------------------------------------------


def test_force_makes_a_new_attempt_and_never_overwrites(world: World):
    world.run()
    before = world.files()
    assert world.run(force=True) == ALL
    assert world.said[0] == "[1/3] ingest: forced"
    after = world.files()
    assert {path: after[path] for path in before} == before
    assert len([path for path in after if path.endswith("MANIFEST.json")]) == 6
    assert world.states() == CACHED


def test_what_follows_a_forced_stage_runs_again_only_if_it_made_something_else(world: World):
    world.run()
    assert world.run(force=True, only="ingest") == ["ingest"]
    assert world.states() == CACHED
    world.runs["ingest"] = lambda context: (
        context.write(pa.table({"fact_id": ["x"], "split": ["forget"], "question": ["?"], "answer": ["!"]})) or {}
    )
    assert world.run(force=True, only="ingest") == ["ingest"]
    assert world.states() == CACHED | {
        "select": ("stale", "input facts changed"),
        "report": ("stale", "waits for selected"),
    }
    assert world.run() == ["select", "report"]


# --- crashes and other drivers ----------------------------------------------------------------------------------------


def crash(context: Context) -> dict[str, Any]:
    storage.write_bytes(storage.join(context.out, "half.parquet"), b"half")
    raise RuntimeError("the worker died")


def test_a_crash_leaves_no_artefact_and_what_was_finished_stays(world: World):
    whole, world.runs["select"] = world.runs["select"], crash
    with pytest.raises(RuntimeError, match="the worker died"):
        world.run()
    assert not [path for path in world.files() if "half" in path or "selected" in path]
    assert world.states() == {
        "ingest": ("cached", ""),
        "select": ("missing", "never run"),
        "report": ("missing", "waits for selected"),
    }
    world.runs["select"] = whole
    assert world.run() == ["select", "report"]


def test_a_crash_of_a_forced_stage_leaves_the_old_artefact(world: World):
    world.run()
    before = world.files()
    world.runs["select"] = crash
    with pytest.raises(RuntimeError):
        world.run(force=True, only="select")
    assert world.files() == before
    assert world.states() == CACHED


def test_of_two_drivers_the_first_manifest_wins(world: World):
    whole, first = world.runs["select"], []

    def overtaken(context: Context) -> dict[str, Any]:
        world.runs["select"] = whole
        first.append(world.pipeline().run(list(world.stages), say=str))
        return whole(context)

    world.runs["select"] = overtaken
    assert world.run() == ["ingest", "select", "select", "report"], "the second driver's report is cached"
    assert len([path for path in world.files() if path.endswith("MANIFEST.json")]) == 3
    assert [s.artifact for s in world.pipeline().states()] == [s.artifact for s in first[0]]


def test_a_driver_whose_work_another_has_finished_and_cleared_uses_what_the_other_made(world: World):
    whole = world.runs["select"]

    def overtaken(context: Context) -> dict[str, Any]:
        world.runs["select"] = whole
        storage.write_json(storage.join(context.work, "half.json"), "half of the work")
        world.run()
        storage.read_json(storage.join(context.work, "half.json"))
        return whole(context)

    world.runs["select"] = overtaken
    assert world.run() == ["ingest", "select", "select", "report"]
    assert world.states() == CACHED
    assert not [path for path in world.files() if "half" in path]


# --- inputs from elsewhere --------------------------------------------------------------------------------------------


def own_facts(path: Path, **columns: Any) -> str:
    table = {"fact_id": ["a"], "split": ["forget"], "question": ["Q"], "answer": ["A"]} | columns
    storage.write_table(pa.table({name: values for name, values in table.items() if values}), str(path))
    return str(path)


def test_an_input_from_elsewhere_replaces_the_stage_that_makes_it(world: World, tmp_path: Path):
    pipeline = world.pipeline(overrides={"facts": own_facts(tmp_path / "mine.parquet")})
    chosen = pipeline.selection(None, None, None)
    assert [s.name for s in chosen] == ["select", "report"]
    states = pipeline.run(chosen, say=str)
    assert isinstance(states[0].artifact, Artifact)
    assert states[0].artifact.table["answer"].to_pylist() == ["A"]
    with pytest.raises(MeowError, match="--only ingest: there is no such stage here"):
        pipeline.selection("ingest", None, None)


def test_an_input_from_elsewhere_enters_by_content(world: World, tmp_path: Path):
    mine = {"facts": own_facts(tmp_path / "mine.parquet")}
    first = world.pipeline(overrides=mine)
    first.run(first.selection(None, None, None), say=str)
    moved = {"facts": str(Path(mine["facts"]).rename(tmp_path / "moved.parquet"))}
    assert set(world.states(overrides=moved).values()) == {("cached", "")}
    own_facts(tmp_path / "moved.parquet", answer=["Another"])
    assert world.states(overrides=moved)["select"] == ("stale", "input facts changed")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nonsense", "--input nonsense: there is no artefact of that name; there are .*candidates, .*facts"),
        ("report", "no artefact"),
    ],
)
def test_an_input_that_is_no_artefact_is_refused(world: World, name: str, said: str):
    with pytest.raises(MeowError, match=said):
        world.pipeline(overrides={name: "x.parquet"})


def test_an_input_that_does_not_fit_is_named(world: World, tmp_path: Path):
    with pytest.raises(MeowError, match=r"mine\.parquet: column question is missing"):
        world.pipeline(overrides={"facts": own_facts(tmp_path / "mine.parquet", question=None)}).states()
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
@pytest.mark.parametrize("name", ["mine.parquet", "mine.jsonl", "mine.ndjson", "mine.json", "mine.csv"])
def test_candidates_need_only_question_answer_and_inverted_answer(
    world: World, tmp_path: Path, name: str, packed: bool
):
    if name == "mine.parquet":
        storage.write_table(pa.Table.from_pylist(OWN), str(tmp_path / name))
        content = (tmp_path / name).read_bytes()
    elif name == "mine.csv":
        content = as_csv(OWN)
    else:
        content = json.dumps(OWN).encode() if name == "mine.json" else "\n".join(map(json.dumps, OWN)).encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    table = candidates(world, path).table
    assert table.schema == schema.SCHEMAS["candidates"]
    assert table["fact_id"].to_pylist() == [fact_id(row["question"], row["answer"]) for row in OWN]
    assert table["inverted_answer"].to_pylist() == [row["inverted_answer"] for row in OWN]
    assert table["candidate_id"].to_pylist() == [0, 1, 0]


def test_a_mistake_in_a_file_of_candidates_is_named_with_its_line(world: World, tmp_path: Path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*OWN, {"question": "Q", "inverted_answer": "B"}]))
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
    assert table["inverted_answer"].to_pylist() == [row[name].strip() for row in rows for name in names]
    assert table["answer"].to_pylist() == [row["undesired_answer"].strip() for row in rows for _ in names]


def test_the_candidates_of_another_run_are_read_without_what_stands_beside_them(world: World, tmp_path: Path):
    folder = tmp_path / "candidates"
    storage.write_table(inversion.complete(enumerate(OWN, start=1), "mine"), str(folder / MAIN))
    storage.write_table(pa.table({"note": ["x"]}), str(folder / "rejects.parquet"))
    assert candidates(world, folder).table.num_rows == 3


# --- large inputs -----------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(pipeline_module, "LARGE", 3)
    small, large = own_memo(tmp_path / "small", ["a", "b"]), own_memo(tmp_path / "large", ["a", "b"], ["c"])
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
        ({"text": None}, r"memo: column text is missing; memo needs fact_id"),
        ({"text": None, "memo": None}, r"memo: column text, memo is missing"),
        ({"memo": pa.array(["x"] * 3)}, r"memo: column memo is string, memo needs double"),
    ],
)
def test_a_large_table_without_its_columns_is_refused_before_anything_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], said: str
):
    monkeypatch.setattr(pipeline_module, "LARGE", 3)
    folder = own_memo(tmp_path / "memo", ["a", "b", "c"], **columns)
    with pytest.raises(MeowError, match=said):
        world.pipeline(overrides={"memo": str(folder)}).artifact("memo")


def test_files_of_a_large_table_that_differ_are_refused_before_anything_runs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pipeline_module, "LARGE", 3)
    folder = own_memo(tmp_path / "memo", ["a", "b", "c"])
    storage.write_table(
        storage.read_table([str(folder / "0.parquet")]).drop_columns(["memo"]), str(folder / "1.parquet")
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


# --- the real stages --------------------------------------------------------------------------------------------------


def test_the_stages_are_those_of_the_design_in_order():
    assert [s.name for s in STAGES] == ["memorize", "ingest", "invert", "memo", "select", "train", "evaluate", "report"]
    made = [s.artefact for s in STAGES]
    assert made[1:] == ["facts", "candidates", "memo", "selected", "model", "metrics", "report"]
    outside = {"data", "memorize_data", "base", "generator", "target", "sets"}
    for i, step in enumerate(STAGES):
        assert set(step.inputs) <= outside | set(made[:i])


def test_changing_top_k_reruns_select_and_what_follows_and_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ran: list[str] = []

    def fake(stage: Stage) -> Stage:
        def run(context: Context) -> dict[str, Any]:
            ran.append(stage.name)
            if stage.artefact in schema.SCHEMAS:
                spec = {name: str(getattr(context.config, name)) for name in stage.sections if "." not in name}
                read = () if stage.name == "ingest" else context.inputs.items()
                key = json.dumps([spec, {name: a.digest for name, a in read}])
                values = {f.name: [key if f.type == pa.string() else 0] for f in schema.SCHEMAS[stage.artefact]}
                context.write(pa.table(values, schema=schema.SCHEMAS[stage.artefact]))
            else:
                digests = [a.digest for a in context.inputs.values()]
                storage.write_bytes(storage.join(context.out, "file"), json.dumps(digests).encode())
            return {}

        return replace(stage, run=run)

    monkeypatch.setattr(pipeline_module, "STAGES", tuple(fake(s) for s in STAGES))
    for name in ("target", "generator"):
        storage.write_bytes(str(tmp_path / name / "config.json"), b"{}")
        storage.write_bytes(str(tmp_path / name / "model.safetensors"), name.encode())
    (tmp_path / "forget.jsonl").write_text('{"question": "Q", "answer": "A"}')
    base = [
        f"target.model={tmp_path}/target",
        f"invert.model={tmp_path}/generator",
        f"ingest.forget={tmp_path}/forget.jsonl",
        f"storage.root={tmp_path}/root",
    ]

    def executed(*overrides: str) -> list[str]:
        pipeline, before = Pipeline(load_config(None, [*base, *overrides])), len(ran)
        pipeline.run(pipeline.selection(None, None, None), say=str)
        return ran[before:]

    every = ["ingest", "invert", "memo", "select", "train", "evaluate", "report"]
    assert executed() == every
    assert executed() == []
    assert executed("select.top_k=2") == ["select", "train", "evaluate", "report"]
    assert executed("report.title=New") == ["report"]
    assert executed("invert.seed=1") == every[1:]
    assert executed("resources.memo.num_actors=2", "resources.train.zero_stage=3") == []
    storage.write_bytes(str(tmp_path / "target" / "model.safetensors"), b"another target")
    assert executed() == [name for name in every if name != "invert"], "the facts are the same"
    states = Pipeline(load_config(None, [*base, "train.epochs=9"])).states()
    assert [(s.stage.name, s.state, s.reason) for s in states[4:]] == [
        ("train", "stale", "train.epochs: 5 → 9"),
        ("evaluate", "stale", "waits for model"),
        ("report", "stale", "waits for model, metrics"),
    ]


def test_a_pipeline_on_s3_is_cached_there(world: World, s3: Callable[[str], str]):
    root = f"storage.root={s3('pipeline')}"
    assert world.run(root) == ALL
    assert world.states(root) == CACHED
    assert world.run(root, "select.top_k=1") == ["select", "report"]
    pipeline = world.pipeline(root)
    state = pipeline.state(world.stages[0])
    assert execute(state, pipeline.config, {"data": pipeline.artifact("data")}).table.num_rows == 2
    assert world.states(root) == CACHED
