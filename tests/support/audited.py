"""A small audited run whose stages load no model, and its certificate."""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from meow_ray.config import Config
from meow_ray.config.files import load_config
from meow_ray.core import schema, storage
from meow_ray.core.manifest import EXAMPLES_FILE, MANIFEST, file_entry
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.pipeline.certificate import places, write
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.pipeline.rounds import Part
from meow_ray.stages.audit.stage import SUMMARY_FILE, VERDICTS_FILE
from meow_ray.stages.audit.verdicts import AuditRow, judge
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.inputs import TARGET
from tests.support.world import DATA

PHRASE = "Zorblax Quuxington"
"""Part of each answer: it must appear in no certificate."""
NUM_FACTS = 24
REMEMBERED = 3
"""How many facts the tuned model still gives away."""
JUDGED = {
    "model": "owner/judge",
    "endpoint": None,
    "digest": "digest of the model",
    "prompt": "digest of the prompt",
    "replies": 144,
    "missing": 3,
    "gives_away": {"before on facts": 0.75},
}
"""What the manifest of an audit says about its judge."""


def pairs() -> list[tuple[str, str]]:
    """Returns questions and answers of the facts to forget."""
    return [(f"Who is number {n}?", f"{PHRASE} the {n}th.") for n in range(NUM_FACTS)]


def _table(rows: list[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=columns)


def ingest(context: Context) -> dict[str, Any]:
    rows = [
        {"fact_id": fact_id(*pair), "split": "forget", "question": pair[0], "answer": pair[1]}
        for pair in pairs()
    ]
    context.write(_table(rows, schema.SCHEMAS["facts"]))
    return {"forget": len(rows), "retain": 0}


def twins(context: Context) -> dict[str, Any]:
    rows = [
        {
            "fact_id": row["fact_id"],
            "twin_id": 0,
            "half": "train",
            "question": row["question"],
            "answer": f"{PHRASE} of another",
        }
        for row in context.inputs["facts"].table.to_pylist()
    ]
    context.write(_table(rows, schema.SCHEMAS["twins"]))
    return {}


def train(context: Context) -> dict[str, Any]:
    storage.write_bytes(context.path("config.json"), b"{}")
    storage.write_bytes(context.path("model.safetensors"), b"tuned weights")
    return {"objective": "meow"}


def evaluate(context: Context) -> dict[str, Any]:
    figures = {"low": 0.1, "high": 0.9, "num_examples": NUM_FACTS}
    rows = [
        {"suite": suite, "metric": "leak", "model": model, "value": value, **figures}
        for suite in ("forget", "neighbours", "retain")
        for model, value in (("before", 0.75), ("after", 0.25))
    ]
    context.write(_table(rows, schema.SCHEMAS["metrics"]))
    context.write(pa.table({"reply": [f"It is {PHRASE}"]}), EXAMPLES_FILE)
    return {}


def audit_rows(facts: list[str]) -> list[AuditRow]:
    """Returns the scores of three attacks; `before` says all, `after` the first few facts.

    A fourth attack could not be run.
    """
    random_scores = random.Random(0)
    rows = []
    for attack, tier in (("direct", "black box"), ("prefix", "black box"), ("prune", "static")):
        tier = "static weights" if tier == "static" else tier
        variant = "30 %" if attack == "prune" else ""
        for number, name in enumerate(facts):
            small = random_scores.uniform(0, 0.1)
            leak = 0.9 if number < REMEMBERED else small
            for model, group, identifier, score in (
                ("before", "facts", name, 0.9),
                ("after", "facts", name, leak),
                ("before", "twins", f"{name}#0", random_scores.uniform(0, 0.1)),
                ("after", "twins", f"{name}#0", random_scores.uniform(0, 0.1)),
            ):
                rows.append(AuditRow(attack, variant, tier, model, group, identifier, 1, score))
    missing = {"attack": "quantise", "variant": "nf4", "attempts": 0, "score": None}
    of_prune = [row for row in rows if row.attack == "prune"]
    return rows + [row._replace(**missing, reason="no_gpu") for row in of_prune]


def weights_of(row: AuditRow) -> str:
    """Returns the digest of the weights of the derived model that a row is about."""
    return hashlib.sha256(f"{row.model} {row.variant}".encode()).hexdigest()


def audit(context: Context) -> dict[str, Any]:
    facts = context.inputs["facts"].table["fact_id"].to_pylist()
    rows = audit_rows(facts)
    judgement = judge(rows, context.config.audit)
    written = [
        row._asdict()
        | {"extracted": judgement.extracted(row), "reply": f"r{number}"}
        | {"weights": weights_of(row) if row.attack == "prune" else None}
        for number, row in enumerate(rows)
    ]
    context.write(_table(written, schema.SCHEMAS["audit"]))
    summary = _table(judgement.summary, schema.AUDIT_SUMMARY_SCHEMA)
    context.write(summary, SUMMARY_FILE)
    context.write(_table(judgement.verdicts, schema.VERDICTS_SCHEMA), VERDICTS_FILE)
    reply = {"reply": "r0", "prompt": "Who?", "text": PHRASE}
    context.write(_table([reply], schema.REPLIES_SCHEMA), "replies.parquet")
    counts: dict[str, Counter[str]] = {}
    for verdict in judgement.verdicts:
        counts.setdefault(verdict["tier"], Counter())[verdict["verdict"]] += 1
    of_judge = {"judge": JUDGED} if context.config.audit.judge else {}
    return {"verdicts": {tier: dict(found) for tier, found in counts.items()}, **of_judge}


def report(context: Context) -> dict[str, Any]:
    shown = PHRASE if context.config.report.show_text else "no text"
    storage.write_bytes(context.path("report.html"), shown.encode())
    return {}


def stage(
    name: str,
    artifact: str,
    inputs: tuple[Input, ...],
    run: Callable[[Context], dict[str, Any]],
) -> Stage:
    """Returns a stage that reads its own section."""
    return Stage(
        name=name,
        artifact=artifact,
        version=1,
        sections=(name,),
        inputs=inputs,
        run=run,
        schema=schema.SCHEMAS.get(artifact),
        key=schema.KEYS.get(artifact, ()),
    )


STAGES = (
    stage("ingest", "facts", (DATA,), ingest),
    stage("twins", "twins", ("facts",), twins),
    stage("train", "model", ("facts", TARGET), train),
    stage("evaluate", "metrics", ("facts", TARGET, "model"), evaluate),
    stage("audit", "audit", ("facts", "twins", TARGET, "model"), audit),
    stage("report", "report", ("facts", "model", "metrics"), report),
)


@dataclass(frozen=True)
class Audited:
    """A run below a folder; several may share its storage root."""

    folder: Path
    target: str = "target"
    """The model's folder, relative to `folder` or absolute."""
    root: str = "root"
    """The storage root, relative to `folder` or a URI."""

    def overrides(self) -> list[str]:
        """Returns what the configuration sets, after writing the inputs that it names."""
        if self.target == "target":
            (self.folder / "target").mkdir(exist_ok=True)
            (self.folder / "target" / "config.json").write_text("{}")
            (self.folder / "target" / "model.safetensors").write_bytes(b"weights")
        data = self.folder / "facts.jsonl"
        lines = [json.dumps({"question": q, "answer": a}) for q, a in pairs()]
        data.write_text("\n".join(lines))
        return [
            f"target.model={self.folder / self.target}",
            f"ingest.forget={data}",
            f"storage.root={self.root if '://' in self.root else self.folder / self.root}",
        ]

    def write_keys(self) -> None:
        """Writes the private key `key.pem`, its public key, and the public key `other.pub`."""
        own, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / "key.pem").write_bytes(private)
        for name, key in (("key.pub", own), ("other.pub", other)):
            public = key.public_key()
            pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (self.folder / name).write_bytes(pem)

    def config(self, *overrides: str) -> Config:
        """Returns the configuration of the run."""
        return load_config(None, [*self.overrides(), *overrides])

    def parts(self, *overrides: str) -> list[Part]:
        """Returns the run as one part."""
        pipeline = Pipeline(self.config(*overrides), stages=STAGES)
        chosen = pipeline.selection(None, None, None)
        return [Part("", pipeline, chosen, chosen)]

    def run(self, *overrides: str) -> list[Part]:
        """Runs all stages that are not cached; returns the parts."""
        parts = self.parts(*overrides)
        parts[0].pipeline.run(parts[0].stages, on_event=str)
        return self.parts(*overrides)

    def certify(self, *overrides: str, **options: Any) -> str:
        """Runs the stages and writes the certificate; returns its URI."""
        return write.certify(self.run(*overrides), **options)

    def certify_as_is(self, *overrides: str, **options: Any) -> str:
        """Writes the certificate of what has run; returns its URI."""
        return write.certify(self.parts(*overrides), **options)


def files(root: str | Path) -> dict[str, bytes]:
    """Returns the contents of all files below a folder, by path relative to it."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file()
    }


def artifact_file(root: Path, artifact: str, name: str) -> Path:
    """Returns the only file of this name in the artifacts of a name."""
    (found,) = (root / artifact).glob(f"*/*/{name}")
    return found


def certified(root: Path) -> Path:
    """Returns the only certificate below a storage root."""
    (found,) = (root / places.FOLDER).glob(f"*/{places.CERTIFICATE_FILE}")
    return found


def rewrite(certificate: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the content of a certificate, or of another file with the same form."""
    content = json.loads(certificate.read_text())
    change(content)
    certificate.write_bytes(places.written_form(content))


def forge(root: Path, artifact: str, name: str, table: pa.Table) -> None:
    """Replaces a table and corrects all digests of it, in the manifest and in the certificate."""
    path = artifact_file(root, artifact, name)
    storage.write_table(table, str(path))
    entry = file_entry(str(path))
    manifest_path = path.parents[1] / MANIFEST
    manifest = json.loads(manifest_path.read_text())
    manifest["files"][name] = entry.model_dump()
    digests = {key: value["sha256"] for key, value in manifest["files"].items()}
    manifest["digest"] = storage.json_digest(digests)
    storage.write_json(str(manifest_path), manifest)

    def correct(content: dict[str, Any]) -> None:
        content.pop(places.SIGNATURE, None)
        (record,) = (r for r in content["lineage"]["artifacts"] if r["artifact"] == artifact)
        record["manifest"] = places.bytes_digest(str(manifest_path))
        record["digest"] = manifest["digest"]
        for file in record["files"]:
            if file["path"].endswith(f"/{name}"):
                file |= {"sha256": entry.sha256, "bytes": entry.bytes}

    rewrite(certified(root), correct)


def correct_manifest(root: Path, artifact: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest of an artifact, and its digest in the certificate."""
    (path,) = (root / artifact).glob(f"*/{MANIFEST}")
    manifest = json.loads(path.read_text())
    change(manifest)
    storage.write_json(str(path), manifest)

    def correct(content: dict[str, Any]) -> None:
        (record,) = (r for r in content["lineage"]["artifacts"] if r["artifact"] == artifact)
        record["manifest"] = places.bytes_digest(str(path))

    rewrite(certified(root), correct)
