"""The stage `report`: one page for people."""

from dataclasses import replace
from typing import Any

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.stage import Context, Input, Stage
from meow_ray.errors import MeowError
from meow_ray.stages.inputs import TARGET, optional_path
from meow_ray.stages.train import curve_file, objectives


def _report(context: Context) -> dict[str, Any]:
    from meow_ray.stages.report import page

    inputs = dict(context.inputs)
    stop_level = inputs.pop("stop_level", None)
    if "soup" in inputs:
        _check_same_model(inputs["soup"], inputs["model"])
    html = page.render(
        context.config.report, inputs, stop_level=stop_level.value if stop_level else None
    )
    storage.write_bytes(storage.join(context.out, "report.html"), html.encode())
    return {"bytes": len(html.encode())}


def _check_same_model(soup: Artifact, model: Artifact) -> None:
    """Refuses a curve that was measured on another tuned model."""
    if soup.value.inputs.get("model") != model.digest:
        raise MeowError(
            f"`report.soup`: {storage.display(soup.uri)} is the curve of another model than this "
            "run's. Run `meow soup` again and name its folder, or remove the setting."
        )


# --- inputs from outside --------------------------------------------------------------------------


def _stop_level(config: Config, verify: bool) -> Artifact:
    level = objectives.configured(config.train).stop_level
    return Artifact("stop_level", "", storage.json_digest(level), value=level)


def _soup(config: Config, verify: bool) -> Artifact:
    assert config.report.soup is not None
    path = storage.join(config.report.soup, curve_file.CURVE_FILE)
    file = optional_path("soup", "report.soup", path, verify)
    return replace(file, value=curve_file.read(file.uri))


# --- the stages -----------------------------------------------------------------------------------


def _inputs(config: Config) -> tuple[Input, ...]:
    inputs: list[Input] = ["facts", "candidates", "memo", "selected", TARGET, "model", "metrics"]
    if config.pipeline.audit:
        inputs.append("audit")
    if objectives.configured(config.train).until == "never_seen":
        inputs.append(OutsideInput("stop_level", _stop_level))
    if config.report.soup is not None:
        inputs.append(OutsideInput("soup", _soup))
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
