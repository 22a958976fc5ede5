from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, MANIFEST, Artifact, Manifest, find, latest, load
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.stage import Context, Stage, differences, execute, state_of
from meow_ray.errors import MeowError

FACTS = pa.table(
    {"fact_id": ["a"], "split": ["forget"], "question": ["A?"], "answer": ["A"]},
    schema=SCHEMAS["facts"],
)
DATA = Artifact("data", "", "digest of the data")


def write_facts(context: Context) -> dict[str, Any]:
    context.write(FACTS)
    return {"forget": 1}


def a_stage(run: Callable[[Context], dict[str, Any]] = write_facts, **fields: Any) -> Stage:
    return replace(
        Stage("ingest", "facts", 1, ("ingest", "target.max_model_len"), ("data",), run), **fields
    )


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config.model_validate({"storage": {"root": str(tmp_path / "root")}})


def run(stage: Stage, config: Config, data: Artifact = DATA) -> Artifact:
    return execute(state_of(stage, config, {"data": data}), config, {"data": data})


def files(config: Config) -> list[str]:
    return storage.list_files(config.storage.root)


# --- fingerprints -------------------------------------------------------------------------------


def test_ingredients_are_name_version_schema_spec_and_digests(config: Config):
    assert a_stage().ingredients(config, {"data": "d", "another": "e"}) == {
        "stage": "ingest",
        "version": 1,
        "schema": {
            "fact_id": "string",
            "split": "string",
            "question": "string",
            "answer": "string",
        },
        "spec": {
            "ingest": {
                "question_columns": ["question"],
                "answer_columns": ["answer", "undesired_answer"],
                "on_reject": "fail",
            },
            "target.max_model_len": None,
        },
        "inputs": {"data": "d"},
    }
    assert a_stage(artifact="report").ingredients(config, {"data": "d"})["schema"] is None


def test_a_fingerprint_is_the_digest_of_the_ingredients(config: Config):
    state = state_of(a_stage(), config, {"data": DATA})
    assert state.fingerprint == storage.json_digest(
        a_stage().ingredients(config, {"data": DATA.digest})
    )


@pytest.mark.parametrize(
    "change", [{"name": "other"}, {"version": 2}, {"sections": ("ingest",)}, {"artifact": "memo"}]
)
def test_what_a_stage_is_changes_its_fingerprint(config: Config, change: dict[str, Any]):
    fingerprints = {
        state_of(s, config, {"data": DATA}).fingerprint for s in (a_stage(), a_stage(**change))
    }
    assert len(fingerprints) == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"version": 1}, {"version": 2}, ["code version: 1 → 2"]),
        (
            {"spec": {"select": {"top_k": 3}}},
            {"spec": {"select": {"top_k": 2}}},
            ["select.top_k: 3 → 2"],
        ),
        ({"inputs": {"facts": "x"}}, {"inputs": {"facts": "y"}}, ["input facts changed"]),
        ({"schema": {"a": "string"}}, {"schema": {"a": "int32"}}, ["schema changed"]),
        ({"spec": {"memo": {"stride": 5}}}, {"spec": {"memo": {}}}, ["memo.stride: 5 → None"]),
        (
            {"spec": {"target.template": "raw"}},
            {"spec": {"target.template": "chat"}},
            ["target.template: 'raw' → 'chat'"],
        ),
        ({"version": 1}, {"version": 1}, []),
    ],
)
def test_differences_are_told_in_words(
    old: dict[str, Any], new: dict[str, Any], expected: list[str]
):
    assert differences(old, new) == expected


# --- what a stage sees --------------------------------------------------------------------------


def test_a_stage_sees_its_sections_its_inputs_and_the_resources(config: Config):
    seen: list[Context] = []

    def look(context: Context) -> dict[str, Any]:
        seen.append(context)
        return write_facts(context)

    state = state_of(a_stage(look), config, {"data": DATA, "target": None})
    execute(state, config, {"data": DATA, "target": DATA})
    context = seen[0]
    assert list(context.inputs) == ["data"]
    assert context.config.ingest == config.ingest
    assert context.config.resources == config.resources
    assert context.config.target.max_model_len is None
    for hidden in (
        lambda: context.config.select,
        lambda: context.config.storage,
        lambda: context.config.target.model,
    ):
        with pytest.raises(AttributeError):
            hidden()


def test_work_has_a_stable_place_and_is_gone_when_the_stage_is_done(config: Config):
    seen: list[str] = []

    def interrupted_once(context: Context) -> dict[str, Any]:
        seen.append(context.work)
        done = storage.join(context.work, "done.json")
        if not storage.exists(done):
            storage.write_json(done, 1)
            raise KeyboardInterrupt
        return write_facts(context)

    with pytest.raises(KeyboardInterrupt):
        run(a_stage(interrupted_once), config)
    run(a_stage(interrupted_once), config)
    assert seen[0] == seen[1]
    assert not storage.exists(seen[0])


# --- artifacts ----------------------------------------------------------------------------------


def test_the_manifest_says_what_the_artifact_is(config: Config):
    def two_files(context: Context) -> dict[str, Any]:
        context.write(FACTS, "rejects.parquet")
        return write_facts(context)

    made = run(a_stage(two_files), config)
    manifest = Manifest.model_validate(storage.read_json(str(Path(made.uri).parent / MANIFEST)))
    assert manifest == made.manifest
    assert (manifest.stage, manifest.artifact, manifest.rows, manifest.summary) == (
        "ingest",
        "facts",
        1,
        {"forget": 1},
    )
    assert manifest.fingerprint == storage.json_digest(manifest.ingredients)
    assert set(manifest.files) == set(made.files) == {MAIN, "rejects.parquet"}
    for name, entry in manifest.files.items():
        path = storage.join(made.uri, name)
        assert (entry.bytes, entry.sha256, entry.rows) == (
            Path(path).stat().st_size,
            storage.file_digest(path),
            1,
        )
    assert {"meow-ray", "pyarrow", "torch"} <= set(manifest.versions)
    assert made.table.equals(FACTS)
    assert made.extra("rejects.parquet").equals(FACTS)


def test_equal_content_has_an_equal_digest(config: Config):
    first, second = run(a_stage(), config), run(a_stage(version=2), config)
    assert first.digest == second.digest
    assert first.uri != second.uri


def test_a_root_may_be_moved(config: Config, tmp_path: Path):
    run(a_stage(), config)
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = Config.model_validate({"storage": {"root": str(tmp_path / "moved")}})
    found = state_of(a_stage(), moved, {"data": DATA}).artifact
    assert found is not None
    assert found.table.equals(FACTS)


def test_latest_is_what_was_finished_last_even_within_a_second(config: Config):
    for version in (1, 2, 3, 4, 5):
        made = run(a_stage(version=version), config)
        newest = latest(config.storage.root, "facts")
        assert newest is not None
        assert newest.uri == made.uri


def test_nothing_is_found_in_an_empty_root(config: Config):
    root = config.storage.root
    assert (
        find(root, "facts", "0" * 64)
        is latest(root, "facts")
        is load(storage.join(root, "facts"))
        is None
    )


@pytest.mark.parametrize("manifest", ["{", "[]", '{"artifact": "facts"}'])
def test_a_broken_manifest_is_named(config: Config, manifest: str):
    made = run(a_stage(), config)
    path = Path(made.uri).parent / MANIFEST
    path.write_text(manifest)
    with pytest.raises(MeowError, match=str(path)):
        state_of(a_stage(), config, {"data": DATA})


# --- crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, MeowError, KeyboardInterrupt, SystemExit])
def test_a_crash_in_run_leaves_no_artifact(config: Config, error: type[BaseException]):
    def crash(context: Context) -> dict[str, Any]:
        write_facts(context)
        raise error("stop")

    with pytest.raises(error):
        run(a_stage(crash), config)
    assert files(config) == []
    assert state_of(a_stage(), config, {"data": DATA}).state == "missing"
    assert run(a_stage(), config).table.equals(FACTS)


def write_table(table: pa.Table) -> Callable[[Context], dict[str, Any]]:
    return lambda context: context.write(table) or {}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (FACTS.drop_columns(["answer"]), "column answer is missing"),
        (pa.concat_tables([FACTS, FACTS]), "keys come more than once"),
        (FACTS.set_column(0, "fact_id", pa.nulls(1, pa.string())), "empty cells"),
    ],
)
def test_a_table_that_breaks_its_schema_is_not_published(
    config: Config, table: pa.Table, said: str
):
    with pytest.raises(MeowError, match=said):
        run(a_stage(write_table(table)), config)
    assert files(config) == []
    assert state_of(a_stage(), config, {"data": DATA}).state == "missing"


def test_a_stage_without_its_table_is_not_published(config: Config):
    with pytest.raises(AssertionError, match="stage ingest wrote no table"):
        run(a_stage(lambda context: {}), config)
    assert files(config) == []
    assert state_of(a_stage(), config, {"data": DATA}).state == "missing"


def test_what_is_written_has_the_columns_of_the_schema_in_order_and_further_ones_last(
    config: Config,
):
    columns = {name: FACTS[name].cast(pa.large_string()) for name in reversed(FACTS.column_names)}
    made = run(a_stage(write_table(pa.table({"note": [1], **columns}))), config)
    assert storage.read_table(list(made.source)).equals(FACTS.append_column("note", pa.array([1])))
    assert made.table.equals(storage.read_table(list(made.source)))


def test_a_table_beside_the_main_one_has_columns_of_its_own(config: Config):
    beside = pa.table({"reason": ["x", "x"]})
    made = run(
        a_stage(
            lambda context: context.write(FACTS) or context.write(beside, "rejects.parquet") or {}
        ),
        config,
    )
    assert made.extra("rejects.parquet").equals(beside)
    assert made.table.equals(FACTS)
    assert made.manifest is not None
    assert (made.manifest.rows, made.manifest.files["rejects.parquet"].rows) == (1, 2)


def test_a_stage_may_write_its_table_by_itself(config: Config):
    def write(context: Context) -> dict[str, Any]:
        storage.write_table(FACTS, context.path())
        return {}

    assert run(a_stage(write), config).table.equals(FACTS)


def test_the_rows_of_an_artifact_are_its_file_and_those_of_an_input_its_table_or_files(
    config: Config,
):
    made = run(a_stage(), config)
    assert made.source == [storage.join(made.uri, MAIN)]
    assert Artifact("facts", "elsewhere", "digest", value=FACTS).source is FACTS
    outside = Artifact("facts", "elsewhere", "digest", value=list(made.source))
    assert outside.source == made.source
    assert outside.table.equals(FACTS)


def test_what_a_killed_driver_left_is_no_artifact_and_in_nobodys_way(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    def killed(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", killed)  # the files stand, the manifest does not
        with pytest.raises(KeyboardInterrupt):
            run(a_stage(), config)
    assert state_of(a_stage(), config, {"data": DATA}).state == "missing"
    assert run(a_stage(), config).table.equals(FACTS)
    assert state_of(a_stage(), config, {"data": DATA}).state == "cached"


def test_readers_read_the_attempt_that_the_manifest_names(config: Config):
    made = run(a_stage(), config)
    other = Path(made.uri).parent / "another"
    other.mkdir()
    storage.write_table(FACTS.slice(1), str(other / MAIN))
    found = state_of(a_stage(), config, {"data": DATA}).artifact
    assert found is not None
    assert found.uri == made.uri
    assert found.table.equals(FACTS)


# --- two drivers --------------------------------------------------------------------------------


def other_facts(context: Context) -> dict[str, Any]:
    context.write(FACTS.set_column(3, "answer", pa.array(["of the second driver"])))
    return {}


def test_the_first_manifest_wins_and_the_other_driver_uses_it(config: Config):
    published: list[Artifact] = []

    def overtaken(context: Context) -> dict[str, Any]:
        published.append(run(a_stage(), config))
        return other_facts(context)

    made = run(a_stage(overtaken), config)
    assert made == published[0]
    assert made.table.equals(FACTS)
    assert sorted(name.rsplit("/", 1)[-1] for name in files(config)) == sorted([MANIFEST, MAIN])


def test_a_driver_that_starts_late_uses_what_was_published_meanwhile(config: Config):
    first, second = (state_of(s, config, {"data": DATA}) for s in (a_stage(), a_stage(other_facts)))
    made = execute(first, config, {"data": DATA})
    assert execute(second, config, {"data": DATA}) == made
    assert len([name for name in files(config) if name.endswith(MANIFEST)]) == 1


def test_a_stage_that_is_run_again_gets_a_new_folder_and_wins(config: Config):
    first = run(a_stage(), config)
    before = {name: (Path(config.storage.root) / name).read_bytes() for name in files(config)}
    second = run(a_stage(other_facts), config)
    assert Path(second.uri).parent.name == Path(first.uri).parent.name.replace("-1", "-2")
    assert {name: (Path(config.storage.root) / name).read_bytes() for name in before} == before
    assert first.manifest is not None
    assert find(config.storage.root, "facts", first.manifest.fingerprint) == second
    for number in range(3, 12):
        assert Path(run(a_stage(), config).uri).parent.name.endswith(f"-{number}")


def test_the_order_of_attempts_is_that_of_numbers(config: Config):
    for _ in range(10):
        made = run(a_stage(), config)
    state = state_of(a_stage(), config, {"data": DATA})
    assert state.artifact == made
    assert load(str(Path(made.uri).parent)) == made
