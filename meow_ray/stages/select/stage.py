"""The stage `select`, which chooses the inverted facts to train on."""

from typing import Any

from meow_ray.core import checks, storage, tables
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.stages.select import selection


def _select(context: Context) -> dict[str, Any]:
    """Writes the chosen inverted facts; returns the figures for the manifest."""
    spec = context.config.select
    memo_table = context.inputs["memo"]
    if memo_table.manifest is None:  # a user's own table
        checks.check_keys(memo_table.source, "memo", storage.display(memo_table.uri))
    path = context.path()
    query = selection.select(memo_table.source, spec)
    tables.write_sorted(query, path, SCHEMAS["selected"], KEYS["selected"])
    return selection.summarize_selection(memo_table.source, [path], spec)


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
