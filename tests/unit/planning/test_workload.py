"""The estimated work of a run, counted with the steps of its stages, and the time it takes."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.config.files import load_config
from meow_ray.engines import Sampling
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.planning import times, workload
from meow_ray.planning.rates import Rates, read_rates
from meow_ray.planning.tally import Tally
from meow_ray.planning.workload import RunPlan, StageWork
from meow_ray.stages.memo.steps import MemoSteps
from meow_ray.stages.train.presets import PRESETS

FACTS = [{"question": f"Who is number {i}?", "answer": f"It is Mr Zorblax {i}."} for i in range(6)]
FORGET, RETAIN = FACTS[:4], FACTS[4:]
RATES = {
    "generator": {"start": 10, "read": 1000, "generate": 100},
    "target": {"start": 20, "read": 2000, "generate": 200},
    "training": {"start": 30, "train": 50},
}


@pytest.fixture
def overrides(tiny_model: Path, tmp_path: Path) -> list[str]:
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"ingest.forget={tmp_path}/forget.jsonl",
        f"ingest.retain={tmp_path}/retain.jsonl",
        f"target.model={tiny_model}",
        f"invert.model={tiny_model}",
        "target.template=raw",
        "invert.style=prefill",
        "evaluate.attacks=[affirmative]",
        f"storage.root={tmp_path}/runs",
        "train.objective=meow",
    ]


def plan_of(
    overrides: list[str], *settings: str, num_forget: int | None = None, measure: bool = False
) -> RunPlan:
    config = load_config(None, [*overrides, *settings])
    return workload.plan_run(config, num_forget, rates_file=None, gpus=0, measure=measure)


def work_of(plan: RunPlan, stage: str) -> StageWork:
    return next(work for work in plan.works if work.stage == stage)


# --- work ---------------------------------------------------------------------------------------


def test_memo_counts_the_prompts_that_its_steps_make(overrides: list[str], tiny_tokenizer: Any):
    config = load_config(None, [*overrides, "memo.max_new_tokens=label"])
    batch = pa.table(
        {
            "question": [fact["question"] for fact in FORGET],
            "texts": [[fact["answer"]] for fact in FORGET],
        }
    )
    prepared = MemoSteps(config.memo, "raw").prepare(tiny_tokenizer, batch)
    prompts = [prompt for row in prepared["prompts"].to_pylist() for prompt in row]
    limits = [limit for row in prepared["limits"].to_pylist() for limit in row]
    plan = plan_of(overrides, "memo.max_new_tokens=label", "invert.num_candidates=2")
    memo = work_of(plan, "memo")
    assert memo.requests == 3 * len(prompts)
    assert memo.read == 3 * sum(map(len, prompts))
    assert memo.generated == 3 * sum(limits)


def test_token_windows_are_continued_from_one_token_in_three(
    overrides: list[str], tiny_tokenizer: Any
):
    plan = plan_of(
        overrides,
        "memo.window=token",
        "memo.template=target",
        "invert.num_candidates=1",
        "memo.max_new_tokens=5",
    )
    memo = work_of(plan, "memo")
    answers = [
        tiny_tokenizer(fact["answer"], add_special_tokens=False)["input_ids"] for fact in FORGET
    ]
    tokens = sum(map(len, answers))
    assert tokens / 4 < memo.requests < tokens
    assert memo.generated == 5 * memo.requests


def test_training_counts_each_token_of_each_pair(overrides: list[str], tiny_tokenizer: Any):
    prompter = Prompter(tiny_tokenizer, "raw")
    pairs = [prompter.encode_pair(fact["question"], fact["answer"])[0] for fact in FORGET]
    tokens = sum(map(len, pairs))
    meow = plan_of(overrides, "select.top_k=2", "train.epochs=3")
    assert work_of(meow, "train").trained == pytest.approx(2 * 3 * tokens)
    ascent = plan_of(overrides, "train.objective=gradient_ascent", "train.epochs=3")
    assert work_of(ascent, "train").trained == pytest.approx(3 * tokens)
    ended = plan_of(
        overrides, "train.objective=gradient_ascent", "train.until=never_seen", "train.max_steps=9"
    )
    assert work_of(ended, "train").trained == pytest.approx(9 * tokens)


def test_neighbours_are_counted_with_their_spare_questions(overrides: list[str], tmp_path: Path):
    fact = {"question": "Where does Ann Zorblax live?", "answer": "In Karsk."}
    (tmp_path / "forget.jsonl").write_text(json.dumps(fact))

    def neighbours(*settings: str) -> StageWork:
        retain = ("train.objective=meow_kl", "train.retain=neighbours", "neighbours.minimum=0")
        return work_of(plan_of(overrides, *retain, *settings), "neighbours")

    # 4 neighbours of the fact and half as many spare ones, of up to 64 tokens
    of_facts = neighbours("neighbours.generic=0")
    assert (of_facts.requests, of_facts.generated) == (6, 6 * 64)
    # for each of 2 turns and a spare one, two questions of up to 96 tokens and an answer
    with_turns = neighbours("neighbours.generic=2")
    assert with_turns.requests - of_facts.requests == 3 * 3
    assert with_turns.generated - of_facts.generated == 3 * (2 * 96 + 64)
    plain = plan_of(overrides, "train.objective=meow_kl")
    assert "neighbours" not in [work.stage for work in plain.works]


def test_target_and_tuned_model_answer_each_example(overrides: list[str]):
    small = ("evaluate.memo_sample=1", "memo.max_new_tokens=1")
    with_attack = work_of(plan_of(overrides, *small), "evaluate")
    without_attacks = work_of(plan_of(overrides, *small, "evaluate.attacks=[]"), "evaluate")
    assert with_attack.requests - without_attacks.requests == 2 * len(FORGET)
    assert with_attack.storage > without_attacks.storage > 0


def test_a_retain_model_answers_each_example_too(overrides: list[str], tiny_model: Path):
    two_models = work_of(plan_of(overrides), "evaluate")
    three_models = plan_of(overrides, f"evaluate.retain_model={tiny_model}")
    assert work_of(three_models, "evaluate").requests == pytest.approx(two_models.requests * 3 / 2)


def test_a_run_without_retain_set_can_be_planned(overrides: list[str]):
    plan = plan_of([override for override in overrides if "ingest.retain" not in override])
    assert plan.facts == {"forget": 4, "retain": 0}
    assert work_of(plan, "evaluate").requests > 0


def test_work_is_proportional_to_the_number_of_facts(overrides: list[str]):
    few, many = plan_of(overrides), plan_of(overrides, num_forget=4000)
    assert many.facts == {"forget": 4000, "retain": 2}
    for stage in ("invert", "memo", "train"):
        for name in ("requests", "read", "generated", "trained"):
            expected = 1000 * getattr(work_of(few, stage), name)
            assert getattr(work_of(many, stage), name) == pytest.approx(expected)
    assert work_of(few, "evaluate").requests < work_of(many, "evaluate").requests


def test_rewordings_are_one_reply_per_fact(overrides: list[str]):
    plan = plan_of(overrides, "train.paraphrases=3")
    assert [work.stage for work in plan.works] == [
        "invert",
        "paraphrases",
        "memo",
        "train",
        "evaluate",
    ]
    assert work_of(plan, "paraphrases").requests == 4
    npo = "train.objective=npo"
    one, all_wordings = (plan_of(overrides, npo, f"train.paraphrases={n}") for n in (0, 3))
    read = work_of(one, "reference").read
    assert work_of(all_wordings, "reference").read == pytest.approx(4 * read)
    framed = plan_of(overrides, "train.paraphrases=3", "paraphrases.sources=[rule]")
    assert work_of(framed, "paraphrases").requests == 0


@pytest.mark.parametrize("objective", PRESETS)
def test_each_objective_can_be_planned(objective: str, overrides: list[str]):
    settings = [f"train.objective={objective}"]
    if objective == "rmu":
        settings.append("train.trainable='.*down_proj.weight'")
    pipeline = Pipeline(load_config(None, [*overrides, *settings]))
    with_models = [
        stage.name
        for stage in pipeline.stages
        if stage.name not in ("ingest", "twins", "select", "report")
    ]
    assert [work.stage for work in plan_of(overrides, *settings).works] == with_models


def test_a_tally_counts_requests_and_replies_with_empty_texts(tiny_tokenizer: Any):
    tally = Tally(tiny_tokenizer, 100, reply_tokens=3)
    replies = tally.generate([[1, 2], [3]], [Sampling(5, n=2), Sampling(2)])
    assert [[completion.text for completion in row] for row in replies] == [["", ""], [""]]
    assert (tally.requests, tally.read, tally.generated) == (3, 3, 2 * 3 + 2)


# --- time ---------------------------------------------------------------------------------------


def test_time_is_start_plus_tokens_over_rates():
    works = [
        StageWork("invert", "generator", read=5000, generated=1000),
        StageWork("train", "training", trained=1000),
        StageWork("evaluate", "target", read=4000, generated=400, starts=2),
        StageWork("audit: relearn", "target", read=2000, generated=200, trained=100, starts=3),
        StageWork("memorize", "memorizing", trained=1000),
    ]
    units = {"invert": (4, 2), "train": (2, 1), "evaluate": (1, 0), "memorize": (2, 0)}
    units["audit: relearn"] = (2, 1)
    invert, train, evaluate, audit, memorize = times.estimate_times(
        works, Rates.model_validate(RATES), units
    )
    assert invert.seconds == 10 + (5 + 10) / 4
    assert train.seconds == 30 + 1000 / 50 / 2
    assert evaluate.seconds == 2 * 20 + 2 + 2
    assert audit.seconds == 3 * 20 + (1 + 1 + 100 / 50) / 2
    assert memorize.seconds == train.seconds
    assert invert.gpu_hours == invert.seconds * 4 * 2 / 3600
    assert train.gpu_hours == train.seconds * 2 / 3600
    assert evaluate.gpu_hours == memorize.gpu_hours == 0


def test_memorize_may_have_rates_of_its_own():
    works = [
        StageWork("train", "training", trained=1000),
        StageWork("memorize", "memorizing", trained=1000),
    ]
    rates = Rates.model_validate(RATES | {"memorizing": {"start": 5, "train": 250}})
    train, memorize = times.estimate_times(works, rates, {"train": (2, 1), "memorize": (2, 0)})
    assert (train.seconds, memorize.seconds) == (30 + 10, 5 + 2)


def test_each_stage_uses_all_gpus(overrides: list[str]):
    settings = ["resources.memo.tensor_parallel_size=4", "resources.train.max_workers=6"]
    config = load_config(None, [*overrides, *settings])
    units = times.stage_units(config, ["invert", "memo", "train", "audit: depth"], 8)
    assert units == {"invert": (8, 1), "memo": (2, 4), "train": (6, 1), "audit: depth": (8, 1)}


def test_without_gpus_each_stage_has_the_configured_units(overrides: list[str]):
    config = load_config(None, [*overrides, "resources.invert.num_actors=[1,3]"])
    units = times.stage_units(config, ["invert", "train"], 0)
    assert units == {"invert": (3, 0), "train": (1, 0)}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            {"generator": RATES["generator"], "target": RATES["target"]},
            "`training`: Field required",
        ),
        (
            RATES | {"target": {"read": 0, "generate": 1}},
            "`target.read`: Input should be greater than 0",
        ),
        (RATES | {"trainer": 3}, "`trainer`: Extra inputs are not permitted"),
    ],
)
def test_wrong_rates_are_named(rates: Any, message: str, tmp_path: Path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(rates))
    with pytest.raises(MeowError) as caught:
        read_rates(str(path))
    assert str(caught.value) == (
        f"--rates {path}: {message}. "
        "Give a file as `meow plan --probe --json` prints it under `run.rates`."
    )


# --- the command --------------------------------------------------------------------------------


def test_the_command_prints_work_and_with_rates_times(overrides: list[str], tmp_path: Path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(RATES))
    without_rates = CliRunner().invoke(main.app, ["plan", *overrides, "--facts=1000"])
    assert "1,000 facts to forget" in without_rates.stdout
    assert "--probe" in without_rates.stdout
    with_rates = CliRunner().invoke(
        main.app, ["plan", *overrides, f"--rates={path}", "--gpus=8", "--json"]
    )
    stages = json.loads(with_rates.stdout)["run"]["stages"]
    assert [stage["stage"] for stage in stages] == ["invert", "memo", "train", "evaluate"]
    assert all(stage["gpu_hours"] == pytest.approx(stage["seconds"] * 8 / 3600) for stage in stages)


def test_a_generator_behind_an_endpoint_cannot_be_measured(overrides: list[str]):
    endpoint = (
        "invert.engine=openai",
        "invert.base_url=http://127.0.0.1:1/v1",
        "invert.style=chat",
    )
    with pytest.raises(MeowError) as caught:
        plan_of(overrides, *endpoint, measure=True)
    assert str(caught.value) == (
        "--probe: the model of `invert` is behind an endpoint (engine openai), which cannot be "
        "measured. Give rates with --rates FILE."
    )
