"""What the cluster can never hold, and what the last stage would refuse, is refused before anything is computed."""

from pathlib import Path

import pytest

from meow_ray.config.files import load_config
from meow_ray.distributed import placement
from meow_ray.errors import MeowError
from meow_ray.pipeline.graph import STAGES
from tests.support.runs import Program

GROWS = "resources.autoscaling=[{cpus: 8, gpus: 2, max_nodes: 2, labels: {group: a}}, {cpus: 4, max_nodes: 3}]"


def require(section: str, *overrides: str) -> None:
    placement.require(section, load_config(None, [GROWS, *overrides]).resources)


@pytest.mark.parametrize(
    ("section", "overrides"),
    [
        ("memo", ["resources.memo.num_actors=4"]),
        ("memo", ["resources.memo.num_actors=[4,400]"]),
        ("memo", ["resources.memo.num_actors=2", "resources.memo.tensor_parallel_size=2"]),
        ("invert", ["resources.invert.num_actors=26", "resources.invert.gpus_per_actor=0"]),
        ("train", ["resources.train.num_workers=4", "resources.train.cpus_per_worker=4"]),
        ("train", ["resources.train.num_workers=40", "resources.train.min_workers=4"]),
    ],
)
def test_what_fits_at_its_least_is_taken(section: str, overrides: list[str]):
    require(section, *overrides)


@pytest.mark.parametrize(
    ("section", "overrides", "said"),
    [
        (
            "memo",
            ["num_actors=5"],
            "5 x (0.5 CPUs, 1 GPUs, each on one node) and 1 CPU beside them",
        ),
        (
            "memo",
            ["num_actors=1", "tensor_parallel_size=4"],
            "1 x (0.5 CPUs, 4 GPUs, each on one node)",
        ),
        ("evaluate", ["num_actors=[57,58]", "gpus_per_actor=0"], "57 x (0.5 CPUs, 0 GPUs"),
        ("train", ["num_workers=5"], "5 x (1 CPUs, 1 GPUs, each on one node); the cluster"),
        ("train", ["cpus_per_worker=9"], "4 x (9 CPUs, 1 GPUs"),
        (
            "train",
            ["num_workers=1", "node_labels={group: b}"],
            '1 x (1 CPUs, 0 GPUs, each on one node) on nodes labelled {"group": "b"};',
        ),
    ],
)
def test_what_never_fits_is_refused_with_what_there_is(
    section: str, overrides: list[str], said: str
):
    with pytest.raises(MeowError) as refused:
        require(section, *(f"resources.{section}.{override}" for override in overrides))
    message = str(refused.value)
    assert message.startswith(f"`resources.{section}` asks for {said}")
    there = "no such node" if "labelled" in said else "2 x 8 CPUs and 2 GPUs; 3 x 4 CPUs and 0 GPUs"
    assert (
        f"may have at most (resources.autoscaling): {there}. Lower the key or add nodes." in message
    )


def test_a_cut_engine_needs_a_gpu_for_each_part():
    with pytest.raises(MeowError, match="`gpus_per_actor` is 1 and `tensor_parallel_size` 2"):
        require("memo", "resources.memo.tensor_parallel_size=2", "resources.memo.gpus_per_actor=1")


def test_each_stage_with_actors_or_workers_says_where_it_is_placed():
    found = {stage.name: stage.resources for stage in STAGES if stage.resources}
    assert found == {
        "memorize": "memorize",
        "invert": "invert",
        "memo": "memo",
        "reference": "memo",
        "train": "train",
        "remain": "memo",
        "evaluate": "evaluate",
    }


def program(model: Path, folder: Path, *overrides: str) -> Program:
    """Returns a run that has nothing cached."""
    forget = folder / "forget.jsonl"
    forget.write_text('{"question": "Who sang?", "answer": "Ann sang."}\n')
    config = folder / "c.yaml"
    config.write_text(
        f"target: {{model: {model}}}\ninvert: {{model: {model}}}\ningest: {{forget: {forget}}}\n"
    )
    return Program(config, folder / "root", list(overrides))


def test_the_last_stage_is_placed_before_the_first_begins(tiny_model: Path, tmp_path: Path):
    run = program(tiny_model, tmp_path, "resources.evaluate.num_actors=1000")
    done = run.run("meow.py", status=2)
    assert "Error: `resources.evaluate` asks for 1000 x (0.5 CPUs, 0 GPUs" in done.stderr
    assert "name in resources.autoscaling what the cluster adds on demand" in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["ingest:", "ingest:"]
    assert [path.name for path in run.root.iterdir()] == ["facts"]


def test_a_file_of_the_last_stage_that_is_not_there_is_missed_before_the_first_begins(
    tiny_model: Path, tmp_path: Path
):
    run = program(tiny_model, tmp_path, f"evaluate.retain_model={tmp_path}/nowhere.json")
    done = run.run("meow.py", status=2)
    assert "Error: `evaluate.retain_model`: there is no" in done.stderr
    assert done.stdout == ""
    assert not run.root.exists()


def test_a_reference_of_another_forget_set_is_refused_before_a_model_is_asked(
    tiny_model: Path, tmp_path: Path
):
    rows = tmp_path / "perturbed.jsonl"
    rows.write_text(
        '{"question": "Who sang?", "answer": "Ann sang.", "perturbed_answer": ["Bob sang."]}\n'
    )
    log = tmp_path / "TOFU_EVAL.json"
    log.write_text(
        '{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}, "1": {"score": 0.5}}}}'
    )
    run = program(
        tiny_model, tmp_path, f"evaluate.sets={{forget: {rows}}}", f"evaluate.retain_model={log}"
    )
    done = run.run("meow.py", status=2)
    message = "TOFU_EVAL.json: the forget set has another number of rows (2) than the model's (1)."
    assert message in done.stderr
    assert [path.name for path in run.root.iterdir()] == ["facts"]
