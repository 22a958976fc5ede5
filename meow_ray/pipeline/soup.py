"""The smallest step from the target to the tuned model at which the facts look never seen."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.distributed import progress, shared_root
from meow_ray.errors import MeowError
from meow_ray.models import uld
from meow_ray.pipeline import derived
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.stages import inputs
from meow_ray.stages.train import curve, curve_file
from meow_ray.stages.train.curve import TARGET_SHARE, Answers, Point, Step
from meow_ray.stages.train.curve_file import CURVE_FILE, Curve

SHARES = (0.25, 0.5, 0.75, 1.0)
"""The shares of the step of training that are tried."""
PAGE_FILE = "soup.html"
"""The page of the curve, next to `CURVE_FILE`."""
_VERSION = 1
"""Raised whenever the same models and tables give another curve or other weights."""


@dataclass(frozen=True)
class Soup:
    """The curve from the target to the tuned model, and what was chosen on it."""

    points: list[Point]
    """By ascending share; the first one is the target."""
    share: float | None
    """The smallest share above 0 at which the facts look never seen; None if there is none."""
    uri: str | None
    """Where the model of this share is."""


def find(pipeline: Pipeline, shares: Sequence[float] = SHARES, out: str | None = None) -> Soup:
    """Measures the curve of a finished run, and writes the model of the smallest step that passes.

    Args:
        pipeline: a pipeline whose stages up to `train` have run.
        shares: shares of the step of training, above 0 and up to 1.
        out: URI of a new folder for the model; None takes one below the storage root, whose name
            is known before. If an earlier call has written it, nothing is measured again.

    Raises:
        MeowError: a stage has not run, the folder cannot be used, or the two models are not one
            model before and after training.
    """
    grid = sorted(set(shares))
    assert all(TARGET_SHARE < share <= 1 for share in grid)
    found = _inputs(pipeline)
    step = _step(pipeline, found)
    root = storage.absolute(pipeline.config.storage.root)
    if out is None:
        uri = storage.join(root, "soup", _fingerprint(pipeline, found, grid)[:16])
        if storage.exists(storage.join(uri, CURVE_FILE)):
            return _read(uri)
        shared_root.check(root)
    else:
        uri = storage.absolute(out)
        derived.check_new(uri)
        shared_root.check(uri, "--out")
    points = _curve(pipeline, step, grid)
    passing = [point.share for point in points[1:] if point.looks_never_seen]
    if not passing:
        return Soup(points, share=None, uri=None)
    storage.remove(uri)  # what a killed call may have left
    derived.call(pipeline.config.resources, curve.write, step, passing[0], uri)
    measured = Curve(
        share=passing[0],
        stop_level=derived.stop_level(pipeline.config),
        points=points,
        inputs={name: artifact.digest for name, artifact in found.items()},
    )
    _write_page(measured, uri)
    curve_file.write(measured, uri)  # last: where it exists, nothing is measured again
    return Soup(points, share=passing[0], uri=uri)


def _curve(pipeline: Pipeline, step: Step, grid: Sequence[float]) -> list[Point]:
    """Returns the points at some shares, that of the target before them."""
    stop_level = derived.stop_level(pipeline.config)
    derived.connect(pipeline.config.resources)
    target: Answers = derived.call(pipeline.config.resources, curve.ask, step, TARGET_SHARE)
    points = [curve.point(TARGET_SHARE, target, target, stop_level)]
    for number, share in enumerate(grid, start=1):
        line = f"  soup: share {share:g}, {number} of {len(grid)}"
        print(line, file=progress.output(), flush=True)
        model: Answers = derived.call(pipeline.config.resources, curve.ask, step, share)
        points.append(curve.point(share, model, target, stop_level))
    return points


def _read(uri: str) -> Soup:
    """Returns what an earlier call has written."""
    measured = curve_file.read(storage.join(uri, CURVE_FILE))
    return Soup(measured.points, share=measured.share, uri=uri)


def _write_page(measured: Curve, uri: str) -> None:
    from meow_ray.stages.report import soup_page

    storage.write_bytes(storage.join(uri, PAGE_FILE), soup_page.render(measured).encode())


# --- the inputs -----------------------------------------------------------------------------------


def _inputs(pipeline: Pipeline) -> dict[str, Artifact]:
    """Returns the artifacts that are read; without `neighbours` if the pipeline makes none."""
    found = {name: _existing(pipeline, name) for name in ("target", "model", "facts", "twins")}
    if pipeline.has("neighbours"):
        found["neighbours"] = _existing(pipeline, "neighbours")
    return found


def _existing(pipeline: Pipeline, name: str) -> Artifact:
    """Returns an artifact of the pipeline.

    Raises:
        MeowError: no stage has made it yet, or none makes it.
    """
    if not pipeline.has(name):  # only the twins have a stage that not all configurations have
        raise MeowError(
            f"meow soup: no stage of this configuration makes {name}. Set evaluate.twins=true and "
            f"run the stage twins, or give --input {name}=URI."
        )
    artifact = pipeline.artifact(name)
    if artifact is None:
        stage = pipeline.producers[name]
        raise MeowError(
            f"meow soup: {name} does not exist yet (stage {stage.name}: "
            f"{pipeline.state(stage).reason}). Run `meow run --until {stage.name}` first, or give "
            f"--input {name}=URI."
        )
    return artifact


def _step(pipeline: Pipeline, found: dict[str, Artifact]) -> Step:
    config = pipeline.config
    target = inputs.model_ref(found["target"])
    for name in ("target", "model"):
        uld.check_one_model(
            inputs.model_ref(found[name]),
            "meow soup interpolates the weights of one model before and after training",
            "Use another objective, or weaken `weight` in its uld.json.",
        )
    engine = inputs.engine_spec(target, config.target, config.resources.evaluate)
    neighbours = found.get("neighbours")
    return Step(
        engine=replace(engine, engine="transformers"),
        tuned=inputs.model_ref(found["model"]),
        prompt=config.target,
        max_length=config.train.max_length,
        facts=found["facts"].source,
        twins=found["twins"].source,
        neighbours=neighbours.source if neighbours else None,
    )


def _fingerprint(pipeline: Pipeline, found: dict[str, Artifact], grid: Sequence[float]) -> str:
    """Returns what identifies the curve: models, tables, prompts, shares and the stop level."""
    config = pipeline.config
    return storage.json_digest(
        {
            "version": _VERSION,
            "inputs": {name: artifact.digest for name, artifact in found.items()},
            "target": config.target.spec(),
            "stop_level": derived.stop_level(pipeline.config),
            "shares": list(grid),
        }
    )
