"""TOFU's aggregation: the official figures, and hand-computed cases."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu, tofu_logs
from meow_ray.stages.evaluate.tofu import Results


def are_close(figures: dict[str, float], expected: dict[str, float]) -> bool:
    return figures.keys() == expected.keys() and all(
        math.isclose(figures[name], value, rel_tol=1e-9) for name, value in expected.items()
    )


@pytest.mark.parametrize("name", ["full vs retain90", "retain90 vs retain90"])
def test_official_logs_give_the_official_figures(shared_data: Callable[[str], Path], name: str):
    expected = json.loads(shared_data("tofu_eval_logs/expected.json").read_text())[name]
    log, retain_log = (
        str(shared_data(f"tofu_eval_logs/llama2_{part}.json")) for part in name.split(" vs ")
    )
    assert are_close(tofu_logs.aggregate_logs(log, retain_log), expected)
    arguments = ["tofu", log, "--retain-model", retain_log, "--json"]
    assert are_close(json.loads(CliRunner().invoke(main.app, arguments).output), expected)


def test_without_a_retain_model_there_is_no_forget_quality(shared_data: Callable[[str], Path]):
    log = str(shared_data("tofu_eval_logs/llama2_full.json"))
    output = CliRunner().invoke(main.app, ["tofu", log]).output
    assert "Model Utility" in output
    assert "Forget quality needs --retain-model" in output
    assert "KS Test" not in output


def test_results_of_another_split_are_refused(shared_data: Callable[[str], Path]):
    paths = (shared_data(f"tofu_eval_logs/llama2_{name}.json") for name in ("full", "retain95"))
    full, other = (tofu_logs.read_log(str(path)).suites["forget"] for path in paths)
    message = "x.json: the forget set has another number of rows (200) than the model's (300)."
    with pytest.raises(MeowError, match=re.escape(message)):
        tofu.check_same_forget_set(len(full), full.answers, other, "x.json")


# --- computed by hand -----------------------------------------------------------------------------


def test_the_truth_ratio_is_geometric_over_the_wrong_answers():
    half, quarter, sixteenth = (-math.log(p) for p in (1 / 2, 1 / 4, 1 / 16))
    # wrong answers of 1/4 and 1/16: geometric mean 1/8; the right one 1/2
    assert tofu.truth_ratio(np.array([half]), [[quarter, sixteenth]]) == pytest.approx([1 / 4])


def test_the_score_of_a_truth_ratio_is_two_sided_on_the_forget_set_alone():
    ratios = np.array([0.25, 1.0, 4.0, 0.0, np.inf])
    assert tofu.truth_scores("forget", ratios).tolist() == [0.25, 1.0, 0.25, 0.0, 0.0]
    assert tofu.truth_scores("retain", ratios).tolist() == [0.75, 0.0, 0.0, 1.0, 0.0]


def test_a_probability_among_options_is_a_share_of_their_sum():
    losses = np.array([-math.log(0.5)])
    assert tofu.normalized_probability(losses, [[-math.log(0.25)] * 2]) == pytest.approx([0.5])


def results(
    truth: float, probability: float = 0.5, recall: float = 0.5, count: int = 2, **values: Any
) -> Results:
    return Results(
        np.full(count, truth), np.full(count, probability), np.full(count, recall), **values
    )


def test_model_utility_is_the_harmonic_mean_of_nine():
    log = {suite: results(0.5) for suite in tofu.UTILITY}
    assert tofu.model_utility(log) == pytest.approx(0.5)
    log["retain"] = results(0.5, probability=0.25)
    assert tofu.model_utility(log) == pytest.approx(9 / (8 / 0.5 + 1 / 0.25))
    log["retain"] = results(1.0)
    assert tofu.model_utility(log) == 0  # max(0, 1 - 1)
    assert tofu.model_utility({"retain": results(0.5)}) is None


def test_forget_quality_compares_distributions_and_not_pairs():
    ordered = Results(np.array([0.1, 0.2, 0.3]))
    shuffled = Results(np.array([0.3, 0.1, 0.2]))
    assert tofu.forget_quality(ordered, shuffled) == (1.0, 0.0)
    apart = Results(np.array([1.1, 1.2, 1.3]))
    pvalue, statistic = tofu.forget_quality(ordered, apart)
    assert statistic == 1.0
    assert pvalue == pytest.approx(
        0.1
    )  # 2 of the 20 ways to split 6 values in two are as far apart


def test_a_forget_set_is_recognised_by_its_answers():
    answers = ("a", "b")
    tofu.check_same_forget_set(2, answers, results(0.5), "x.json")
    tofu.check_same_forget_set(2, answers, results(0.5, answers=("b ", "a")), "x.json")
    message = "x.json: the forget set is not the model's (1 of 2 answers are not in it)."
    with pytest.raises(MeowError, match=re.escape(message)):
        tofu.check_same_forget_set(2, answers, results(0.5, answers=("a", "c")), "x.json")
