"""The benchmark against plain transformers as a whole: both programs, on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import peers

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def data(monkeypatch: pytest.MonkeyPatch, shared_data: Callable[[str], Path]) -> None:
    monkeypatch.setattr(peers, "SHARED_DATA", shared_data("tofu/forget01.jsonl").parents[1])


def test_both_evaluations_agree(tiny_model: Path, tmp_path: Path):
    output = tmp_path / "evaluate.json"
    options = ["--engine", "transformers", "--count", "3", "--max-new-tokens", "8"]
    command = ["evaluate", "--model", str(tiny_model), *options, "--output", str(output)]
    CliRunner().invoke(peers.app, command, catch_exceptions=False)
    figures = json.loads(output.read_text())["figures"]
    assert figures["agreement"]["rows"] == 6
    assert figures["agreement"]["other_replies"] == 0
    assert figures["agreement"]["largest_difference_of_losses"] < peers.TOLERANCE
    assert figures["agreement"]["largest_difference_of_truth_ratios"] < peers.TOLERANCE
    (ours,) = figures["rounds"]["ours"]
    assert 0 < ours["work"]["wall_seconds"] < ours["whole"]["wall_seconds"]


def test_both_trainers_have_the_same_losses(tiny_model: Path, tmp_path: Path):
    output = tmp_path / "train.json"
    options = ["--count", "3", "--batch-size", "2", "--learning-rate", "1e-3"]
    command = ["train", "--model", str(tiny_model), *options, "--output", str(output)]
    CliRunner().invoke(peers.app, command, catch_exceptions=False)
    agreement = json.loads(output.read_text())["figures"]["agreement"]
    assert agreement["steps"] == 3
    assert agreement["difference_of_first_losses"] < peers.TOLERANCE
    assert agreement["largest_difference_of_losses"] < 0.05
