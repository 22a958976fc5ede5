"""`meow verify` accepts what `meow certify` wrote, wherever it is, and names what was changed."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.core.manifest import MAIN
from meow_ray.errors import MeowError
from meow_ray.pipeline.certificate import places
from meow_ray.pipeline.certificate.form import Difference
from meow_ray.pipeline.certificate.verify import verify
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE
from meow_ray.stages.audit.verdicts import AuditRow
from tests.support.audited import (
    artifact_file,
    certified,
    correct_manifest,
    forge,
    rewrite,
    weights_of,
)

PRUNED = weights_of(AuditRow("prune", "30 %", "static weights", "before", "facts", "", 1, 0.9))


def difference(root: Path, **options: Any) -> str:
    """Returns the first difference that `verify` finds."""
    with pytest.raises(Difference) as found:
        verify(str(certified(root)), **options)
    return str(found.value)


def test_a_root_that_was_moved_verifies_and_all_its_files_are_read(root: Path):
    found = verify(str(certified(root)))
    artifacts = ("audit", "facts", "metrics", "model", "twins")
    names = [path for name in artifacts for path in (root / name).rglob("*") if path.is_file()]
    assert found.num_files == len(names)
    assert found.num_purged == 0


def test_the_earlier_request_of_another_root_is_in_the_chain(second: Path, original: Path):
    found = verify(str(certified(second)))
    first = places.read(str(certified(original / "root")))
    assert found.certificate["earlier"] == [
        {"request": first["request"]["id"], "certificate": places.digest(first)}
    ]


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("artifact", ["audit", "facts", "metrics", "model", "twins"])
def test_a_changed_byte_of_any_file_of_any_artifact_is_named(root: Path, artifact: str):
    files = [path for path in sorted((root / artifact).rglob("*")) if path.is_file()]
    assert len(files) > 1
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        name = str(path.relative_to(root))
        assert difference(root) == f"{name}: its content is not the one that was certified."
        path.unlink()
        assert difference(root) == f"{name}: there is no such file."
        path.write_bytes(content)
    verify(str(certified(root)))


def test_a_changed_page_is_named(root: Path):
    page = certified(root).with_name(places.PAGE_FILE)
    page.write_text(page.read_text().replace("remembered", "forgotten"))
    assert difference(root) == ("certificate.html: its content is not the one that was certified.")


def test_another_salt_is_named(root: Path):
    certified(root).with_name(places.SALT_FILE).write_text("ab" * 32)
    assert "certificate.json: request.id is " in difference(root)


def test_other_blanks_in_the_certificate_are_named(root: Path):
    certificate = certified(root)
    certificate.write_text(certificate.read_text() + " ")
    assert "its bytes are not those" in difference(root)


# --- content --------------------------------------------------------------------------------------


def _first_remembered(content: dict[str, Any]) -> dict[str, Any]:
    return next(
        row
        for fact in content["verdicts"]["facts"]
        for row in fact["tiers"]
        if row["verdict"] == "remembered"
    )


def _missing(content: dict[str, Any]) -> dict[str, Any]:
    return next(entry for entry in content["audit"]["budgets"] if entry["missing"])


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "verdict": (
        lambda c: _first_remembered(c).update(verdict="forgotten"),
        ".verdict is 'forgotten' in the certificate, and 'remembered' by the artifacts.",
    ),
    "count": (
        lambda c: c["verdicts"]["counts"][0].update(facts=24),
        "verdicts.counts[0].facts is 24 in the certificate, and 21 by the artifacts.",
    ),
    "fact left out": (
        lambda c: c["verdicts"]["facts"].pop(),
        "verdicts.facts is 23 entries in the certificate, and 24 entries by the artifacts.",
    ),
    "threshold": (
        lambda c: c["audit"]["thresholds"][1]["thresholds"].__setitem__(0, 0.95),
        "audit.thresholds[1].thresholds[0] is 0.95 in the certificate, and ",
    ),
    "budget": (
        lambda c: c["audit"]["budgets"][0].update(most_attempts=64),
        "audit.budgets[0].most_attempts is 64 in the certificate, and 1 by the artifacts.",
    ),
    "interval": (
        lambda c: c["audit"]["attacks"][0].update(excess_high=0.01),
        "audit.attacks[0].excess_high is 0.01 in the certificate, and ",
    ),
    "setting": (
        lambda c: c["audit"]["settings"].update(remembered_above=0.9),
        "audit.settings.remembered_above is 0.9 in the certificate, and 0.5 by the artifacts.",
    ),
    "utility": (
        lambda c: c["metrics"][2]["after"].update(value=0.75),
        "metrics[2].after.value is 0.75 in the certificate, and 0.25 by the artifacts.",
    ),
    "model": (
        lambda c: c["models"][1].update(digest="0" * 64),
        "models[1].digest is ",
    ),
    "not tested": (
        lambda c: c["not_tested"].pop(0),
        "not_tested[0].what is ",
    ),
    "weights of a derived model": (
        lambda c: c["derived_models"][1]["made"][0].update(weights="0" * 64),
        "derived_models[1].made[0].weights is ",
    ),
    "derived model left out": (
        lambda c: c["derived_models"][1]["made"].pop(),
        "derived_models[1].made is 1 entries in the certificate, and 2 entries by the artifacts.",
    ),
    "reason of missing scores": (
        lambda c: _missing(c).update(reasons={"no_package": 24}),
        ".reasons.no_gpu is absent in the certificate, and 24 by the artifacts.",
    ),
    "unknown reason": (
        lambda c: _missing(c).update(reasons={"lost": 24}),
        ".reasons does not fit the schema (rule `enum`).",
    ),
    "input of an artifact": (
        lambda c: c["lineage"]["artifacts"][0]["inputs"].update(data="0" * 64),
        "lineage.artifacts[0].inputs.data is ",
    ),
    "version of a library": (
        lambda c: c["lineage"]["artifacts"][0]["versions"].update({"meow-ray": "9"}),
        "lineage.artifacts[0].versions.meow-ray is '9' in the certificate, and ",
    ),
    "no audit": (
        lambda c: c["lineage"]["artifacts"].pop(),
        "lineage.artifacts has no audit.",
    ),
    "unknown key": (
        lambda c: c.update(note="all is well"),
        "the whole does not fit the schema (rule `additionalProperties`).",
    ),
    "other type": (
        lambda c: c["request"].update(num_audited="24"),
        "request.num_audited does not fit the schema (rule `type`).",
    ),
    "path outside": (
        lambda c: c["lineage"]["artifacts"][0].update(folder="../elsewhere"),
        "lineage.artifacts[0].folder does not fit the schema (rule `pattern`).",
    ),
    "signed content": (
        lambda c: c["signature"].update(value="0" * 128),
        "the signature does not fit the content.",
    ),
}


def test_the_command_names_each_of_ten_changes_and_ends_with_status_1(root: Path):
    certificate = certified(root)
    content = certificate.read_bytes()
    for change, message in [*CHANGES.values()][:10]:
        rewrite(certificate, change)
        done = CliRunner().invoke(app, ["verify", str(certificate)])
        assert done.exit_code == 1
        assert done.stderr.startswith("The certificate does not hold. certificate.json: ")
        assert message in done.stderr
        certificate.write_bytes(content)
    done = CliRunner().invoke(app, ["verify", str(certificate)])
    assert done.exit_code == 0
    assert (
        "Not computed again, because only models could show it: replies and scores of the "
        "attacks, weights of 2 derived models, content of 2 inputs from outside." in done.stdout
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_certificate_is_named(root: Path, name: str):
    change, message = CHANGES[name]
    rewrite(certified(root), change)
    assert message in difference(root)


@pytest.mark.parametrize("version", [2, 17])
def test_a_newer_version_is_refused_with_both_versions(root: Path, version: int):
    rewrite(certified(root), lambda content: content.update(version=version, unknown=[]))
    with pytest.raises(MeowError) as refused:
        verify(str(certified(root)))
    assert not isinstance(refused.value, Difference)
    assert str(refused.value) == (
        f"certificate.json: its schema has version {version}, and this meow_ray reads up to "
        "version 1. Install a newer meow_ray."
    )


@pytest.mark.parametrize("content", ["[]", "{}", '{"version": "1"}', '{"version": true}', "{"])
def test_another_file_is_refused(tmp_path: Path, content: str):
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(MeowError, match=r"not a certificate|not a JSON object|not valid JSON"):
        verify(str(path))


# --- tables whose digests were corrected ----------------------------------------------------------


def _with_column(root: Path, name: str, column: str, old: Any, new: Any) -> None:
    path = artifact_file(root, "audit", name)
    table = pq.read_table(path)
    rows = table.to_pylist()
    next(row for row in rows if row[column] == old)[column] = new
    forge(root, "audit", name, pa.Table.from_pylist(rows, schema=table.schema))


@pytest.mark.parametrize(
    ("name", "column", "old", "new", "message"),
    [
        (
            VERDICTS_FILE,
            "verdict",
            "remembered",
            "forgotten",
            ".verdict is 'forgotten' in the table, and 'remembered' by the artifacts.",
        ),
        (
            SUMMARY_FILE,
            "excess",
            0.125,
            0.0,
            "audit_summary.parquet: direct.excess is 0.0 in the table, and 0.125 by the artifacts.",
        ),
        (MAIN, "extracted", True, False, "audit: `extracted` of direct before on "),
        (MAIN, "score", 0.9, 0.0, "audit: `extracted` of direct before on "),
        (MAIN, "score", 0.9, None, " has the score None and the reason None."),
        (MAIN, "reason", None, "no_gpu", " has the score 0.9 and the reason no_gpu."),
        (MAIN, "reason", "no_gpu", None, "audit: quantise nf4 before on "),
        (MAIN, "weights", PRUNED, None, "audit: prune 30 % before on "),
    ],
)
def test_a_forged_table_of_the_audit_is_named(
    root: Path, name: str, column: str, old: Any, new: Any, message: str
):
    _with_column(root, name, column, old, new)
    assert message in difference(root)


def test_a_manifest_with_other_settings_is_named(root: Path):
    correct_manifest(root, "audit", lambda m: m["ingredients"]["spec"]["audit"].update(seed=1))
    assert "the fingerprint is not that of the ingredients" in difference(root)


# --- signature ------------------------------------------------------------------------------------


def test_the_key_that_signed_is_accepted_and_another_one_is_named(root: Path, keys: Path):
    found = verify(str(certified(root)), str(keys / "key.pub"))
    assert found.is_trusted
    message = difference(root, key=str(keys / "other.pub"))
    assert message.startswith(f"certificate.json: signature.public_key is {found.signed_by}, and")


def test_a_certificate_without_signature_fails_with_a_key_alone(root: Path, keys: Path):
    rewrite(certified(root), lambda content: content.pop(places.SIGNATURE))
    assert verify(str(certified(root))).signed_by is None
    message = difference(root, key=str(keys / "key.pub"))
    assert message == "certificate.json: it has no signature."


@pytest.mark.parametrize("name", ["key.pem", "facts.jsonl"])
def test_a_file_that_is_no_public_key_is_refused(root: Path, keys: Path, name: str):
    with pytest.raises(MeowError, match="not an Ed25519 public key in PEM"):
        verify(str(certified(root)), str(keys / name))


# --- the chain ------------------------------------------------------------------------------------


def _earlier(root: Path) -> Path:
    return certified(root).parent / places.earlier_file(0)


OTHER_DIGEST = "certificate.json: earlier[0] is not the digest of earlier/000.json."


def test_another_digest_of_the_earlier_certificate_is_named(second: Path):
    rewrite(certified(second), lambda c: c["earlier"][0].update(certificate="0" * 64))
    assert (
        difference(second) == "certificate.json: earlier[0] is not the digest of earlier/000.json."
    )


def test_a_changed_earlier_certificate_is_named(second: Path):
    rewrite(_earlier(second), lambda c: _first_remembered(c).update(verdict="forgotten"))
    assert difference(second) == "earlier/000.json: its signature does not fit its content."
    rewrite(_earlier(second), lambda c: c.pop(places.SIGNATURE))
    assert (
        difference(second) == "certificate.json: earlier[0] is not the digest of earlier/000.json."
    )


def test_an_earlier_certificate_that_is_left_out_is_named(second: Path):
    shutil.rmtree(_earlier(second).parent)
    assert difference(second) == (
        "certificate.json: it names 1 earlier certificates, and 0 are in earlier/."
    )
