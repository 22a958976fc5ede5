import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from meow_ray.cli import main
from meow_ray.config.files import load_config
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.planning import workload
from meow_ray.planning.rates import Rates
from meow_ray.planning.workload import RunPlan, Tally, Work
from meow_ray.stages.memo.steps import MemoSteps
from meow_ray.stages.train.objectives import PRESETS

FACTS = [{"question": f"Who is number {i}?", "answer": f"It is Mr Zorblax {i}."} for i in range(6)]
RATES = {
    "generator": {"start": 10, "read": 1000, "generate": 100},
    "target": {"start": 20, "read": 2000, "generate": 200},
    "training": {"start": 30, "train": 50},
}


@pytest.fixture
def overrides(tiny_model: Path, tmp_path: Path) -> list[str]:
    for name, rows in (("forget", FACTS[:4]), ("retain", FACTS[4:])):
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
    ]


def planned(overrides: list[str], *more: str, count: int | None = None, **options: Any) -> RunPlan:
    given: dict[str, Any] = {"rates_file": None, "gpus": 0, "measure": False}
    return workload.plan(load_config(None, [*overrides, *more]), count, **given | options)


def work(found: RunPlan, stage: str) -> Work:
    return next(work for work in found.works if work.stage == stage)


def test_memo_is_what_its_steps_ask(overrides: list[str], tiny_tokenizer: Any):
    config = load_config(None, [*overrides, "memo.max_new_tokens=label"])
    batch = pa.table(
        {
            "question": [f["question"] for f in FACTS[:4]],
            "texts": [[f["answer"]] for f in FACTS[:4]],
        }
    )
    prepared = MemoSteps(config.memo, "raw").prepare(tiny_tokenizer, batch)
    prompts = [prompt for row in prepared["prompts"].to_pylist() for prompt in row]
    found = work(planned(overrides, "memo.max_new_tokens=label", "invert.num_candidates=2"), "memo")
    assert found.requests == 3 * len(prompts)
    assert found.read == 3 * sum(map(len, prompts))
    assert found.generated == 3 * sum(
        limit for row in prepared["limits"].to_pylist() for limit in row
    )


def test_token_windows_are_continued_from_one_token_in_three(
    overrides: list[str], tiny_tokenizer: Any
):
    more = (
        "memo.window=token",
        "memo.template=target",
        "invert.num_candidates=1",
        "memo.max_new_tokens=5",
    )
    found = work(planned(overrides, *more), "memo")
    tokens = sum(
        len(tiny_tokenizer(f["answer"], add_special_tokens=False)["input_ids"]) for f in FACTS[:4]
    )
    assert tokens / 4 < found.requests < tokens
    assert found.generated == 5 * found.requests


def test_training_counts_every_token_of_every_pair(overrides: list[str], tiny_tokenizer: Any):
    prompter = Prompter(tiny_tokenizer, "raw")
    tokens = sum(len(prompter.encode_pair(f["question"], f["answer"])[0]) for f in FACTS[:4])
    found = planned(overrides, "select.top_k=2", "train.epochs=3")
    assert work(found, "train").trained == pytest.approx(2 * 3 * tokens)
    ascent = planned(overrides, "train.objective=gradient_ascent", "train.epochs=3")
    assert work(ascent, "train").trained == pytest.approx(3 * tokens)


def test_both_models_answer_every_example(overrides: list[str]):
    found = work(planned(overrides, "evaluate.memo_sample=1", "memo.max_new_tokens=1"), "evaluate")
    without_attacks = work(
        planned(
            overrides, "evaluate.memo_sample=1", "memo.max_new_tokens=1", "evaluate.attacks=[]"
        ),
        "evaluate",
    )
    assert found.requests - without_attacks.requests == 2 * 4
    assert found.storage > without_attacks.storage > 0


def test_there_may_be_nothing_to_retain(overrides: list[str]):
    found = planned([one for one in overrides if not one.startswith("ingest.retain")])
    assert found.facts == {"forget": 4, "retain": 0}
    assert work(found, "evaluate").requests > 0


def test_more_facts_are_so_many_times_the_work(overrides: list[str]):
    few, many = planned(overrides), planned(overrides, count=4000)
    assert many.facts == {"forget": 4000, "retain": 2}
    for stage in ("invert", "memo", "train"):
        for name in ("requests", "read", "generated", "trained"):
            assert getattr(work(many, stage), name) == pytest.approx(
                1000 * getattr(work(few, stage), name)
            )
    assert work(few, "evaluate").requests < work(many, "evaluate").requests


@pytest.mark.parametrize("objective", PRESETS)
def test_every_objective_can_be_planned(objective: str, overrides: list[str]):
    more = (
        f"train.objective={objective}",
        *(["train.trainable='.*down_proj.weight'"] if objective == "rmu" else []),
    )
    names = [s.name for s in Pipeline(load_config(None, [*overrides, *more])).stages]
    stages = [found.stage for found in planned(overrides, *more).works]
    assert stages == [name for name in names if name not in ("ingest", "select", "report")]


def test_time_is_start_and_tokens_over_rates():
    works = [
        Work("invert", "generator", read=5000, generated=1000),
        Work("train", "training", trained=1000),
        Work("evaluate", "target", read=4000, generated=400),
        Work("memorize", "memorizing", trained=1000),
    ]
    units = {"invert": (4, 2), "train": (2, 1), "evaluate": (1, 0), "memorize": (2, 0)}
    found = workload.estimate(works, Rates.model_validate(RATES), units)
    own = workload.estimate(
        works, Rates.model_validate(RATES | {"memorizing": {"start": 5, "train": 250}}), units
    )
    assert [e.seconds for e in own] == [*(e.seconds for e in found[:3]), 5 + 2]
    assert found.pop().seconds == found[1].seconds
    assert [e.seconds for e in found] == [10 + (5 + 10) / 4, 30 + 1000 / 50 / 2, 2 * 20 + 2 + 2]
    assert [e.gpu_hours for e in found] == [
        found[0].seconds * 8 / 3600,
        found[1].seconds * 2 / 3600,
        0,
    ]


def test_all_gpus_are_used(overrides: list[str]):
    config = load_config(
        None, [*overrides, "resources.memo.tensor_parallel_size=4", "resources.train.max_workers=6"]
    )
    assert workload.units(config, ["invert", "memo", "train"], 8) == {
        "invert": (8, 1),
        "memo": (2, 4),
        "train": (6, 1),
    }
    config = load_config(None, [*overrides, "resources.invert.num_actors=[1,3]"])
    assert workload.units(config, ["invert", "train"], 0) == {"invert": (3, 0), "train": (2, 0)}


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        ({"generator": RATES["generator"], "target": RATES["target"]}, "`training`"),
        (
            RATES | {"target": {"read": 0, "generate": 1}},
            "`target.read`: Input should be greater than 0",
        ),
        (RATES | {"trainer": 3}, "`trainer`: Extra inputs are not permitted"),
    ],
)
def test_wrong_rates_are_named(rates: Any, said: str, tmp_path: Path):
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    with pytest.raises(MeowError) as caught:
        rates.read_rates(str(tmp_path / "rates.json"))
    assert "rates.json" in str(caught.value)
    assert said in str(caught.value)


def test_the_command_prints_work_and_with_rates_times(overrides: list[str], tmp_path: Path):
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(RATES))
    plain = CliRunner().invoke(main.app, ["plan", *overrides, "--facts=1000"])
    assert "1,000 facts to forget" in plain.stdout
    assert "--probe" in plain.stdout
    done = CliRunner().invoke(
        main.app, ["plan", *overrides, f"--rates={path}", "--gpus=8", "--json"]
    )
    stages = json.loads(done.stdout)["run"]["stages"]
    assert [stage["stage"] for stage in stages] == ["invert", "memo", "train", "evaluate"]
    assert all(stage["gpu_hours"] == pytest.approx(stage["seconds"] * 8 / 3600) for stage in stages)


@pytest.mark.slow
def test_a_probe_measures_where_it_is(overrides: list[str], tiny_model: Path, tmp_path: Path):
    more = ["target.engine=transformers", "invert.engine=transformers", "train.batch_size=4"]
    found = planned(overrides, *more, measure=True)
    assert found.rates is not None
    assert (
        min(found.rates.generator.generate, found.rates.target.read, found.rates.training.train) > 0
    )
    assert found.rates.memorizing is None
    assert [stage.work.stage for stage in found.estimates] == [
        "invert",
        "memo",
        "train",
        "evaluate",
    ]
    from_base = [one for one in overrides if not one.startswith("target.model=")]
    from_base += [
        f"memorize.model={tiny_model}",
        f"memorize.data=[{tmp_path}/forget.jsonl]",
        "memorize.batch_size=2",
    ]
    found = planned(from_base, *more, measure=True)
    assert found.rates is not None
    assert found.rates.memorizing is not None
    assert found.rates.memorizing.train != found.rates.training.train
    assert [stage.work.stage for stage in found.estimates] == [
        "memorize",
        "invert",
        "memo",
        "train",
        "evaluate",
    ]


def test_a_probe_cannot_load_what_is_behind_an_endpoint(overrides: list[str]):
    more = ("invert.engine=openai", "invert.base_url=http://127.0.0.1:1/v1", "invert.style=chat")
    with pytest.raises(MeowError, match="--rates FILE"):
        planned(overrides, *more, measure=True)


def test_a_tally_answers_nothing(tiny_tokenizer: Any):
    from meow_ray.engines import Sampling

    tally = Tally(tiny_tokenizer, 100, reply=3)
    replies = tally.generate([[1, 2], [3]], [Sampling(5, n=2), Sampling(2)])
    assert [[one.text for one in row] for row in replies] == [["", ""], [""]]
    assert (tally.requests, tally.read, tally.generated) == (3, 3, 2 * 3 + 2)
