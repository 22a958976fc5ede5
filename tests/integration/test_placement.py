"""Mistakes that only the last stage would notice are refused before anything is computed."""

from pathlib import Path

from tests.support.runs import Program


def uncached_run(model: Path, folder: Path, *overrides: str) -> Program:
    """Returns a program over an empty storage root."""
    forget = folder / "forget.jsonl"
    forget.write_text('{"question": "Who sang?", "answer": "Ann sang."}\n')
    config = folder / "config.yaml"
    config.write_text(
        f"target: {{model: {model}}}\ninvert: {{model: {model}}}\ningest: {{forget: {forget}}}\n"
        "train: {objective: meow}\n"
    )
    return Program(config, folder / "root", list(overrides))


def test_the_last_stage_is_placed_before_a_model_is_loaded(tiny_model: Path, tmp_path: Path):
    run = uncached_run(tiny_model, tmp_path, "resources.evaluate.num_actors=1000")
    done = run.run("meow.py", status=2)
    assert "Error: `resources.evaluate`: it needs 1000 x (0.5 CPUs, 0 GPUs" in done.stderr
    assert "or list in `resources.autoscaling` what the cluster adds." in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["ingest:", "ingest:"]
    assert sorted(path.name for path in run.root.iterdir()) == ["facts", "leases"]


def test_a_missing_file_of_the_last_stage_is_reported_before_the_first_begins(
    tiny_model: Path, tmp_path: Path
):
    run = uncached_run(tiny_model, tmp_path, f"evaluate.retain_model={tmp_path}/nowhere.json")
    done = run.run("meow.py", status=2)
    assert "Error: `evaluate.retain_model`: there is no" in done.stderr
    assert done.stdout == ""
    assert not run.root.exists()


def test_a_retain_log_of_another_forget_set_is_refused_before_a_model_is_loaded(
    tiny_model: Path, tmp_path: Path
):
    rows = tmp_path / "perturbed.jsonl"
    rows.write_text(
        '{"question": "Who sang?", "answer": "Ann sang.", "perturbed_answer": ["Bob sang."]}\n'
    )
    log = tmp_path / "TOFU_EVAL.json"
    log.write_text(
        '{"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}, "1": {"score": 1.5}}}}'
    )
    run = uncached_run(
        tiny_model, tmp_path, f"evaluate.sets={{forget: {rows}}}", f"evaluate.retain_model={log}"
    )
    done = run.run("meow.py", status=2)
    message = "TOFU_EVAL.json: the forget set has another number of rows (2) than the model's (1)."
    assert message in done.stderr
    assert not run.root.exists()
