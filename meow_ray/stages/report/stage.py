"""The stage `report`: one page for people."""

from dataclasses import replace
from typing import Any

from meow_ray.core import storage
from meow_ray.core.stage import Context, Stage
from meow_ray.stages.inputs import TARGET


def _report(context: Context) -> dict[str, Any]:
    from meow_ray.stages.report import page

    html = page.render(context.config.report, context.inputs)
    storage.write_bytes(storage.join(context.out, "report.html"), html.encode())
    return {"bytes": len(html.encode())}


REPORT = Stage(
    name="report",
    artifact="report",
    version=2,
    sections=("report",),
    inputs=("facts", "candidates", "memo", "selected", TARGET, "model", "metrics"),
    run=_report,
)

REPORT_ALONE = replace(REPORT, inputs=("facts", TARGET, "metrics"))
"""The page of an evaluation of the target alone."""
