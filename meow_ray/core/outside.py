"""Inputs from outside the pipeline: models, data files, and tables that were made elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import MAIN, Artifact
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.tables import TableSource
from meow_ray.errors import MeowError

PARQUET = b"PAR1"
"""The first bytes of a Parquet file."""

LARGE = 100_000
"""Tables with at least this many rows are queried from their files instead of being loaded."""

Resolve = Callable[[Config, bool], Artifact]
"""Finds an input. Arguments: the configuration; whether to read files whose digest is known."""

Adopt = Callable[[str, str, bool], Artifact]
"""Takes `--input NAME=URI`. Arguments: name, URI; whether to read files whose digest is known."""


@dataclass(frozen=True)
class OutsideInput:
    """An input that no stage makes: a model, data files, or a file with settings.

    Attributes:
        name: key of the input in `Context.inputs` and in the fingerprint of the stage.
        resolve: finds the input by the configuration. The digest must depend on the content, never
            on the path.
        adopt: takes a replacement from `--input NAME=URI`; None refuses it.
    """

    name: str
    resolve: Resolve
    adopt: Adopt | None = None


def adopt_table(name: str, uri: str, verify: bool) -> Artifact:
    """Returns a Parquet file or folder as the table `name`, after a check of columns and keys.

    Of a table with `LARGE` rows or more, only the columns are checked here.

    Args:
        name: name of an artifact of `core.schema`, such as `candidates`.
        uri: the file or folder.
        verify: read the files even if their digests are remembered.

    Raises:
        MeowError: there is no such file, a column is missing or of another type, or two rows have
            the same key.
    """
    return table_adopter(SCHEMAS[name], KEYS[name])(name, uri, verify)


def table_adopter(schema: pa.Schema, key: Sequence[str]) -> Adopt:
    """Returns the same for a stage that declares a table of its own: its schema and its key."""

    def adopt(name: str, uri: str, verify: bool) -> Artifact:
        uri = storage.absolute(uri)
        where = storage.display(uri)
        files = main_files(uri)
        for file in files:
            _check_is_parquet(file, name)
        table: TableSource = files
        if tables.count_rows(files) >= LARGE:
            checks.check_columns(tables.columns(files), name, schema, where)
        else:
            table = checks.conform_to(storage.read_table(files), name, schema, key, where)
        digest = storage.content_digest(uri, verify=verify)
        return Artifact(name=name, uri=uri, digest=digest, value=table)

    return adopt


def main_files(uri: str) -> list[str]:
    """Returns the URIs of the Parquet files in a folder; of an artifact, only its main table's."""
    files = storage.parquet_files(uri)
    main = [file for file in files if file.endswith(f"/{MAIN}")]
    return main or files


def is_parquet(uri: str) -> bool:
    """Tells whether a file is Parquet, by its first bytes."""
    fs, path = storage.filesystem(uri)
    with storage.naming_errors(uri), fs.open_input_file(path) as file:
        return bool(file.read(len(PARQUET)) == PARQUET)


def _check_is_parquet(uri: str, table: str) -> None:
    if not is_parquet(uri):
        raise MeowError(
            f"{storage.display(uri)}: not a Parquet file. `--input {table}` takes the table "
            f"{table} as Parquet: a file, or a folder of them, as `--output` writes it."
        )
