"""Running a stage: what it writes, crashes, and two drivers on one storage root."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, MANIFEST, REJECTS_FILE, Artifact, find, load
from meow_ray.core.stage import Context, execute
from meow_ray.errors import MeowError
from tests.support.stages import FACTS, INPUTS, files, make_stage, run_stage, state, write_facts


def write_table(table: pa.Table) -> Callable[[Context], dict[str, Any]]:
    """Returns a function for `Stage.run` that writes a table."""
    return lambda context: context.write(table) or {}


# --- what a stage writes ------------------------------------------------------------------------


def test_a_table_has_the_columns_of_the_schema_in_order_and_others_last(config: Config):
    columns = {name: FACTS[name].cast(pa.large_string()) for name in reversed(FACTS.column_names)}
    made = run_stage(make_stage(write_table(pa.table({"note": [1], **columns}))), config)
    written = storage.read_table(list(made.source))
    assert written.equals(FACTS.append_column("note", pa.array([1])))
    assert made.table.equals(written)


def test_a_second_table_may_have_any_columns(config: Config):
    reasons = pa.table({"reason": ["x", "x"]})

    def write_both(context: Context) -> dict[str, Any]:
        context.write(FACTS)
        context.write(reasons, REJECTS_FILE)
        return {}

    made = run_stage(make_stage(write_both), config)
    assert made.extra(REJECTS_FILE).equals(reasons)
    assert made.table.equals(FACTS)
    assert made.manifest is not None
    assert made.manifest.rows == 1
    assert made.manifest.files[REJECTS_FILE].rows == 2


def test_a_stage_may_write_its_table_itself(config: Config):
    def write(context: Context) -> dict[str, Any]:
        storage.write_table(FACTS, context.path())
        return {}

    assert run_stage(make_stage(write), config).table.equals(FACTS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (FACTS.drop_columns(["answer"]), "column answer is missing"),
        (pa.concat_tables([FACTS, FACTS]), "1 keys occur in more than one row"),
        (FACTS.set_column(0, "fact_id", pa.nulls(1, pa.string())), "empty cells"),
    ],
)
def test_a_table_that_does_not_fit_its_schema_is_not_published(
    config: Config, table: pa.Table, message: str
):
    with pytest.raises(MeowError, match=f"^table facts: .*{message}"):
        run_stage(make_stage(write_table(table)), config)
    assert files(config) == []
    assert state(make_stage(), config).state == "missing"


def test_a_stage_that_writes_no_table_is_not_published(config: Config):
    with pytest.raises(AssertionError, match="stage ingest wrote no table"):
        run_stage(make_stage(lambda context: {}), config)
    assert files(config) == []
    assert state(make_stage(), config).state == "missing"


def test_a_stage_without_a_schema_may_write_anything(config: Config):
    def write_page(context: Context) -> dict[str, Any]:
        storage.write_bytes(context.path("page.html"), b"<p>")
        return {}

    made = run_stage(make_stage(write_page, artifact="report", schema=None, key=()), config)
    assert made.files == ("page.html",)
    assert made.manifest is not None
    assert made.manifest.rows is None


# --- crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, MeowError, KeyboardInterrupt, SystemExit])
def test_a_crash_leaves_no_artifact(config: Config, error: type[BaseException]):
    def crash(context: Context) -> dict[str, Any]:
        write_facts(context)
        raise error("stop")

    with pytest.raises(error):
        run_stage(make_stage(crash), config)
    assert files(config) == []
    assert state(make_stage(), config).state == "missing"
    assert run_stage(make_stage(), config).table.equals(FACTS)


def test_unfinished_work_is_found_after_an_interrupt_and_deleted_at_the_end(config: Config):
    folders: list[str] = []

    def interrupted_once(context: Context) -> dict[str, Any]:
        folders.append(context.work)
        done = storage.join(context.work, "done.json")
        if not storage.exists(done):
            storage.write_json(done, 1)
            raise KeyboardInterrupt
        return write_facts(context)

    with pytest.raises(KeyboardInterrupt):
        run_stage(make_stage(interrupted_once), config)
    run_stage(make_stage(interrupted_once), config)
    assert folders[0] == folders[1]
    assert not storage.exists(folders[0])


def test_files_of_a_killed_driver_are_no_artifact_and_do_not_disturb_the_next_run(
    config: Config, monkeypatch: pytest.MonkeyPatch
):
    def kill(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_json", kill)  # all files are written, but not the manifest
        with pytest.raises(KeyboardInterrupt):
            run_stage(make_stage(), config)
    assert state(make_stage(), config).state == "missing"
    assert run_stage(make_stage(), config).table.equals(FACTS)
    assert state(make_stage(), config).state == "cached"


def test_readers_read_the_attempt_that_the_manifest_names(config: Config):
    made = run_stage(make_stage(), config)
    other_attempt = Path(made.uri).parent / "another"
    other_attempt.mkdir()
    storage.write_table(FACTS.slice(1), str(other_attempt / MAIN))
    artifact = state(make_stage(), config).artifact
    assert artifact is not None
    assert artifact.uri == made.uri
    assert artifact.table.equals(FACTS)


# --- two drivers --------------------------------------------------------------------------------


def write_other_facts(context: Context) -> dict[str, Any]:
    context.write(FACTS.set_column(3, "answer", pa.array(["of the second driver"])))
    return {}


def test_the_first_manifest_wins_and_the_second_driver_uses_it(config: Config):
    published: list[Artifact] = []

    def overtaken(context: Context) -> dict[str, Any]:
        published.append(run_stage(make_stage(), config))
        return write_other_facts(context)

    made = run_stage(make_stage(overtaken), config)
    assert made == published[0]
    assert made.table.equals(FACTS)
    assert sorted(name.rsplit("/", 1)[-1] for name in files(config)) == sorted([MANIFEST, MAIN])


def test_a_driver_that_fails_uses_the_artifact_that_another_published_meanwhile(config: Config):
    def overtaken(context: Context) -> dict[str, Any]:
        run_stage(make_stage(), config)
        raise RuntimeError("the worker died")

    assert run_stage(make_stage(overtaken), config).table.equals(FACTS)


def test_a_driver_that_started_before_another_published_uses_its_artifact(config: Config):
    early = state(make_stage(), config)
    late = state(make_stage(write_other_facts), config)
    made = execute(early, config, INPUTS)
    assert execute(late, config, INPUTS) == made
    assert len([name for name in files(config) if name.endswith(MANIFEST)]) == 1


def test_a_forced_run_gets_a_new_folder_and_wins(config: Config):
    first = run_stage(make_stage(), config)
    before = {name: (Path(config.storage.root) / name).read_bytes() for name in files(config)}
    second = run_stage(make_stage(write_other_facts), config)
    assert Path(second.uri).parent.name == Path(first.uri).parent.name.replace("-1", "-2")
    assert {name: (Path(config.storage.root) / name).read_bytes() for name in before} == before
    assert first.manifest is not None
    assert find(config.storage.root, "facts", first.manifest.fingerprint) == second
    for number in range(3, 12):
        assert Path(run_stage(make_stage(), config).uri).parent.name.endswith(f"-{number}")


def test_artifacts_are_ordered_by_number_and_not_by_name(config: Config):
    for _ in range(10):
        made = run_stage(make_stage(), config)
    assert state(make_stage(), config).artifact == made
    assert load(str(Path(made.uri).parent)) == made
