"""lm-evaluation-harness on a tiny model, with a task file of the user."""

import json
import math
import sys
from pathlib import Path

import pytest

from meow_ray.config import LmEval
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.stages.evaluate import lm_eval, task_checks


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    rows = [
        {"question": f"Letter {i}?", "choices": ["a", "bb", "ccc"], "gold": i % 3} for i in range(6)
    ]
    data = tmp_path / "letters.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.yaml").write_text(
        f"""
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {data}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
    )
    return str(tmp_path)


@pytest.fixture
def engine(tiny_model: Path, own_home: Path) -> EngineSpec:
    return EngineSpec(refs.pin(str(tiny_model), None, "model"), "transformers", "float32", 256)


def test_a_task_of_the_user_is_scored_with_its_error(engine: EngineSpec, tasks: str):
    rows = lm_eval.run_tasks(engine, LmEval(tasks=("letters",), limit=5), tasks, 4, 0)
    assert [(row["suite"], row["metric"], row["num_examples"]) for row in rows] == [
        ("lm_eval", "letters/acc", 5),
        ("lm_eval", "letters/acc_norm", 5),
    ]
    for row in rows:
        assert row["value"] in {i / 5 for i in range(6)}
        assert row["low"] <= row["value"] <= row["high"]


def test_a_group_counts_the_examples_of_its_tasks():
    group = {"alias": "both", "sample_len": 12, "acc,none": 0.5, "acc_stderr,none": math.nan}
    report = {"results": {"both": group}, "n-samples": {"one": {"effective": 6}}}
    [row] = lm_eval.rows_of_report(report)
    assert (row["metric"], row["num_examples"], row["low"], row["high"]) == (
        "both/acc",
        12,
        None,
        None,
    )


def test_a_figure_that_is_not_finite_is_refused_by_its_task():
    message = r"^`evaluate.lm_eval.tasks`: acc of letters is not a number \(nan\)\."
    with pytest.raises(MeowError, match=message):
        lm_eval.rows_of_report({"results": {"letters": {"acc,none": math.nan}}})


def test_tasks_without_the_harness_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MeowError, match=r"the package lm_eval is not installed\. Run pip install"):
        lm_eval.check_installed(LmEval(tasks=("letters",)))
    lm_eval.check_installed(LmEval())


def test_an_unknown_task_is_refused_with_the_nearest_name(tasks: str):
    assert list(task_checks.task_faults(LmEval(tasks=("letters", "arc_chalenge")), tasks)) == [
        "`evaluate.lm_eval.tasks`: the harness does not know the task arc_chalenge. Did you mean "
        "arc_challenge? Correct the name, or put its file into `evaluate.task_folder`."
    ]


def test_files_of_a_task_that_do_not_exist_are_named(tasks: str):
    assert list(task_checks.task_faults(LmEval(tasks=("letters",)), tasks)) == []
    (Path(tasks) / "letters.jsonl").unlink()
    (fault,) = task_checks.task_faults(LmEval(tasks=("letters",)), tasks)
    assert f"the data of letters cannot be read: there is no file {tasks}/letters.jsonl" in fault


def test_data_that_cannot_be_reached_are_named_once_per_task(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(task_checks, "_hub_fault", lambda path: (None, False))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    cache = tmp_path / "allenai___ai2_arc" / "ARC-Easy"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path))
    spec = LmEval(tasks=("arc_easy", "mmlu"))
    arc, mmlu = task_checks.task_faults(spec, None)
    assert "the data of arc_easy cannot be reached (allenai/ai2_arc: the hub cannot be" in arc
    assert "the data of mmlu cannot be reached (cais/mmlu: the hub cannot be reached)" in mmlu
    cache.mkdir(parents=True)
    assert list(task_checks.task_faults(spec, None)) == [mmlu]
