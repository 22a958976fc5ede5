"""The content of a certificate, as a function of the artifacts and the salt alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from meow_ray.config import Audit
from meow_ray.core import storage
from meow_ray.core.manifest import MANIFEST
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.pipeline.certificate import attempts, places
from meow_ray.pipeline.certificate.evidence import NONE, Evidence, Member, Row, fact_hash, plain
from meow_ray.stages.audit.verdicts import AuditRow, Judgement, judge

MODELS = {"before": "target", "after": "model", "retain_model": "retain_model"}
"""The inputs of the audit by the names of the models."""
VERDICT_FIELDS = ("tier", "verdict", "attack", "variant", "share_of_before", "reason")


@dataclass(frozen=True)
class Given:
    """What a certificate holds that does not follow from the artifacts.

    Attributes:
        salt: the salt of the hashes of facts, hexadecimal digits.
        earlier: digest and request id of each earlier certificate, the first request first.
        texts: question and answer by fact id; None if the text of facts is not shown.
    """

    salt: str
    earlier: Sequence[Mapping[str, str]] = ()
    texts: Mapping[str, tuple[str, str]] | None = None


def audit_row(row: Row) -> AuditRow:
    """Returns a row of the table `audit` without its reply."""
    return AuditRow(**{name: row[name] for name in AuditRow._fields})


def judge_rows(rows: Sequence[Row], spec: Audit) -> Judgement:
    """Judges the tuned model by the rows of the table `audit`."""
    return judge(map(audit_row, rows), spec)


def derive(evidence: Evidence, given: Given) -> dict[str, Any]:
    """Returns the content of the certificate, without the digest of its page and its signature.

    Raises:
        MeowError: an artifact cannot be read.
    """
    rows = evidence.audit_rows()
    spec = evidence.audit_spec()
    judgement = judge_rows(rows, spec)
    facts = sorted({row["fact_id"] for row in rows if row["group"] == "facts"})
    summary = [{name: plain(value) for name, value in row.items()} for row in judgement.summary]
    metrics = _metrics(evidence.metric_rows())
    return {
        "version": places.VERSION,
        "request": _request(evidence, facts, given.salt),
        "models": _models(evidence),
        "method": _method(evidence),
        "lineage": {
            "artifacts": [_record(evidence, member) for member in evidence.members],
            "outside": _outside(evidence),
        },
        "audit": {
            "settings": spec.spec(),
            "budgets": attempts.budgets(rows),
            "thresholds": attempts.thresholds(judgement),
            "attacks": summary,
            **_judge(evidence),
        },
        "verdicts": _verdicts(judgement, facts, given),
        "metrics": metrics,
        "derived_models": attempts.derived_models(rows, summary),
        "not_tested": attempts.not_tested(rows, spec, summary, metrics),
        "earlier": [dict(entry) for entry in given.earlier],
        "shows_text": given.texts is not None,
        "purge_log": places.PURGE_FILE,
    }


def _request(evidence: Evidence, facts: Sequence[str], salt: str) -> dict[str, Any]:
    """Returns the id of the request, a hash of its facts, and how many of them were audited."""
    ingested = evidence.find("facts")
    num_facts = ingested.manifest.summary.get("forget") if ingested else None
    return {
        "id": fact_hash(salt, "\n".join(facts))[:16],
        "num_facts": num_facts,
        "num_audited": len(facts),
    }


def _models(evidence: Evidence) -> list[dict[str, str | None]]:
    """Returns the audited models: their digests, and whether this run made them.

    `weights` is the digest of the weights that the audit loaded, of a model that is merged or
    converted when it is loaded; null where the files hold the weights as they are.
    """
    loaded = evidence.audit.manifest.summary.get("loaded_weights", {})
    made = {member.artifact.digest for member in evidence.members}
    models: list[dict[str, str | None]] = []
    for name, key in MODELS.items():
        digest = evidence.audit.inputs.get(key, NONE)
        if digest != NONE:
            origin = "this run" if digest in made else "outside"
            weights = loaded.get(name)
            models.append({"model": name, "digest": digest, "origin": origin, "weights": weights})
    return models


def _method(evidence: Evidence) -> dict[str, Any]:
    """Returns what trained the tuned model; the objective is null for a model from outside."""
    after = evidence.audit.inputs.get("model", NONE)
    trained = [member for member in evidence.members if member.artifact.digest == after]
    summary = trained[-1].manifest.summary if trained else {}
    labels = {member.label for member in evidence.members if member.label}
    return {"objective": summary.get("objective"), "rounds": max(1, len(labels))}


def _judge(evidence: Evidence) -> dict[str, Any]:
    """Returns the judge of replies under its key; nothing if the audit had none."""
    figures = evidence.audit.manifest.summary.get("judge")
    return {"judge": figures} if figures else {}


def _record(evidence: Evidence, member: Member) -> dict[str, Any]:
    """Returns what the certificate says about one artifact."""
    manifest = member.manifest
    return {
        "artifact": manifest.artifact,
        "stage": manifest.stage,
        "round": member.label,
        "folder": places.relative(member.folder, evidence.root),
        "manifest": places.bytes_digest(storage.join(member.folder, MANIFEST)),
        "digest": manifest.digest,
        "fingerprint": manifest.fingerprint,
        "stage_version": manifest.ingredients.get("version"),
        "settings": manifest.ingredients.get("spec", {}),
        "inputs": dict(member.inputs),
        "started": manifest.started,
        "versions": manifest.versions,
        "files": [
            {
                "path": f"{manifest.attempt}/{name}",
                "bytes": entry.bytes,
                "sha256": entry.sha256,
            }
            for name, entry in sorted(manifest.files.items())
        ],
    }


def _outside(evidence: Evidence) -> list[dict[str, str]]:
    """Returns the inputs that no artifact of the run is: files, models, objective."""
    made = {member.artifact.digest for member in evidence.members}
    pairs = {
        (name, digest)
        for member in evidence.members
        for name, digest in member.inputs.items()
        if digest not in made and digest != NONE
    }
    return [{"name": name, "digest": digest} for name, digest in sorted(pairs)]


def _verdicts(judgement: Judgement, facts: Sequence[str], given: Given) -> dict[str, Any]:
    """Returns the verdicts of each fact by its hash, sorted by hash, and their counts by tier."""
    by_fact: dict[str, list[Row]] = {fact_id: [] for fact_id in facts}
    counts: dict[str, Counter[str]] = {}
    for row in judgement.verdicts:
        entry = {name: plain(row[name]) for name in VERDICT_FIELDS}
        by_fact.setdefault(row["fact_id"], []).append(entry)
        counts.setdefault(row["tier"], Counter())[row["verdict"]] += 1
    entries = []
    for fact_id, tiers in by_fact.items():
        entry = {"fact": fact_hash(given.salt, fact_id), "tiers": tiers}
        if given.texts is not None:
            question, answer = given.texts.get(fact_id, ("", ""))
            entry |= {"question": question, "answer": answer}
        entries.append(entry)
    return {
        "counts": [
            {"tier": tier, "verdict": verdict, "facts": count}
            for tier, found in counts.items()
            for verdict, count in sorted(found.items())
        ],
        "facts": sorted(entries, key=lambda entry: entry["fact"]),
    }


def _metrics(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the metrics of all suites, with the figures of all models in one entry."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["suite"], row["metric"])
        entry = entries.setdefault(key, {"suite": key[0], "metric": key[1]})
        if row["model"] in EVALUATED_MODELS:
            figures = ("value", "low", "high", "num_examples")
            entry[row["model"]] = {name: plain(row[name]) for name in figures}
    return [entries[key] for key in sorted(entries)]
