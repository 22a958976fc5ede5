"""Reference-free forget quality on the page and in tables, next to the official one."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from meow_ray.config import Report
from meow_ray.core.manifest import Artifact
from meow_ray.core.schema import SCHEMAS
from meow_ray.stages.report.compare import format_table, metrics_by_run
from meow_ray.stages.report.page import metric_rows, render
from tests.unit.stages.report.test_page import Page, artifacts, example, examples

QUESTION = (
    "can the tuned model's figures on the forget facts be told from the target's figures on facts "
    "that no model has seen?"
)


def with_figures(row: dict[str, Any], fact_log_prob: float) -> dict[str, Any]:
    figures = {"extraction_strength": 0.0, "min_k": -9.0, "fact_log_prob": fact_log_prob}
    return row | figures


def compared() -> list[dict[str, Any]]:
    """Returns examples of a target that knows three facts, and of a model that does not."""
    rows = []
    for number in range(3):
        rows += [
            with_figures(example("forget", number, "before"), -1.0 - number / 10),
            with_figures(example("forget", number, "after", leak=0.125), -7.0 - number),
            with_figures(example("twins", number, "before"), -7.0 - number),
            with_figures(example("twins", number, "after"), -20.0 - number),
        ]
    return rows


def text_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_the_page_says_what_reference_free_forget_quality_asks(tmp_path: Path):
    page = Page(render(Report(), artifacts(tmp_path, compared())))
    text = text_of(page)
    assert f"Reference-free forget quality answers this question: {QUESTION}" in text
    assert "reference-free forget quality is 1.000." in text
    assert "There is no official forget quality." in text
    rows = {(row[0], row[1]): row[2:] for row in page.tables["metrics"]}
    told_apart = f"{2 / math.comb(6, 3):.3f}"
    assert rows["never_seen", "reference_free_forget_quality"] == [told_apart, "1.000", "6"]
    assert rows["never_seen", "fact_log_prob_p_value"] == [told_apart, "1.000", "6"]
    assert rows["twins", "fact_log_prob"][1].startswith("-21.000")


def test_the_page_does_not_mention_it_without_twins(tmp_path: Path):
    text = text_of(Page(render(Report(), artifacts(tmp_path, examples()))))
    assert "eference-free" not in text
    assert "There is no forget quality." in text


def metrics_table(*keys: tuple[str, str]) -> pa.Table:
    rows = [
        {"suite": suite, "metric": metric, "model": "after", "value": 0.25, "num_examples": 3}
        for suite, metric in keys
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMAS["metrics"])


def test_it_comes_after_the_official_one_in_the_order_of_suites():
    keys = [
        ("twins", "min_k"),
        ("membership", "loss_auc"),
        ("never_seen", "min_k_p_value"),
        ("composite", "composite"),
        ("composite", "mem"),
        ("never_seen", "reference_free_forget_quality"),
        ("tofu", "forget_quality"),
    ]
    rows = metric_rows(metrics_table(*keys).to_pylist())
    assert [(row.suite, row.metric) for row in rows] == [
        ("tofu", "forget_quality"),
        ("never_seen", "reference_free_forget_quality"),
        ("never_seen", "min_k_p_value"),
        ("twins", "min_k"),
        ("composite", "mem"),
        ("composite", "composite"),
        ("membership", "loss_auc"),
    ]


def test_runs_with_and_without_it_are_compared():
    quality = ("never_seen", "reference_free_forget_quality")
    ours = Artifact("metrics", "a", "d", value=metrics_table(quality, ("composite", "mem")))
    npo = Artifact("metrics", "b", "e", value=metrics_table(("composite", "mem")))
    lines = format_table(metrics_by_run([("ours", ours), ("npo", npo)], "after"), "csv").split("\n")
    assert lines[1:] == [
        "never_seen,reference_free_forget_quality,ours,0.25,,,,1,3",
        "composite,mem,ours,0.25,,,,1,3",
        "composite,mem,npo,0.25,,,,1,3",
    ]
