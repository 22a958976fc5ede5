"""What comes from outside the pipeline: inputs that no stage makes, and tables that were made elsewhere."""

from collections.abc import Callable
from dataclasses import dataclass

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import MAIN, Artifact
from meow_ray.core.tables import TableSource

LARGE = 100_000
"""Tables with at least this many rows are queried from their files instead of being loaded."""

Resolve = Callable[[Config, bool], Artifact]
"""Finds an input by the configuration; True as second argument hashes files again."""

Adopt = Callable[[str, str, bool], Artifact]
"""Takes what a user gives with `--input NAME=URI`: name, URI, and whether files are hashed again."""


@dataclass(frozen=True)
class OutsideInput:
    """An input that no stage makes: a model, data files, settings that live in a file.

    Attributes:
        name: the name under which the stage finds it in `Context.inputs`, and which enters its fingerprint.
        resolve: finds it by the configuration. Its digest is that of the content, never of a path.
        adopt: takes a replacement from `--input NAME=URI`; None refuses one.
    """

    name: str
    resolve: Resolve
    adopt: Adopt | None = None


def adopt_table(name: str, uri: str, verify: bool) -> Artifact:
    """Takes a Parquet file or folder as the table `name`; its columns and keys are checked.

    Raises:
        MeowError: there is no such file, or a column is missing or of another type.
    """
    uri = storage.absolute(uri)
    where = storage.display(uri)
    files = main_files(uri)
    table: TableSource = files
    if tables.count_rows(files) >= LARGE:
        checks.check_columns(tables.columns(files), name, where)
    else:
        table = checks.conform(storage.read_table(files), name, where)
    return Artifact(name, uri, storage.content_digest(uri, verify=verify), value=table)


def main_files(uri: str) -> list[str]:
    """Returns the Parquet files at a URI; of an artifact's folder only the file of its main table."""
    files = storage.parquet_files(uri)
    return [file for file in files if file.endswith(f"/{MAIN}")] or files
