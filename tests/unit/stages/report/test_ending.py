"""How training ended, on the page of a model that was trained until its facts look never seen."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from meow_ray.config import Report
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.report.page import render
from tests.unit.stages.report.test_page import PLANTED, Page, artifacts

P_VALUES = {5: (2e-9, 0.0, 0.25), 10: (0.5, 0.0625, 1.0)}
"""By step, the p-values of extraction strength, Min-K % and the log-probability of the fact."""
ALT_TEXT = (
    "P-values of three figures at 2 comparisons. The smallest is 0.000 after step 5 and 0.062 "
    "after step 10. The stop level is 0.01."
)


def forgotten(folder: Path) -> dict[str, Artifact]:
    """Returns the inputs of the page, with a model whose facts were compared with twins."""
    inputs = artifacts(folder)
    history = [
        {"step": step, "epoch": step / 2, "loss": 4.0, "tokens": 9, "learning_rate": 1e-5}
        for step in range(1, 11)
    ]
    names = ("extraction_strength", "min_k", "fact_log_prob")
    for step, values in P_VALUES.items():
        history[step - 1]["never_seen"] = dict(zip(names, values, strict=True))
    storage.write_json(storage.join(inputs["model"].uri, HISTORY_FILE), history)
    return inputs


def text_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_table_has_the_p_values_of_each_comparison(tmp_path: Path):
    page = Page(render(Report(), forgotten(tmp_path), stop_level=0.01))
    assert page.tables["ending"] == [
        [
            "Step",
            "p of extraction_strength",
            "p of min_k",
            "p of fact_log_prob",
            "Looks never seen",
        ],
        ["5", "2.0e-09", "0.000", "0.250", "no"],
        ["10", "0.500", "0.062", "1.000", "yes"],
    ]


def test_the_plot_is_described_and_shows_the_stop_level(tmp_path: Path):
    html = render(Report(), forgotten(tmp_path), stop_level=0.01)
    assert Page(html).plots()[-1] == ALT_TEXT
    plot = html.split(ALT_TEXT)[1].split("</svg>")[0]
    labels = re.findall(r">([^<>\n]+)</text>", plot)
    assert labels[-4:] == ["extraction_strength", "min_k", "fact_log_prob", "stop level 0.01"]
    assert {"optimiser step", "p-value", "0.0001", "0.01", "1"} <= set(labels)


@pytest.mark.parametrize(
    ("stop_level", "sentence"),
    [
        (
            0.01,
            "Training ended after step 10, because the facts look as if the model had never seen "
            "them: all p-values exceed the stop level, 0.01.",
        ),
        (
            0.1,
            "Training ended after step 10, the largest number of steps. The facts can still be "
            "told from facts that no model has seen: not all p-values exceed the stop level, 0.1.",
        ),
    ],
)
def test_the_page_says_why_training_ended(tmp_path: Path, stop_level: float, sentence: str):
    assert sentence in text_of(Page(render(Report(), forgotten(tmp_path), stop_level)))


def test_a_model_that_was_trained_for_its_epochs_has_no_such_section(tmp_path: Path):
    page = Page(render(Report(), artifacts(tmp_path)))
    assert "ending" not in page.tables
    assert "How training ended" not in page.text


def test_a_model_from_outside_has_no_such_section(tmp_path: Path):
    inputs = forgotten(tmp_path)
    inputs["model"] = replace(inputs["model"], files=(), manifest=None)
    page = Page(render(Report(), inputs, stop_level=0.01))
    assert "ending" not in page.tables
    assert "How training ended" not in page.text


def test_the_page_still_loads_nothing_and_hides_the_text_of_facts(tmp_path: Path):
    html = render(Report(), forgotten(tmp_path), stop_level=0.01)
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)
    assert "<script" not in html
    assert PLANTED not in html


# --- the stage ------------------------------------------------------------------------------------


def written(folder: Path, *settings: str) -> tuple[str, Page]:
    """Runs the stage over given artifacts; returns its fingerprint and its page."""
    config = load_config(None, [f"storage.root={folder / 'root'}", *settings])
    pipeline = Pipeline(config, given=forgotten(folder))
    (state,) = pipeline.run(pipeline.selection("report", None, None), on_event=str)
    assert state.artifact is not None
    assert state.fingerprint is not None
    html = storage.read_bytes(storage.join(state.artifact.uri, "report.html")).decode()
    return state.fingerprint, Page(html)


def test_the_stage_takes_the_stop_level_of_the_objective(tmp_path: Path):
    _, page = written(tmp_path, "train.objective=meow_floor")
    assert page.plots()[-1] == ALT_TEXT
    assert "stop_level" not in [row[0] for row in page.tables["lineage"]]


def test_another_stop_level_gives_another_page(tmp_path: Path):
    default, _ = written(tmp_path)
    strict, page = written(tmp_path, "train.stop_level=0.1")
    assert strict != default
    assert "ending" in page.tables
    assert page.tables["ending"][2][-1] == "no"


def test_the_stage_shows_no_ending_after_epochs(tmp_path: Path):
    _, page = written(tmp_path, "train.objective=meow")
    assert "ending" not in page.tables
