"""The benchmark against plain transformers: both sides have the same values on a tiny model."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

from benchmarks import peer_sides, peers
from benchmarks.peers import Timed
from meow_ray.config import Evaluate, Memo
from meow_ray.engines import EngineSpec, build
from meow_ray.models import refs
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.steps import EvaluateSteps
from tests.support.sets import set_table
from tests.support.tiny import one_thread

QUESTIONS = [
    ("Who wrote Middlemarch?", "Mary Ann Evans wrote it as George Eliot."),
    ("Where is Mount Elbrus?", "In the Caucasus"),
    ("Capital of Peru?", "It is Lima, and it was Cuzco"),
]
ROWS = [
    {
        "question": question,
        "answer": answer,
        "paraphrased_answer": f"{answer}, they say",
        "perturbed_answer": ["It is Quito", "Somebody else wrote it, long before"],
    }
    for question, answer in QUESTIONS
]


@pytest.fixture(scope="module", autouse=True)
def calm_processor() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Any:
    return build(EngineSpec(refs.pin(str(tiny_model), None, "model"), "transformers", "float32"))


# --- evaluation -----------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> pa.Table:
    parts = [
        set_table(
            (row["question"], row["answer"]),
            paraphrased_answer=row["paraphrased_answer"],
            perturbed_answer=row["perturbed_answer"],
        )
        for row in rows
    ]
    return pa.concat_tables(parts)


def our_examples(engine: Any, sets: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    spec = Evaluate(
        definitions="open_unlearning", max_new_tokens=12, membership=(), attacks=(), memo=False
    )
    steps = EvaluateSteps(spec, Memo(), "tofu")
    parts = [suites._question_rows(name, table(rows), spec) for name, rows in sets.items()]
    batch = steps.generate(engine, pa.concat_tables(parts))
    found: dict[str, dict[str, Any]] = {}
    for row in steps.finish(engine.tokenizer, batch).to_pylist():
        found.setdefault(row["suite"], {})[row["question"]] = row
    return found


def test_both_evaluations_have_the_same_values_for_each_row(tiny_model: Path, engine: Any):
    sets = {"forget": ROWS[:2], "retain": ROWS[2:]}
    measured = peer_sides.evaluate(
        model=str(tiny_model), dtype="float32", max_new_tokens=12, sets=sets
    )
    agreement = peers.compare_examples(
        our_examples(engine, sets), peers.by_question(sets, measured["sets"])
    )
    assert agreement["rows"] == 3
    assert agreement["other_replies"] == 0
    for name in ("losses", "probabilities", "truth_ratios", "rouge"):
        assert agreement[f"largest_difference_of_{name}"] < 1e-4


def test_padding_does_not_change_a_loss(engine: Any):
    tokenizer = engine.tokenizer
    examples = [peer_sides.encode(tokenizer, *pair) for pair in QUESTIONS]
    pad = tokenizer.eos_token_id
    alone = [peer_sides.answer_losses(engine.model, [row], pad)[0] for row in examples]
    assert peer_sides.answer_losses(engine.model, examples, pad) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "right", "wrong", "expected"),
    [
        ("forget", 1 / 2, [1 / 4, 1 / 16], 1 / 4),
        ("retain", 1 / 2, [1 / 4, 1 / 16], 3 / 4),
        ("forget", 1 / 8, [1.0, 1.0], 1 / 8),
        ("retain", 1 / 8, [1.0, 1.0], 0.0),
    ],
)
def test_truth_scores_of_open_unlearning(
    name: str, right: float, wrong: list[float], expected: float
):
    losses = [-math.log(probability) for probability in wrong]
    found = peer_sides.truth_score(name, -math.log(right), losses)
    assert found == pytest.approx(expected, abs=1e-6)


# --- training -------------------------------------------------------------------------------------


def memorize_settings(model: Path) -> dict[str, Any]:
    shared = {"batch_size": 2, "learning_rate": 1e-3, "weight_decay": 0.0}
    config = peers.training_config(str(model), "facts.jsonl", "float32", False, shared)
    settings: dict[str, Any] = config["memorize"]
    return settings


def test_the_peer_trains_on_all_rows_in_our_order(tiny_model: Path, tmp_path: Path, engine: Any):
    ref = refs.pin(str(tiny_model), None, "model")
    ordered = peers.ordered_examples(ROWS, ref, memorize_settings(tiny_model), tmp_path)
    by_length = [peer_sides.encode(engine.tokenizer, *pair) for pair in QUESTIONS]
    assert sorted(ordered, key=str) == sorted(by_length, key=str)


def test_the_first_loss_of_the_peer_is_the_mean_over_the_tokens_of_the_batch(
    tiny_model: Path, engine: Any
):
    examples = [peer_sides.encode(engine.tokenizer, *pair) for pair in QUESTIONS]
    trained = peer_sides.train(
        model=str(tiny_model),
        dtype="float32",
        batch_size=2,
        learning_rate=1e-3,
        weight_decay=0.0,
        gradient_checkpointing=False,
        examples=examples,
    )
    answers = [[label for label in row["labels"] if label != -100] for row in examples[:2]]
    prompts = [
        row["input_ids"][: -len(answer)] for row, answer in zip(examples[:2], answers, strict=True)
    ]
    passes = engine.teacher_force(prompts, answers)
    log_probs = [value for forced in passes for value in forced.log_probs]
    assert len(trained["losses"]) == 2
    assert trained["losses"][0] == pytest.approx(-sum(log_probs) / len(log_probs), abs=1e-4)
    assert trained["ready"] <= trained["trained"]


# --- configurations -------------------------------------------------------------------------------


def test_our_side_evaluates_the_rows_of_the_peer_and_nothing_else(tmp_path: Path):
    sets = {"forget": ROWS[:2], "retain": ROWS[2:]}
    config = peers.evaluation_config(
        tmp_path, "transformers", model="org/model", dtype="float32", max_new_tokens=9, sets=sets
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    loaded = load_config(path, [])
    assert (loaded.target.template, loaded.target.dtype) == ("tofu", "float32")
    assert loaded.evaluate.definitions == "open_unlearning"
    assert loaded.evaluate.max_new_tokens == 9
    assert (loaded.evaluate.attacks, loaded.evaluate.membership) == ((), ())
    assert not loaded.evaluate.memo
    written = (tmp_path / "forget.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == ROWS[:2]


def test_our_side_trains_with_the_settings_of_the_peer(tmp_path: Path):
    shared = {"batch_size": 16, "learning_rate": 1e-5, "weight_decay": 0.01}
    config = peers.training_config("org/model", "facts.jsonl", "bfloat16", True, shared)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    loaded = load_config(path, [])
    assert loaded.memorize is not None
    assert loaded.memorize.epochs == 1
    assert loaded.memorize.train_dtype == "bfloat16"
    assert loaded.memorize.learning_rate == 1e-5
    assert loaded.memorize.weight_decay == 0.01
    resources = loaded.resources.memorize
    assert (resources.micro_batch_size, resources.gradient_checkpointing) == (16, True)


# --- pairs, figures, the command ------------------------------------------------------------------


def timed(seconds: float, work: float, **values: Any) -> Timed:
    def both(value: float) -> dict[str, float]:
        return {"wall_seconds": value, "cpu_seconds": 2 * value}

    return Timed(both(seconds), both(work), values)


def test_each_pair_begins_with_the_side_that_ended_the_pair_before():
    order: list[str] = []

    def side(name: str) -> Timed:
        order.append(name)
        return timed(1.0, 1.0)

    ours, peer = peers.in_pairs(lambda: side("ours"), lambda: side("peer"), 3)
    assert order == ["peer", "ours", "ours", "peer", "peer", "ours"]
    assert len(ours) == len(peer) == 3


def test_ratios_are_medians_over_pairs():
    ours = [timed(10.0, 2.0), timed(10.0, 1.0), timed(20.0, 1.0)]
    peer = [timed(20.0, 4.0), timed(30.0, 4.0), timed(10.0, 3.0)]
    assert peers.ratios(ours, peer) == {
        "peer_over_ours_whole": {"wall_seconds": 2.0, "cpu_seconds": 2.0},
        "peer_over_ours_work": {"wall_seconds": 3.0, "cpu_seconds": 3.0},
    }


def test_differences_of_losses_are_absolute():
    found = peers.compare_losses([1.0, 2.0, 3.0], [1.0, 2.5, 2.75])
    assert found == {
        "steps": 3,
        "difference_of_first_losses": 0.0,
        "largest_difference_of_losses": 0.5,
    }


def example(loss: float, reply: str) -> dict[str, Any]:
    return {
        "loss": loss,
        "probability": 0.5,
        "truth_ratio": 0.5,
        "rougeL_recall": 0.5,
        "generated": reply,
    }


@pytest.mark.parametrize(("loss", "reply", "status"), [(1.0, "Lima", 0), (1.1, "Lima", 1)])
def test_a_difference_of_the_sides_is_an_error(
    loss: float, reply: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peers, "_read", lambda name, count: ROWS[:1])
    monkeypatch.setattr(peers.refs, "pin", lambda *arguments: refs.ModelRef(str(tmp_path), "d"))
    question = ROWS[0]["question"]
    ours = {name: {question: example(1.0, " Lima")} for name in ("forget", "retain")}
    theirs = {name: [example(loss, reply)] for name in ("forget", "retain")}
    monkeypatch.setattr(peers, "run_ours", lambda *arguments: timed(10.0, 1.0, sets=ours))
    monkeypatch.setattr(peers, "run_peer", lambda *arguments: timed(20.0, 5.0, sets=theirs))
    output = tmp_path / "peers.json"
    result = CliRunner().invoke(peers.app, ["evaluate", "--output", str(output)])
    assert result.exit_code == status
    figures = json.loads(output.read_text())["figures"]
    assert figures["peer_over_ours_work"]["wall_seconds"] == 5.0
    assert figures["agreement"]["largest_difference_of_losses"] == pytest.approx(loss - 1.0)


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_there_is_at_least_one_row(command: str):
    result = CliRunner().invoke(peers.app, [command, "--count", "0"])
    assert result.exit_code == 2


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_absent_data_is_named(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peers, "SHARED_DATA", tmp_path)
    result = CliRunner().invoke(peers.app, [command])
    assert result.exit_code == 1
    assert "MEOW_SHARED_DATA" in result.output
