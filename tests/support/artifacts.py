"""Artifacts that a test publishes itself, without running a stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from meow_ray.core import storage
from meow_ray.core.manifest import MANIFEST, Manifest, file_entry


def publish(
    root: Path,
    name: str,
    files: Mapping[str, pa.Table | bytes],
    inputs: Mapping[str, str] | None = None,
    spec: Mapping[str, Any] | None = None,
) -> str:
    """Writes an artifact below a storage root; returns its digest.

    Args:
        root: the storage root.
        name: the name of the artifact.
        files: tables or contents by file name.
        inputs: the digests of what it was made from, by name.
        spec: the settings that it was made with.
    """
    folder = root / name / f"{name}-1"
    attempt = folder / "attempt"
    attempt.mkdir(parents=True)
    for file, content in files.items():
        if isinstance(content, pa.Table):
            storage.write_table(content, str(attempt / file))
        else:
            (attempt / file).write_bytes(content)
    entries = {file: file_entry(str(attempt / file)) for file in files}
    manifest = Manifest(
        artifact=name,
        stage=name,
        fingerprint="0",
        ingredients={"inputs": dict(inputs or {}), "spec": dict(spec or {})},
        attempt="attempt",
        files=entries,
        digest=storage.json_digest({file: entry.sha256 for file, entry in entries.items()}),
        rows=None,
        summary={"chain": []},
        started="2026-01-01T00:00:00.000000",
        seconds=0.0,
        versions={},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return manifest.digest
