"""The stage `report`: one page for people."""

from typing import Any

from meow_ray import (
    storage,
)
from meow_ray.stage import Context, Stage


def _report(context: Context) -> dict[str, Any]:
    from meow_ray import report

    page = report.render(context.config.report, context.inputs)
    storage.write_bytes(storage.join(context.out, "report.html"), page.encode())
    return {"bytes": len(page.encode())}


REPORT = Stage(
    "report",
    "report",
    1,
    ("report",),
    ("facts", "candidates", "memo", "selected", "target", "model", "metrics"),
    _report,
)
