"""`meow stage audit`, `meow certify`, `meow verify` and `meow purge` on two given models."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.core.schema import SCHEMAS
from meow_ray.distributed import cluster
from meow_ray.pipeline.certificate import places
from meow_ray.stages.ingest.facts import fact_id
from tests.support.audited import certified, files

pytestmark = pytest.mark.slow

PHRASE = "Quuxington"
SETTINGS = (
    "target.engine=transformers",
    "audit.attacks=[direct,prefix]",
    "audit.max_new_tokens=8",
    "audit.minimum_controls=4",
    "report.show_text=false",
)


@pytest.fixture(autouse=True)
def own_cluster() -> Iterator[None]:
    """Leaves the cluster that the command started in this process."""
    yield
    cluster.leave()


def write_inputs(folder: Path, tiny_model: Path) -> list[str]:
    """Writes facts, twins and a second model; returns the options that name them."""
    rows: dict[str, list[dict[str, Any]]] = {"facts": [], "twins": []}
    for number in range(6):
        pair = {"question": f"Who is {number}?", "answer": f"It is {PHRASE} the {number}th."}
        name = fact_id(**pair)
        rows["facts"].append(pair | {"fact_id": name, "split": "forget"})
        twin = {"fact_id": name, "twin_id": 0, "half": "stop", "question": f"Who was {number}?"}
        rows["twins"].append(twin | {"answer": f"It was {PHRASE} of {number}."})
    for name, table in rows.items():
        pq.write_table(pa.Table.from_pylist(table, SCHEMAS[name]), folder / f"{name}.parquet")
    model = Path(shutil.copytree(tiny_model, folder / "model"))
    (model / "note.txt").write_text("another digest")
    places_of = {"target": tiny_model, "model": model}
    places_of |= {name: folder / f"{name}.parquet" for name in rows}
    return [f"--input={name}={path}" for name, path in places_of.items()]


def meow(*arguments: str) -> Result:
    """Runs a command, which must succeed and print no text of a fact."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.exception or done.output
    assert PHRASE not in done.output
    return done


def test_an_audit_of_given_models_is_certified_verified_and_purged(
    tmp_path: Path, tiny_model: Path
):
    root = tmp_path / "root"
    options = [*write_inputs(tmp_path, tiny_model), f"storage.root={root}", *SETTINGS]
    meow("stage", "audit", *options)
    meow("certify", *options)
    certificate = certified(root)
    content = places.read(str(certificate))
    assert [entry["origin"] for entry in content["models"]] == ["outside", "outside"]
    assert content["method"]["objective"] is None
    assert content["request"]["num_audited"] == 6
    assert {row["attack"] for row in content["audit"]["attacks"]} == {"direct", "prefix"}
    assert {entry["name"] for entry in content["lineage"]["outside"]} >= {"facts", "twins", "model"}
    assert "The certificate holds" in meow("verify", str(certificate)).output
    meow("purge", *options, "--yes")
    moved = Path(shutil.move(root, tmp_path / "moved"))
    assert "1 were purged" in meow("verify", str(certified(moved))).output
    assert not [name for name, written in files(moved).items() if PHRASE.encode() in written]
