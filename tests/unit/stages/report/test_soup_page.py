"""The curve of `meow soup`: on its own page, and on the page of a run."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.report import soup_page
from meow_ray.stages.train import curve_file
from meow_ray.stages.train.curve import Point
from meow_ray.stages.train.curve_file import Curve
from tests.unit.stages.report.test_page import PLANTED, Page, artifacts

HEADER = [
    "Share",
    "p of extraction_strength",
    "p of min_k",
    "p of fact_log_prob",
    "Looks never seen",
    "Neighbours' probability",
]
P_VALUES_TEXT = (
    "P-values of three figures at 3 shares. The smallest is 9.4e-05 at share 0 and 0.125 at share "
    "0.75, which is chosen. The stop level is 0.01."
)
RETAINED_TEXT = (
    "Mean probability of the neighbours' answers at 3 shares: 0.900 at share 0 and 0.800 at share "
    "0.75, which is chosen."
)


def point(share: float, p_values: tuple[float, float, float], retained: float | None) -> Point:
    names = ("extraction_strength", "min_k", "fact_log_prob")
    looks_never_seen = min(p_values) > 0.01
    return Point(share, dict(zip(names, p_values, strict=True)), looks_never_seen, retained)


CURVE = Curve(
    share=0.75,
    stop_level=0.01,
    points=[
        point(0.0, (0.001, 0.002, 9.4e-5), 0.9),
        point(0.75, (0.5, 0.25, 0.125), 0.8),
        point(1.0, (1.0, 1.0, 0.5), 0.6),
    ],
    inputs={"target": "org/base@abc", "model": "d"},
)


def without_neighbours() -> Curve:
    points = [replace(found, retained_probability=None) for found in CURVE.points]
    return replace(CURVE, points=points)


def text_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_table_has_the_values_of_each_share_and_marks_the_chosen_one():
    assert Page(soup_page.render(CURVE)).tables["soup"] == [
        HEADER,
        ["0", "0.001", "0.002", "9.4e-05", "no", "0.900"],
        ["0.75", "0.500", "0.250", "0.125", "yes, chosen", "0.800"],
        ["1", "1.000", "1.000", "0.500", "yes", "0.600"],
    ]


def test_the_plots_are_described_and_mark_the_chosen_share():
    html = soup_page.render(CURVE)
    assert Page(html).plots() == [P_VALUES_TEXT, RETAINED_TEXT]
    for text in (P_VALUES_TEXT, RETAINED_TEXT):
        plot = html.split(text)[1].split("</svg>")[0]
        assert ">chosen share 0.75</text>" in plot


def test_the_page_names_the_share_and_the_models():
    page = Page(soup_page.render(CURVE))
    assert (
        "The smallest share tried at which the facts look never seen is 0.75: all its p-values "
        "exceed the stop level, 0.01." in text_of(page)
    )
    assert page.tables["inputs"][1:] == [["target", "org/base@abc"], ["model", "d"]]


def test_a_curve_without_neighbours_has_no_plot_of_their_probability():
    page = Page(soup_page.render(without_neighbours()))
    assert page.plots() == [P_VALUES_TEXT]
    assert [row[-1] for row in page.tables["soup"][1:]] == ["–", "–", "–"]


def test_the_page_loads_nothing_and_is_the_same_for_the_same_curve():
    html = soup_page.render(CURVE)
    assert html == soup_page.render(CURVE)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()([^")]+)', html)) <= {f"#{name}" for name in ids}


def test_a_curve_is_read_as_it_was_written(tmp_path: Path):
    curve_file.write(CURVE, str(tmp_path))
    assert curve_file.read(str(tmp_path / "soup.json")) == CURVE


# --- the page of a run ----------------------------------------------------------------------------


def report(folder: Path, *settings: str, given: dict[str, Artifact] | None = None) -> Page:
    """Runs the stage `report` over given artifacts; returns its page."""
    config = load_config(None, [f"storage.root={folder / 'root'}", *settings])
    pipeline = Pipeline(config, given=given or artifacts(folder))
    (state,) = pipeline.run(pipeline.selection("report", None, None), on_event=str)
    assert state.artifact is not None
    html = storage.read_bytes(storage.join(state.artifact.uri, "report.html")).decode()
    assert PLANTED not in html
    return Page(html)


def test_the_page_of_a_run_shows_the_curve(tmp_path: Path):
    curve_file.write(CURVE, str(tmp_path / "soup"))
    page = report(tmp_path, f"report.soup={tmp_path / 'soup'}")
    assert page.plots()[-2:] == [P_VALUES_TEXT, RETAINED_TEXT]
    assert page.tables["soup"][2] == ["0.75", "0.500", "0.250", "0.125", "yes, chosen", "0.800"]
    lineage = {row[0]: row[1:] for row in page.tables["lineage"][1:]}
    assert lineage["soup"][1] == str(tmp_path / "soup" / "soup.json")


def test_another_curve_gives_another_page(tmp_path: Path):
    curve_file.write(CURVE, str(tmp_path / "soup"))
    setting = f"report.soup={tmp_path / 'soup'}"
    assert report(tmp_path, setting).plots()[-1] == RETAINED_TEXT
    curve_file.write(without_neighbours(), str(tmp_path / "soup"))
    assert report(tmp_path, setting).plots()[-1] == P_VALUES_TEXT


def test_a_run_without_a_curve_has_no_such_section(tmp_path: Path):
    page = report(tmp_path)
    assert "soup" not in page.tables
    assert "Smaller steps" not in page.text


def test_the_curve_of_another_model_is_refused(tmp_path: Path):
    curve_file.write(replace(CURVE, inputs={"model": "another"}), str(tmp_path / "soup"))
    with pytest.raises(MeowError) as caught:
        report(tmp_path, f"report.soup={tmp_path / 'soup'}")
    assert str(caught.value) == (
        f"`report.soup`: {tmp_path / 'soup' / 'soup.json'} is the curve of another model than this "
        "run's. Run `meow soup` again and name its folder, or remove the setting."
    )


def test_a_folder_without_a_curve_is_refused(tmp_path: Path):
    with pytest.raises(MeowError) as caught:
        report(tmp_path, f"report.soup={tmp_path / 'none'}")
    assert (
        f"`report.soup`: there is no such file or folder ({tmp_path / 'none' / 'soup.json'})."
        in str(caught.value)
    )


def test_a_file_that_is_no_curve_is_refused(tmp_path: Path):
    storage.write_json(str(tmp_path / "soup.json"), {"share": 1.0})
    with pytest.raises(MeowError) as caught:
        report(tmp_path, f"report.soup={tmp_path}")
    assert f"{tmp_path / 'soup.json'}: not a curve of `meow soup` (3 mistakes)." in str(
        caught.value
    )
