"""Tests of `benchmarks.never_seen`: its cases, and the rule that picks the best epochs."""

import json
from pathlib import Path

import pytest

from benchmarks import never_seen
from benchmarks.never_seen import CASES, best_epochs, of_seed, overrides_of, run_name, write_config
from meow_ray.pipeline.pipeline import load_config


def figures(leak: float, retain: float) -> never_seen.Figures:
    values = {
        "leak after half the answer": leak,
        "retain ROUGE-L": retain,
        "retain probability": retain,
    }
    return {label: {"value": value, "low": None, "high": None} for label, value in values.items()}


def test_the_best_run_leaks_least_among_those_that_retain_enough():
    runs = {"few": figures(0.5, 0.9), "some": figures(0.2, 0.86), "many": figures(0.0, 0.85)}
    # 95 % of 0.9 is 0.855
    assert best_epochs(runs, figures(1.0, 0.9)) == "some"


def test_the_best_run_retains_most_if_none_retains_enough():
    runs = {"few": figures(0.5, 0.8), "some": figures(0.2, 0.7)}
    assert best_epochs(runs, figures(1.0, 0.9)) == "few"


def test_only_runs_with_a_number_of_epochs_compete():
    runs = {run_name(epochs, seed): figures(0, 1) for epochs in (None, 5) for seed in (0, 1)}
    assert list(of_seed(runs, 1)) == ["5 epochs, seed 1"]
    assert best_epochs({}, figures(1.0, 0.9)) is None


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_demo_with_other_facts(name: str, tmp_path: Path):
    config = load_config(write_config(CASES[name], tmp_path), overrides_of(5, 1))
    facts = [json.loads(line) for line in CASES[name].forget.read_text().splitlines()]
    assert config.ingest.forget.path == str(CASES[name].forget)
    assert (config.train.until, config.train.epochs, config.train.seed) == ("epochs", 5, 1)
    candidates = CASES[name].candidates
    if candidates:
        lines = candidates.read_text().splitlines()
        assert [json.loads(line)["question"] for line in lines] == [
            fact["question"] for fact in facts
        ]
