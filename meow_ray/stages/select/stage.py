"""The stage `select`: chooses the inverted facts to train on."""

from typing import Any

from meow_ray.core import checks, storage, tables
from meow_ray.core.outside import adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.stages.select import selection


def _select(context: Context) -> dict[str, Any]:
    memo_table = context.inputs["memo"]
    if memo_table.manifest is None:
        checks.check_keys(memo_table.source, "memo", storage.display(memo_table.uri))
    query = selection.select(memo_table.source, context.config.select)
    tables.write_sorted(query, context.path(), SCHEMAS["selected"], ("fact_id", "rank"))
    return selection.summarize(memo_table.source, [context.path()], context.config.select)


SELECT = Stage(
    name="select",
    artifact="selected",
    version=1,
    sections=("select",),
    inputs=("memo",),
    run=_select,
    schema=SCHEMAS["selected"],
    key=KEYS["selected"],
    adopt=adopt_table,
)
