"""The stage `select`, which chooses the inverted facts to train on."""

from typing import Any

import pyarrow as pa

from meow_ray.config import Select
from meow_ray.core import checks, storage, tables
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.errors import MeowError
from meow_ray.stages.select import selection


def _select(context: Context) -> dict[str, Any]:
    """Writes the chosen inverted facts; returns the figures for the manifest."""
    spec = context.config.select
    memo_table = context.inputs["memo"]
    if memo_table.manifest is None:  # a user's own table
        checks.check_keys(memo_table.source, "memo", storage.display(memo_table.uri))
    _check_decided(memo_table, spec)
    path = context.path()
    query = selection.select(memo_table.source, spec)
    tables.write_sorted(query, path, SCHEMAS["selected"], KEYS["selected"])
    return selection.summarize_selection(memo_table.source, [path], spec)


def _check_decided(memo: Artifact, spec: Select) -> None:
    """Refuses a table whose bounds leave open what is chosen: it was made for other settings."""
    source = memo.source
    names = source.column_names if isinstance(source, pa.Table) else tables.columns(source).names
    if not {"memo_low", "memo_high"} <= set(names):
        return
    undecided = selection.count_undecided(source, spec)
    if undecided:
        raise MeowError(
            f"{storage.display(memo.uri)}: the bounds of MEMO leave the selection open "
            f"(facts: {undecided}, select.top_k={spec.top_k}, select.order={spec.order}). Run the "
            "stage memo with these settings of select, or with memo.exact=all."
        )


SELECT = Stage(
    name="select",
    artifact="selected",
    version=2,
    sections=("select",),
    inputs=("memo",),
    run=_select,
    schema=SCHEMAS["selected"],
    key=KEYS["selected"],
    adopt=adopt_table,
)
