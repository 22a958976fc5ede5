"""The report: a page that loads nothing, hides the text of facts, and has the run's figures."""

import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.config import Evaluate, Report
from meow_ray.core import storage
from meow_ray.core.manifest import EXAMPLES_FILE, MAIN, Artifact, FileEntry, Manifest
from meow_ray.core.schema import EXAMPLES_SCHEMA, MEASURES, SCHEMAS
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.models.refs import ModelRef
from meow_ray.stages.evaluate import aggregate
from meow_ray.stages.evaluate.privacy import ATTACKS
from meow_ray.stages.memo import summary
from meow_ray.stages.report.meanings import MEANINGS
from meow_ray.stages.report.page import MAX_EXAMPLES, render

PLANTED = "planted fact text"
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The tags, the visible text, and the cells of each table by the table's id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self.tables[values["id"] or ""] = []
        if tag == "tr":
            self._table.append([])
        if tag in ("td", "th"):
            self._table[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self._table[-1][-1] += data

    def plots(self) -> list[str]:
        return [
            str(attrs.get("aria-label"))
            for tag, attrs in self.tags
            if tag == "svg" and attrs.get("role") == "img"
        ]


def example(suite: str, number: int, model: str, **scores: float | None) -> dict[str, Any]:
    return {
        "suite": suite,
        "fact_id": f"{number:08x}{suite[0].encode().hex():0>8}",
        "model": model,
        "question": f"{PLANTED} question {number}?",
        "answer": f"{PLANTED} truth {number}.",
        "generated": f"{PLANTED} {model} {number}.",
    } | {"memo": 0.9, "rougeL_recall": 0.9, "probability": 0.8, "leak": 0.75, "rep3": 0.0, **scores}


def examples(forget: int = 3, retain: int = 2) -> list[dict[str, Any]]:
    rows = []
    for i in range(forget):
        rows.append(example("forget", i, "before", memo=0.9 - i / 1000))
        rows.append(example("forget", i, "after", memo=0.1, leak=i / 8, states_inverted=1.0))
    for i in range(retain):
        rows.append(example("retain", i, "before"))
        rows.append(example("retain", i, "after", memo=None if i else 0.7, rougeL_recall=0.81))
    return rows


def publish(
    folder: Path, name: str, stage: str, summary: dict[str, Any], tables: Mapping[str, pa.Table]
) -> Artifact:
    for file, table in tables.items():
        storage.write_table(table, str(folder / name / file))
    manifest = Manifest(
        artifact=name,
        stage=stage,
        fingerprint=f"{name:f<20}",
        ingredients={"version": 7, "spec": {"select": {"top_k": 3}}},
        attempt="a",
        files={
            file: FileEntry(bytes=1, sha256="0", rows=table.num_rows)
            for file, table in tables.items()
        },
        digest="d",
        rows=tables[MAIN].num_rows if MAIN in tables else None,
        summary=summary,
        started="2026-07-01T10:00:00+00:00",
        seconds=12.34,
        versions={"torch": "2.13.0", "ray": "2.60.0"},
    )
    return Artifact(name, str(folder / name), "d", tuple(manifest.files), manifest)


def empty(name: str) -> dict[str, pa.Table]:
    return {MAIN: SCHEMAS[name].empty_table()}


def artifacts(folder: Path, rows: list[dict[str, Any]] | None = None) -> dict[str, Artifact]:
    table = pa.Table.from_pylist(examples() if rows is None else rows, schema=EXAMPLES_SCHEMA)
    history = [
        {
            "step": step,
            "epoch": step / 2,
            "loss": 4.0 - step / 2,
            "tokens": 9,
            "learning_rate": 1e-5,
        }
        for step in range(1, 5)
    ]
    storage.write_json(str(folder / "model" / HISTORY_FILE), history)
    inverted = {"facts": 3, "facts_with_enough": 2, "mean_distance": 0.5, "mean_distinctness": None}
    inverted |= {"facts_short": {"x": 1}, "rejected_by_rule": {"too_long": 5}}
    scores = [("x", -1, 0.87654), ("x", 0, 0.25), ("y", -1, 0.5), ("y", 0, None)]
    measured_memo = [
        {"fact_id": f, "candidate_id": c, "memo": value, "num_windows": 3} for f, c, value in scores
    ]
    scored = summary.summarize(pa.Table.from_pylist(measured_memo, schema=SCHEMAS["memo"])) | {
        "generations": 9
    }
    chosen = {"facts": 3, "facts_with_top_k": 1, "facts_with_fewer": 1, "facts_with_none": 1}
    model = publish(folder, "model", "train", {}, {})
    assert model.manifest is not None
    files = {HISTORY_FILE: FileEntry(bytes=1, sha256="0")}
    model = Artifact(
        "model", model.uri, "d", (HISTORY_FILE,), model.manifest.model_copy(update={"files": files})
    )
    measured = {
        MAIN: aggregate.aggregate(table, Evaluate(bootstrap_resamples=100)),
        EXAMPLES_FILE: table,
    }
    return {
        "facts": publish(folder, "facts", "ingest", {}, empty("facts")),
        "candidates": publish(folder, "candidates", "invert", inverted, empty("candidates")),
        "memo": publish(folder, "memo", "memo", scored, empty("memo")),
        "selected": publish(folder, "selected", "select", chosen, empty("selected")),
        "target": Artifact(
            "target", "org/base", "org/base@abc", value=ModelRef("org/base", "org/base@abc", "abc")
        ),
        "model": model,
        "metrics": publish(folder, "metrics", "evaluate", {}, measured),
    }


def test_page_loads_nothing(tmp_path: Path) -> None:
    html = render(Report(show_text=True), artifacts(tmp_path))
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert ("html", {"lang": "en"}) in page.tags


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    html = render(Report(), artifacts(tmp_path))
    ids = [attributes["id"] for _, attributes in Page(html).tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', html)) <= set(ids)


def test_title_note_and_outcome(tmp_path: Path) -> None:
    html = render(Report(title="A <b>title</b>", note="It's a note."), artifacts(tmp_path))
    assert "<title>A &lt;b&gt;title&lt;/b&gt;</title>" in html
    text = Page(html).text
    assert "It's a note." in text
    assert (
        "The leak of the forget set went from 0.750 to 0.125 over 3 facts; "
        "the retain set still has 90.0 % of its ROUGE-L recall." in text
    )


def test_metrics_table_has_the_values(tmp_path: Path) -> None:
    inputs = artifacts(tmp_path)
    values = [
        ("zoo", "leak", "before", 0.5, 0.25, 0.75, 4),
        ("retain", "probability", "after", 0.12345, 0.1, 0.1996, 6),
        ("forget", "leak", "after", 0.0, 0.0, 0.0, 5),
        ("retain", "probability", "before", 1.0, 1.0, 1.0, 6),
        ("forget", "leak", "before", 0.98765, 0.9, 1.0, 5),
        ("forget", "memo", "before", 0.9, 0.8, 1.0, 5),
        ("forget", "memo", "after", 0.1, 0.0, 0.2, 5),
    ]
    table = pa.Table.from_pylist(
        [dict(zip(SCHEMAS["metrics"].names, v, strict=True)) for v in values]
    )
    inputs["metrics"] = Artifact("metrics", "", "d", value=table.cast(SCHEMAS["metrics"]))
    assert Page(render(Report(), inputs)).tables["metrics"][1:] == [
        ["forget", "memo", "0.900 (0.800–1.000)", "0.100 (0.000–0.200)", "5"],
        ["forget", "leak", "0.988 (0.900–1.000)", "0.000 (0.000–0.000)", "5"],
        ["retain", "probability", "1.000 (1.000–1.000)", "0.123 (0.100–0.200)", "6"],
        ["zoo", "leak", "0.500 (0.250–0.750)", "–", "4"],
    ]


def test_the_retain_model_has_a_column(tmp_path: Path) -> None:
    assert "Retain model" not in Page(render(Report(), artifacts(tmp_path / "without"))).text
    rows = examples(forget=2, retain=0)
    rows += [example("forget", number, "retain_model", leak=0.5) for number in range(2)]
    page = Page(render(Report(), artifacts(tmp_path / "with", rows)))
    header, *table = page.tables["metrics"]
    assert header == ["Suite", "Metric", "Before", "After", "Retain model", "Examples"]
    leak = next(row for row in table if row[1] == "leak")
    assert leak[2:] == [
        "0.750 (0.750–0.750)",
        "0.062 (0.000–0.125)",
        "0.500 (0.500–0.500)",
        "2",
    ]
    assert "evaluate.retain_model" in page.text, "without forget quality, the page says why"


def test_only_measured_metrics_are_explained(tmp_path: Path) -> None:
    assert MEANINGS.keys() >= {
        *MEASURES,
        *(f"{name}_{kind}" for name in ATTACKS for kind in ("auc", "tpr")),
    }
    rows = [row | {"states_inverted": None} for row in examples()]
    html = render(Report(), artifacts(tmp_path, rows))
    assert "<dt><code>leak</code></dt>" in html
    assert "states_inverted" not in html


def test_text_of_facts_is_hidden_by_default(tmp_path: Path) -> None:
    inputs = artifacts(tmp_path)
    hidden, shown = render(Report(), inputs), render(Report(show_text=True), inputs)
    assert PLANTED not in hidden
    # the highest leak comes first, and the retain set is not shown
    assert [row[1:3] for row in Page(hidden).tables["examples"][1:]] == [
        ["0.750", "0.250"],
        ["0.750", "0.125"],
        ["0.750", "0.000"],
    ]
    assert Page(shown).tables["examples"][1][3:] == [
        f"{PLANTED} question 2?",
        f"{PLANTED} truth 2.",
        f"{PLANTED} before 2.",
        f"{PLANTED} after 2.",
    ]


def test_text_of_facts_is_escaped(tmp_path: Path) -> None:
    rows = examples()
    for row in rows:
        row |= {
            name: f"<script>alert('{name}')</script>&\""
            for name in ("question", "answer", "generated")
        }
        row["fact_id"] = f"</svg>$x^{{{row['fact_id']}"
    page = Page(render(Report(show_text=True), artifacts(tmp_path, rows)))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert page.tables["examples"][1][3] == "<script>alert('question')</script>&\""


def test_equal_inputs_give_equal_pages(tmp_path: Path) -> None:
    inputs = artifacts(tmp_path)
    assert render(Report(), inputs) == render(Report(), inputs)


def test_plots_follow_the_number_of_facts(tmp_path: Path) -> None:
    few = Page(render(Report(), artifacts(tmp_path / "few")))
    # one of the two retain facts has no MEMO after, and one of the four answers is too short
    others = ["Distribution of MEMO over 3 answers", "Training loss over 4 steps"]
    assert few.plots() == ["MEMO before and after unlearning, 4 facts", *others]
    assert "00000002" in few.text
    many = Page(render(Report(), artifacts(tmp_path / "many", examples(forget=MAX_EXAMPLES + 1))))
    assert "Facts below the dashed line" in many.text
    assert len(many.tables["examples"]) == 1 + MAX_EXAMPLES
    assert f"{MAX_EXAMPLES} of {MAX_EXAMPLES + 1} facts are shown." in many.text


def test_counts_of_inversion_and_selection(tmp_path: Path) -> None:
    html = render(Report(), artifacts(tmp_path))
    counts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", html.split('id="counts"')[1]))
    assert counts == {
        "Facts with enough inverted facts": "2 of 3",
        "Mean distance of inverted answers to the true answer (1 - ROUGE-L)": "0.500",
        "Mean distance between two inverted answers of a fact (1 - ROUGE-L)": "–",
        "Rejected proposals by rule": "too_long 5",
        "MEMO of the true answers: mean, cv": "0.688, 0.274",
        "MEMO of the inverted answers: mean, cv": "0.250, 0.000",
        "MEMO of a true answer above the mean of its inverted answers": "0.627",
        "Most memorised facts": "x 0.877, y 0.500",
        "Least memorised facts": "y 0.500, x 0.877",
        "Answers that are too short to be scored": "1 of 4",
        "Facts with all 3 inverted facts selected (top_k)": "1 of 3",
        "Facts with fewer, but at least one": "1",
        "Facts with none": "1",
    }


def test_lineage(tmp_path: Path) -> None:
    inputs = artifacts(tmp_path)
    inputs["facts"] = Artifact(
        "facts", "s3://bucket/facts?secret=1", "cafe", value=SCHEMAS["facts"].empty_table()
    )
    html = render(Report(), inputs)
    page = Page(html)
    rows = {row[0]: row[1:] for row in page.tables["lineage"][1:]}
    assert list(rows) == list(inputs)
    assert rows["facts"] == ["from outside the pipeline, digest cafe", "s3://bucket/facts"]
    assert rows["target"] == ["from outside the pipeline, digest org/base@abc", "org/base"]
    fingerprint = "candidatesffffff"
    started = "2026-07-01 10:00:00"
    assert rows["candidates"] == [
        "invert",
        fingerprint,
        "0",
        started,
        "12.3",
        "7",
        inputs["candidates"].uri,
    ]
    assert rows["model"][2] == "–"
    assert "torch 2.13.0, ray 2.60.0." in page.text
    assert "secret" not in html


@pytest.mark.parametrize("name", ["model", "candidates", "memo", "selected", "metrics"])
def test_inputs_from_outside_leave_their_part_out(tmp_path: Path, name: str) -> None:
    inputs = artifacts(tmp_path)
    artifact = inputs[name]
    value = ModelRef(artifact.uri, "d") if name == "model" else artifact.table
    inputs[name] = Artifact(name, artifact.uri, "d", value=value)
    page = Page(render(Report(show_text=True), inputs))
    assert (
        page.tables["lineage"][1 + list(inputs).index(name)][1]
        == "from outside the pipeline, digest d"
    )
    assert ("the model comes from outside the pipeline" in page.text) == (name == "model")
    assert any("Training loss" in label for label in page.plots()) == (name != "model")
    assert any("MEMO before" in label for label in page.plots()) == (name != "metrics")
    assert any("Distribution" in label for label in page.plots()) == (name != "memo")
    assert ("examples" in page.tables) == (name != "metrics")


def test_no_retain_set(tmp_path: Path) -> None:
    page = Page(render(Report(), artifacts(tmp_path, examples(retain=0))))
    assert "from 0.750 to 0.125 over 3 facts." in page.text
    assert "retain set still has" not in page.text


def test_facts_without_a_leak_or_a_score(tmp_path: Path) -> None:
    rows = [row | {"leak": None, "memo": None} for row in examples(forget=1, retain=0)]
    page = Page(render(Report(), artifacts(tmp_path, rows)))
    assert "The metrics contain neither the leak of the forget set nor" in page.text
    assert page.tables["examples"][1][1:] == ["–", "–"]
    assert page.plots() == ["Distribution of MEMO over 3 answers", "Training loss over 4 steps"]


def test_the_target_alone_has_no_part_about_unlearning(tmp_path: Path) -> None:
    rows = [row for row in examples() if row["model"] == "before"]
    everything = artifacts(tmp_path, rows)
    inputs = {name: everything[name] for name in ("facts", "target", "metrics")}
    page = Page(render(Report(show_text=True), inputs))
    assert page.tables["metrics"][0] == ["Suite", "Metric", "Target", "Examples"]
    leak = next(row[2:] for row in page.tables["metrics"] if row[1] == "leak")
    assert leak == ["0.750 (0.750–0.750)", "3"]
    assert "The leak of the forget set is 0.750 over 3 facts;" in page.text
    assert "the ROUGE-L recall of the retain set is" in page.text
    header, first, *_ = page.tables["examples"]
    assert header[1:] == ["Leak", "Question", "True answer", "Answer"]
    assert first[1:] == [
        "0.750",
        f"{PLANTED} question 0?",
        f"{PLANTED} truth 0.",
        f"{PLANTED} before 0.",
    ]
    assert [row[0] for row in page.tables["lineage"][1:]] == ["facts", "target", "metrics"]
    assert page.plots() == []
    assert not {"Training", "Inversion", "After", "unlearning,"} & set(page.text.split())
