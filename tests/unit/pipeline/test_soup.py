"""What `meow soup` needs of a run before it measures anything."""

from pathlib import Path

import pyarrow as pa
import pytest

from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline import soup
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.train.curve import Answers, point

TABLE = pa.table({"fact_id": ["a"]})


def refusal(root: Path, *names: str, overrides: tuple[str, ...] = ()) -> str:
    """Returns the error of a pipeline that was given some artifacts and has run no stage."""
    given = {name: Artifact(name, "", f"digest of {name}", value=TABLE) for name in names}
    settings = [f"storage.root={root}", "ingest.forget=x.jsonl", "train.objective=meow"]
    config = load_config(None, [*settings, *overrides])
    with pytest.raises(MeowError) as caught:
        soup.find(Pipeline(config, given=given))
    return str(caught.value)


def test_a_stage_that_has_not_run_is_named(tmp_path: Path):
    message = refusal(tmp_path, "target", "facts", "selected")
    assert message == (
        "meow soup: model does not exist yet (stage train: never run). Run `meow run --until "
        "train` first, or give --input model=URI."
    )


def test_twins_of_a_stage_that_has_not_run_are_named(tmp_path: Path):
    names = "target", "model", "facts", "candidates"
    message = refusal(tmp_path, *names, overrides=("evaluate.twins=true",))
    assert "twins does not exist yet (stage twins: never run)" in message


def test_a_configuration_without_twins_is_refused(tmp_path: Path):
    assert refusal(tmp_path, "target", "model", "facts") == (
        "meow soup: no stage of this configuration makes twins. Set evaluate.twins=true and run "
        "the stage twins, or give --input twins=URI."
    )


def answers(value: float, count: int, probability: float | None = None) -> Answers:
    return Answers(
        facts=[Figures(0.1, -2.0, value)] * count,
        twins=[Figures(0.1, -2.0, -3.0)] * count,
        probability=probability,
    )


@pytest.mark.parametrize(
    ("fact_log_prob", "p_value", "looks_never_seen"),
    [(-3.0, 1.0, True), (-9.0, 1.0, True), (-1.0, 1 / 20, False)],
)
def test_facts_look_never_seen_unless_a_figure_is_larger_than_the_twins(
    fact_log_prob: float, p_value: float, looks_never_seen: bool
):
    found = point(0.5, answers(fact_log_prob, 3, 0.25), answers(-1.0, 3), stop_level=0.1)
    assert found.p_values == pytest.approx(
        {"extraction_strength": 1.0, "min_k": 1.0, "fact_log_prob": p_value}
    )
    assert found.looks_never_seen == looks_never_seen
    assert (found.share, found.retained_probability) == (0.5, 0.25)
