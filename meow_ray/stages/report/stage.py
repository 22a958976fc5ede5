"""The stage `report`: one page for people."""

from dataclasses import replace
from typing import Any

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.stages.inputs import TARGET
from meow_ray.stages.train import objectives


def _report(context: Context) -> dict[str, Any]:
    from meow_ray.stages.report import page

    inputs = dict(context.inputs)
    stop_level = inputs.pop("stop_level", None)
    html = page.render(
        context.config.report, inputs, stop_level=stop_level.value if stop_level else None
    )
    storage.write_bytes(storage.join(context.out, "report.html"), html.encode())
    return {"bytes": len(html.encode())}


# --- inputs from outside --------------------------------------------------------------------------


def _stop_level(config: Config, verify: bool) -> Artifact:
    level = objectives.configured(config.train).stop_level
    return Artifact("stop_level", "", storage.json_digest(level), value=level)


# --- the stages -----------------------------------------------------------------------------------


def _inputs(config: Config) -> tuple[Input, ...]:
    inputs: list[Input] = ["facts", "candidates", "memo", "selected", TARGET, "model", "metrics"]
    if objectives.configured(config.train).until == "never_seen":
        inputs.append(OutsideInput("stop_level", _stop_level))
    return tuple(inputs)


REPORT = Stage(
    name="report",
    artifact="report",
    version=2,
    sections=("report",),
    inputs=_inputs,
    run=_report,
)

REPORT_ALONE = replace(REPORT, inputs=("facts", TARGET, "metrics"))
"""The page of an evaluation of the target alone."""
