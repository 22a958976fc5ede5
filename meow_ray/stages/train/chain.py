"""The requests to forget that a model has been through, for the manifest."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from meow_ray.core import storage
from meow_ray.core.manifest import Artifact, load
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError


def chain_of(target: Artifact, pairs: Query, objective: str) -> list[dict[str, Any]]:
    """Returns the requests to forget in order: those of the target's own run, then this one."""
    forgotten = f"SELECT DISTINCT fact_id FROM ({pairs.sql}) WHERE role != 'retain'"
    rows = Query(f"{forgotten} ORDER BY fact_id", pairs.sources).rows()
    facts = [row["fact_id"] for row in rows]
    manifest = target.manifest
    if manifest is None and target.uri:  # the folder may be the export of another run
        with suppress(MeowError):  # the folder above may belong to another program
            exported = load(target.uri.rstrip("/").rpartition("/")[0])
            manifest = exported.manifest if exported else None
    earlier = manifest.summary.get("chain", []) if manifest else []
    request = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "objective": objective,
        "facts": len(facts),
        "facts_digest": storage.json_digest(facts),
        "target": target.digest,
    }
    return [*earlier, request]
