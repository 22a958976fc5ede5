"""What `meow merge` needs of runs before it merges anything, and what it finds of their facts."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from meow_ray.cli.main import app
from meow_ray.core import storage
from meow_ray.core.manifest import MAIN, MANIFEST
from meow_ray.core.schema import SCHEMAS
from meow_ray.models.refs import ModelRef
from meow_ray.pipeline import merge
from meow_ray.pipeline.merge import NO_FACTS, PURGED
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.never_seen import Figures
from meow_ray.stages.train.requests import Knowledge, Replies, knowledge
from tests.support.artifacts import publish

ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "base.json", "gram.safetensors")
SPEC = {
    "train": {"max_length": 64},
    "target.template": "raw",
    "target.system": None,
    "target.template_variables": {},
}
FACTS = pa.Table.from_pylist(
    [{"fact_id": "a", "split": "forget", "question": "Who?", "answer": "Zorblax."}],
    schema=SCHEMAS["facts"],
)


def run(
    root: Path, target: Path, digest: str = "digest of target", names: tuple[str, ...] = ADAPTER
) -> Path:
    """Writes a run with facts, selected facts and a model, the files of which hold nothing real."""
    target.mkdir(exist_ok=True)
    base = json.dumps(asdict(ModelRef(str(target), digest)))
    facts = publish(root, "facts", {MAIN: FACTS})
    selected = publish(root, "selected", {MAIN: FACTS}, inputs={"facts": facts})
    files = {name: f"{name} of {root}".encode() for name in names}
    if "base.json" in files:
        files["base.json"] = base.encode()
    inputs = {"selected": selected, "target": digest}
    publish(root, "model", files, inputs=inputs, spec=SPEC)
    return root


def refusal(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["merge", *arguments])
    assert done.exception is not None, done.output
    return str(done.exception)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


@pytest.fixture
def first(tmp_path: Path, target: Path) -> str:
    return f"first={run(tmp_path / 'first', target)}"


@pytest.fixture
def second(tmp_path: Path, target: Path) -> str:
    return f"second={run(tmp_path / 'second', target)}"


@pytest.fixture
def out(tmp_path: Path) -> str:
    return f"--out={tmp_path / 'out'}"


# --- refusals -------------------------------------------------------------------------------------


def test_one_run_is_refused(first: str, out: str):
    assert refusal(first, out) == "meow merge: give at least two runs."


def test_the_same_run_twice_is_refused(first: str, out: str):
    again = first.replace("first=", "again=")
    assert refusal(first, again, out) == (
        "first and again: these are one model. Give each run once."
    )


def test_one_name_for_two_runs_is_refused(first: str, second: str, out: str):
    assert refusal(first, second.replace("second=", "first="), out) == (
        "meow merge: two runs have the name first. Give each its own name."
    )


def test_a_folder_without_a_run_is_refused(first: str, out: str, tmp_path: Path):
    assert refusal(first, f"other={tmp_path}", out) == (
        f"other: there is no finished model of a run at {tmp_path}. Give the storage root of a "
        "run, or a folder of its artifact `model`."
    )


def test_a_whole_model_is_refused(first: str, out: str, tmp_path: Path, target: Path):
    whole = run(tmp_path / "whole", target, names=("model.safetensors",))
    assert refusal(first, f"whole={whole}", out) == (
        "whole: the model of this run is not an adapter, so its change cannot be merged. Set "
        "train.lora.output to adapter, and run `train` again."
    )


def test_another_target_is_refused(first: str, out: str, tmp_path: Path, target: Path):
    other = run(tmp_path / "other", target, digest="another")
    assert refusal(first, f"other={other}", out) == (
        "first and other: the adapters do not start from the same target (digest of target and "
        "another). Merge runs that had the same target.model and one round each."
    )


def test_a_target_that_is_gone_is_refused(first: str, second: str, out: str, target: Path):
    target.rmdir()
    assert refusal(first, second, out) == (
        f"first: its target is no longer at {target}. Put the model back there."
    )


def test_an_adapter_without_gram_matrices_is_refused(
    first: str, out: str, tmp_path: Path, target: Path
):
    plain = run(tmp_path / "plain", target, names=ADAPTER[:-1])
    assert refusal(first, f"plain={plain}", out) == (
        "plain: the adapter has no Gram matrices (gram.safetensors). Set train.lora.gram to true "
        "and run `train` again, or merge with --method linear or ties."
    )


def test_a_folder_with_files_is_refused(first: str, second: str, out: str, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    message = refusal(first, second, out)
    assert message == f"--out {tmp_path / 'out'}: there are files already. Name a new folder."
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_facts_of_an_unknown_run_are_refused(first: str, second: str, out: str):
    assert refusal(first, second, out, "--facts", "third=x.jsonl") == (
        "--facts third: no run has this name. Choose from first, second."
    )


def test_facts_that_cannot_be_read_are_refused(first: str, second: str, out: str, tmp_path: Path):
    file = tmp_path / "facts.jsonl"
    file.write_text('{"question": "Who is Zorblax?", "answer": ""}\n')
    message = refusal(first, second, out, "--facts", f"first={file}")
    assert message == (f"--facts first: 1 rows were rejected:\n  {file}, line 1: answer is empty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method=mean"], "--method mean: unknown. Choose from gram, linear, ties."),
        (["--density=0.5"], "--density works with --method ties only (got gram)."),
        (
            ["--method=ties", "--density=0"],
            "--density 0: it must be greater than 0 and at most 1.",
        ),
        (["--scale=0"], "--scale 0: it must be greater than 0."),
        (["--scale=nan"], "--scale nan: it must be greater than 0."),
    ],
)
def test_options_that_make_no_sense_are_refused(options: list[str], message: str, out: str):
    assert refusal("first", "second", out, *options) == message


# --- the facts of a run ---------------------------------------------------------------------------


def questions(root: Path, given: dict[str, Any] | None = None) -> tuple[Any, Any]:
    config = load_config(None, [])
    return merge._questions([merge._run("mine", str(root))], given or {}, config)


def test_facts_are_found_by_what_the_model_was_made_from(tmp_path: Path, target: Path):
    root = run(tmp_path / "root", target)
    found, notes = questions(root)
    assert notes == {}
    assert storage.read_table(found["mine"].facts).equals(FACTS)
    assert found["mine"].twins is None
    assert found["mine"].prompt.template == "raw"
    assert found["mine"].max_length == 64


def test_twins_of_the_same_facts_are_found(tmp_path: Path, target: Path):
    root = run(tmp_path / "root", target)
    facts = merge._made_from(merge._run("mine", str(root)), "facts")
    assert facts is not None
    publish(root, "twins", {MAIN: FACTS}, inputs={"facts": facts.digest})
    found, _ = questions(root)
    assert storage.read_table(found["mine"].twins).equals(FACTS)


def test_a_purged_text_is_told_from_one_that_is_not_there(tmp_path: Path, target: Path):
    root = run(tmp_path / "root", target)
    (text,) = root.glob(f"facts/*/*/{MAIN}")
    text.unlink()
    assert questions(root) == ({}, {"mine": PURGED})
    (root / "facts" / "facts-1" / MANIFEST).unlink()
    assert questions(root) == ({}, {"mine": NO_FACTS})


def test_given_facts_replace_a_purged_text(tmp_path: Path, target: Path):
    root = run(tmp_path / "root", target)
    (text,) = root.glob(f"facts/*/*/{MAIN}")
    text.unlink()
    found, notes = questions(root, {"mine": FACTS})
    assert notes == {}
    assert found["mine"].facts is FACTS


# --- what models know -----------------------------------------------------------------------------


def replies(value: float, twins: int = 0) -> Replies:
    facts = [Figures(0.25, -2.0, value), Figures(0.75, -2.0, value - 1)]
    return Replies(facts, [Figures(0.1, -2.0, -3.0)] * twins)


def test_figures_are_means_and_are_compared_with_the_twins_of_the_target():
    found = knowledge(replies(-1.0), replies(-0.1, twins=3), stop_level=0.05)
    assert (found.fact_log_prob, found.extraction_strength) == (-1.5, 0.5)
    # both facts above all 3 twins: 1 of 5! / (2! 3!) orders
    expected = {"extraction_strength": 0.1, "min_k": 1.0, "fact_log_prob": 0.1}
    assert found.p_values == pytest.approx(expected)
    assert found.looks_never_seen is True
    assert knowledge(replies(-1.0), replies(-0.1, twins=3), 0.1).looks_never_seen is False


def test_without_twins_there_are_no_p_values():
    found = knowledge(replies(-1.0), replies(-0.1), stop_level=0.05)
    assert (found.p_values, found.looks_never_seen) == (None, None)


@pytest.mark.parametrize(
    ("tuned", "merged", "expected"),
    [(True, False, True), (True, True, False), (False, False, False), (None, None, False)],
)
def test_a_request_is_remembered_again_if_its_own_model_had_forgotten_it(
    tuned: bool | None, merged: bool | None, expected: bool
):
    models = {
        name: Knowledge(-1.0, 0.1, None, verdict)
        for name, verdict in {"tuned": tuned, "merged": merged}.items()
    }
    request = merge.Request("first", "digest", [], 2, "", models)
    assert request.is_remembered_again == expected
