"""Artifacts and their manifests: what they say, and how they are found."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import (
    MAIN,
    MANIFEST,
    REJECTS_FILE,
    Artifact,
    Manifest,
    find,
    latest,
    leftovers,
    load,
    number_of,
)
from meow_ray.core.stage import Context
from meow_ray.errors import MeowError
from tests.support.stages import FACTS, make_stage, run_stage, state, write_facts


def test_the_manifest_describes_the_artifact(config: Config):
    def write_two_files(context: Context) -> dict[str, Any]:
        context.write(FACTS, REJECTS_FILE)
        return write_facts(context)

    made = run_stage(make_stage(write_two_files), config)
    manifest = Manifest.model_validate(storage.read_json(str(Path(made.uri).parent / MANIFEST)))
    assert manifest == made.manifest
    assert manifest.stage == "ingest"
    assert manifest.artifact == "facts"
    assert manifest.rows == 1
    assert manifest.summary == {"forget": 1}
    assert manifest.fingerprint == storage.json_digest(manifest.ingredients)
    assert set(manifest.files) == set(made.files) == {MAIN, REJECTS_FILE}
    for name, entry in manifest.files.items():
        path = storage.join(made.uri, name)
        assert entry.bytes == Path(path).stat().st_size
        assert entry.sha256 == storage.file_digest(path)
        assert entry.rows == 1
    assert {"meow-ray", "pyarrow", "torch"} <= set(manifest.versions)
    assert made.table.equals(FACTS)
    assert made.extra(REJECTS_FILE).equals(FACTS)


def test_equal_content_has_an_equal_digest(config: Config):
    first = run_stage(make_stage(), config)
    second = run_stage(make_stage(version=2), config)
    assert first.digest == second.digest
    assert first.uri != second.uri


def test_a_storage_root_may_be_moved(config: Config, tmp_path: Path):
    run_stage(make_stage(), config)
    (tmp_path / "root").rename(tmp_path / "moved")
    moved = Config.model_validate({"storage": {"root": str(tmp_path / "moved")}})
    artifact = state(make_stage(), moved).artifact
    assert artifact is not None
    assert artifact.table.equals(FACTS)


def test_the_source_of_an_artifact_is_its_file_and_that_of_an_outside_input_its_value(
    config: Config,
):
    made = run_stage(make_stage(), config)
    assert made.source == [storage.join(made.uri, MAIN)]
    assert Artifact("facts", "elsewhere", "digest", value=FACTS).source is FACTS
    outside = Artifact("facts", "elsewhere", "digest", value=list(made.source))
    assert outside.source == made.source
    assert outside.table.equals(FACTS)


def test_a_table_of_an_artifact_without_a_schema_is_read_as_it_is(tmp_path: Path):
    notes = pa.table({"note": ["x"]})
    storage.write_table(notes, str(tmp_path / "notes.parquet"))
    artifact = Artifact("notes", "", "digest", value=[str(tmp_path / "notes.parquet")])
    assert artifact.table.equals(notes)


# --- finding artifacts --------------------------------------------------------------------------


def test_the_latest_artifact_is_found_even_within_a_second(config: Config):
    for version in (1, 2, 3, 4, 5):
        made = run_stage(make_stage(version=version), config)
        newest = latest(config.storage.root, "facts")
        assert newest is not None
        assert newest.uri == made.uri


def test_an_empty_root_has_no_artifacts(config: Config):
    root = config.storage.root
    assert find(root, "facts", "0" * 64) is None
    assert latest(root, "facts") is None
    assert load(storage.join(root, "facts")) is None
    assert leftovers(root, "facts") == []


@pytest.mark.parametrize("manifest", ["{", "[]", '{"artifact": "facts"}'])
def test_a_broken_manifest_is_named(config: Config, manifest: str):
    made = run_stage(make_stage(), config)
    path = Path(made.uri).parent / MANIFEST
    path.write_text(manifest)
    with pytest.raises(MeowError, match=f"^{path}: not "):
        state(make_stage(), config)


def test_a_manifest_of_version_0_1_is_read(config: Config):
    made = run_stage(make_stage(), config)
    path = Path(made.uri).parent / MANIFEST
    path.write_text(path.read_text().replace('"artifact"', '"artefact"'))
    assert load(str(path.parent)) == made


@pytest.mark.parametrize(
    ("folder", "number"),
    [
        ("facts/0123456789abcdef-2", 2),
        ("0123456789abcdef-12", 12),
        ("s3://bucket/facts/0123456789abcdef-3?scheme=http", 3),
        ("facts/0123456789abcdef", 0),
        ("facts/0123456789abcdef-x", 0),
    ],
)
def test_the_number_of_an_artifact_is_at_the_end_of_its_folder(folder: str, number: int):
    assert number_of(folder) == number


def test_leftovers_are_the_folders_that_no_manifest_names(config: Config):
    made = run_stage(make_stage(), config)
    other_attempt = Path(made.uri).parent / "another"
    never_published = Path(made.uri).parents[1] / "0123456789abcdef-1" / "attempt"
    for folder in (other_attempt, never_published):
        folder.mkdir(parents=True)
        storage.write_table(FACTS, str(folder / MAIN))
    expected = sorted([str(other_attempt), str(never_published)])
    assert sorted(leftovers(config.storage.root, "facts")) == expected
