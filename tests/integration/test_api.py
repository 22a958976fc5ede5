"""The Python API on a tiny model: the README's snippet, the docstrings' examples, each function."""

import doctest
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import meow_ray
from meow_ray.errors import MeowError
from meow_ray.pipeline import api
from meow_ray.stages.invert.rules import RULES
from meow_ray.stages.report import compare
from meow_ray.stages.train import registered
from tests.support.runs import BIN, PROJECT, Program
from tests.support.tiny import KNOWN, memorise

FORGET, RETAIN = KNOWN[:1], KNOWN[1:]


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: `mine.yaml`, two files of facts, and `model`, which knows the facts."""
    folder = tmp_path_factory.mktemp("user")
    memorise(tiny_model, tiny_tokenizer, KNOWN, folder / "model")
    for name, facts in (("forget", FORGET), ("retain", RETAIN)):
        lines = [json.dumps({"question": q, "answer": a}) for q, a in facts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    # a model that knows three facts writes nothing that keeps the rules
    (folder / "mine.yaml").write_text(
        f"""
target: {{model: model, engine: transformers, template: chat}}
ingest: {{forget: forget.jsonl, retain: retain.jsonl}}
invert:
  model: model
  engine: transformers
  style: prefill
  fallback: false
  num_candidates: 3
  samples: 8
  max_new_tokens: 8
  skip_rules: [{", ".join(RULES)}]
memo: {{max_new_tokens: 12}}
train: {{objective: meow, batch_size: 2, epochs: 2}}
evaluate: {{max_new_tokens: 12, bootstrap_resamples: 50}}
resources: {{train: {{num_workers: 1}}}}
storage: {{root: runs/mine}}
"""
    )
    return folder


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def quiet(event: Any) -> None:
    """Takes events without printing them."""


# --- what the documentation shows -----------------------------------------------------------------


def test_the_snippet_of_the_readme_prints_the_figures_of_the_command_line(folder: Path):
    (snippet,) = re.findall(r"```python\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    printed = run_python(folder, "-c", snippet)
    overrides = ("select.top_k=2", "storage.root=runs/other")
    run_python(folder, PROJECT / "pipelines/meow.py", "--config=mine.yaml", *overrides)
    metrics = Program(folder / "mine.yaml", folder / "runs/other").table("metrics")
    assert str(metrics.to_pandas()) in printed
    model, report = printed.split()[-2:]
    assert (Path(folder, model) / "model.safetensors").exists()
    assert Path(folder, report).read_text().startswith("<!DOCTYPE html>")


def run_python(folder: Path, *arguments: str | Path) -> str:
    """Runs Python in a folder, with this project on its path; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(PROJECT)}


EXAMPLES = [
    test
    for module in (api, registered)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_the_examples_of_docstrings_run(
    example: doctest.DocTest, inside: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(registered, "REGISTERED", dict(registered.REGISTERED))
    example.globs = {"meow_ray": meow_ray}
    output: list[str] = []
    failed, attempted = doctest.DocTestRunner().run(example, out=output.append)
    assert attempted
    assert not failed, "".join(output)


def test_every_public_name_is_documented():
    for name in meow_ray.__all__:
        assert (getattr(meow_ray, name).__doc__ or "").strip(), name
    assert set(meow_ray.__all__) <= set(dir(meow_ray))
    with pytest.raises(AttributeError, match="no attribute 'forget'"):
        meow_ray.forget  # noqa: B018 - the access is what is tested


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_gives_tables_and_places(inside: Path):
    run = meow_ray.run("mine.yaml", on_event=quiet)
    assert set(run.metrics["model"].to_pylist()) == {"before", "after"}
    assert {"question", "generated", "suite"} <= set(run.examples.column_names)
    assert run.table("facts").num_rows == len(KNOWN)
    assert run.config.train.epochs == 2
    events: list[str] = []
    again = meow_ray.run("mine.yaml", on_event=lambda event: events.append(event.kind))
    assert set(events) == {"cached"}
    assert again.model == run.model
    with pytest.raises(MeowError, match=r"made no remaining\. It made facts"):
        run.table("remaining")


def test_overrides_belong_to_a_file_and_not_to_a_configuration(inside: Path):
    config = meow_ray.load_config("mine.yaml")
    with pytest.raises(MeowError, match="Pass them to load_config"):
        meow_ray.run(config, ["train.epochs=3"])


def test_a_mistake_is_an_error_that_says_what_to_do(inside: Path):
    with pytest.raises(MeowError, match=r"--only nope: this run has no such stage"):
        meow_ray.run_stage("nope", "mine.yaml")
    with pytest.raises(MeowError, match=r"train\.objective"):
        meow_ray.load_config("mine.yaml", ["train.objective=nope"])


# --- the stages as tools --------------------------------------------------------------------------


def test_memo_of_what_a_model_knows_is_one(inside: Path):
    whole = ["memo.max_new_tokens=40"]  # no continuation is cut off within a word
    table = meow_ray.score_memo("model", KNOWN, "mine.yaml", whole, on_event=quiet)
    assert table["memo"].to_pylist() == [1.0] * len(KNOWN)
    assert table["text"].to_pylist() == [answer for _, answer in KNOWN]


def test_inverted_facts_are_written_for_each_fact(inside: Path):
    table = meow_ray.invert_facts(FORGET, "model", "mine.yaml", on_event=quiet)
    ((question, answer),) = FORGET
    assert table["question"].to_pylist() == [question] * 3
    assert table["answer"].to_pylist() == [answer] * 3
    assert len(set(table["inverted_answer"].to_pylist())) == 3
    with pytest.raises(MeowError, match="forget, line 1: answer is empty"):
        meow_ray.invert_facts([("Q?", " ")], "model", "mine.yaml")


def test_one_model_is_evaluated_alone(inside: Path):
    table = meow_ray.evaluate_model("model", FORGET, RETAIN, "mine.yaml", on_event=quiet)
    assert "model" not in table.column_names
    for suite, count in (("forget", 1), ("retain", 2)):
        (row,) = table.filter(
            (pc.field("suite") == suite) & (pc.field("metric") == "exact_memorization")
        ).to_pylist()
        assert (row["value"], row["num_examples"]) == (1.0, count)


def test_the_command_evaluates_one_model_alone(inside: Path):
    """There are neither candidates nor a tuned model, and MEMO is off."""
    done = subprocess.run(
        [
            *(BIN / "meow", "evaluate", "--config", "mine.yaml"),
            *("storage.root=runs/alone", "evaluate.memo=false"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    events = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert [line.split()[1].rstrip(":") for line in events if "cached" not in line][::2] == [
        "ingest",
        "evaluate",
        "report",
    ]
    metrics = compare.metrics_of("runs/alone", "before").table
    assert set(metrics["model"].to_pylist()) == {"before"}
    assert "memo" not in metrics["metric"].to_pylist()
    of_forget_set = pc.field("suite") == "forget"
    greedy = metrics.filter(of_forget_set & (pc.field("metric") == "exact_memorization"))
    assert greedy["value"].to_pylist() == [1.0]
    page = Path(done.stdout.rpartition("Report: ")[2].strip()).read_text()
    assert "The target alone was evaluated" in page
    table = meow_ray.compare_runs({"alone": "runs/alone"}, model="before")
    assert table.num_rows == metrics.num_rows
    with pytest.raises(MeowError, match="Compare another one with --model: it has before"):
        meow_ray.compare_runs({"alone": "runs/alone"})


def test_runs_are_compared_by_name(inside: Path):
    run = meow_ray.run("mine.yaml", on_event=quiet)
    table = meow_ray.compare_runs({"meow": "runs/mine", "seeds": ["runs/mine", "runs/mine"]})
    assert set(table["run"].to_pylist()) == {"meow", "seeds"}
    for row in table.to_pylist():
        assert row["runs"] == (2 if row["run"] == "seeds" else 1)
        assert (row["spread"] is None) == (row["run"] == "meow")
    (leak,) = run.metrics.filter(
        (pc.field("suite") == "forget")
        & (pc.field("metric") == "leak")
        & (pc.field("model") == "after")
    ).to_pylist()
    same = [r for r in table.to_pylist() if (r["suite"], r["metric"]) == ("forget", "leak")]
    assert {row["value"] for row in same} == {leak["value"]}


def test_tofu_logs_are_aggregated_as_on_the_command_line(
    shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
):
    full, retain = (
        str(shared_data(f"tofu_eval_logs/llama2_{name}.json")) for name in ("full", "retain90")
    )
    figures = meow_ray.aggregate_tofu(full, retain)
    assert {"Model Utility", "Forget Quality"} <= set(figures)
    done = subprocess.run(
        [BIN / "meow", "tofu", full, "--json", f"--retain-model={retain}"],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
    )
    assert json.loads(done.stdout) == figures


# --- objectives -----------------------------------------------------------------------------------


def test_a_registered_objective_trains_as_the_method_that_it_copies(inside: Path):
    @meow_ray.register_objective(name="copy_of_meow")
    def copied(inverted: Any) -> Any:
        return -inverted.token_mean(inverted.log_probs)

    meow_ray.run("mine.yaml", on_event=quiet)
    try:
        losses = [
            meow_ray.run_stage(
                "train", "mine.yaml", [f"train.objective={name}"], on_event=quiet
            ).manifest.summary["last_loss"]
            for name in ("meow", "copy_of_meow")
        ]
    finally:
        registered.REGISTERED.pop("copy_of_meow")
    assert losses[0] == losses[1]
