"""Logs of TOFU and of open-unlearning: reading them, and the mistakes in them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu_logs

OFFICIAL = (
    "eval_log.json",
    "eval_log_forget.json",
    "eval_real_author_wo_options.json",
    "eval_real_world_wo_options.json",
)
FORGET = "eval_log_forget.json"


def official(count: int = 2) -> dict[str, Any]:
    part = {
        "avg_gt_loss": {str(i): 0.5 for i in range(count)},
        "avg_paraphrased_loss": {str(i): 0.5 for i in range(count)},
        "average_perturb_loss": {str(i): [0.5, 1.5] for i in range(count)},
        "rougeL_recall": {str(i): 0.25 for i in range(count)},
    }
    return {name: json.loads(json.dumps(part)) for name in OFFICIAL}


def write(folder: Path, data: Any) -> str:
    path = folder / "log.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return str(path)


def test_the_answers_of_a_log_with_texts_are_read(tmp_path: Path):
    data = official()
    data["eval_log_forget.json"]["generated_text"] = {
        "0": ["q", "reply", "true"],
        "1": ["q", "reply", "too"],
    }
    assert tofu_logs.read_log(write(tmp_path, data)).suites["forget"].answers == ("true", "too")


def broken(key: str, column: str, row: str | None, value: Any) -> dict[str, Any]:
    data = official()
    if row is None:
        data[key][column] = value
    else:
        data[key][column][row] = value
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "malformed JSON"),
        ("[1, 2]", "this is neither an eval_log_aggregated.json"),
        ({}, "this is neither an eval_log_aggregated.json"),
        ("{\n\n'a'", "line 3: malformed JSON"),
        (broken(FORGET, "avg_gt_loss", None, {}), f"{FORGET}: avg_gt_loss is empty"),
        (broken(FORGET, "avg_gt_loss", None, [1.0]), f"{FORGET}: avg_gt_loss is missing"),
        (
            broken(FORGET, "rougeL_recall", None, {"0": 1.0}),
            "rougeL_recall has other rows (1) than avg_gt_loss (2)",
        ),
        (
            broken(FORGET, "avg_gt_loss", "1", math.nan),
            "avg_gt_loss of row 1 is not a number (nan)",
        ),
        (broken(FORGET, "avg_gt_loss", "1", "x"), "avg_gt_loss of row 1 is not a number ('x')"),
        (
            broken(FORGET, "average_perturb_loss", "0", []),
            "average_perturb_loss of row 0 is not a list of numbers",
        ),
        (
            broken(FORGET, "average_perturb_loss", "0", [1.0, math.inf]),
            "average_perturb_loss of row 0 is not a number (inf)",
        ),
        (
            broken(FORGET, "generated_text", None, [["q", "reply", "true"]]),
            "generated_text of row 0 is not a list of prompt, reply and true answer",
        ),
        (
            broken(FORGET, "generated_text", None, {"0": ["q", "r", "true"]}),
            "generated_text of row 1 is not a list of prompt, reply and true answer",
        ),
        (
            broken(FORGET, "generated_text", None, {"0": ["q", "r"], "1": ["q", "r"]}),
            "generated_text of row 0 is not a list of prompt, reply and true answer",
        ),
        (
            {"forget_Q_A_Prob": {"value_by_index": {"0": {"prob": 0.5}}}},
            "forget_truth_ratio is missing",
        ),
        ({"forget_truth_ratio": {"agg_value": 0.5}}, "value_by_index is missing"),
        ({"forget_truth_ratio": {"value_by_index": {}}}, "value_by_index is empty"),
        (
            {"forget_truth_ratio": {"value_by_index": {"0": {"score": None}}}},
            "forget_truth_ratio: no row has a score",
        ),
        ({"forget_truth_ratio": {"value_by_index": {"0": 0.5}}}, "row 0 has no score"),
        (
            {"forget_truth_ratio": 0.63, "forget_quality": None},
            "this is a summary of open-unlearning, such as TOFU_SUMMARY.json",
        ),
        (official()[FORGET], "this is TOFU's log of one set. Give the eval_log_aggregated.json"),
        ({"mia_min_k": {"auc": 1.5}}, "mia_min_k: auc is not a number between 0 and 1 (1.5)"),
    ],
)
def test_a_broken_log_is_refused_by_its_name(tmp_path: Path, data: Any, message: str):
    with pytest.raises(MeowError) as caught:
        tofu_logs.read_log(write(tmp_path, data))
    assert "log.json" in str(caught.value)
    assert message in str(caught.value)


def test_a_missing_log_is_refused(tmp_path: Path):
    with pytest.raises(MeowError, match=r"nowhere\.json"):
        tofu_logs.read_log(str(tmp_path / "nowhere.json"))


def test_forget_quality_needs_a_forget_set_in_both_logs(tmp_path: Path):
    log = official()
    del log[FORGET]
    path = write(tmp_path, log)
    with pytest.raises(MeowError) as caught:
        tofu_logs.aggregate_logs(path, path)
    assert str(caught.value).startswith(f"{path}: the file has no results on the forget set")
    program = CliRunner().invoke(main.app, ["tofu", path, "--retain-model", path])
    assert isinstance(program.exception, MeowError)
    assert str(program.exception) == str(caught.value)
