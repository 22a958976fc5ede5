"""vLLM and transformers say the same, and what the plain model says."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import EngineResources
from meow_ray.engines import EngineSpec, Sampling, build
from meow_ray.models import refs
from tests.support.runs import PROJECT
from tests.support.tiny import KNOWN, memorise

PAIRS = [
    ("Hello", " world."),
    ("A much longer prompt than the first one", " y"),
    ("Mid size prompt", " with an answer that is long as well"),
    ("x", " z z z"),
    ("Author of Émile?", " Jean-Jacques Rousseau"),
    ("Author of Émile?", " Jean-Paul Sartre"),
    ("Capital of Peru? It", " is Lim"),
    ("Capital of Peru? It is Lima", ""),
]
"""Prompts and answers: unknown, known whole, in part, without their end, and empty."""
LIMIT = 24

CODE = """
import json, sys
from dataclasses import asdict
from meow_ray import models
from meow_ray.engines import EngineSpec, Sampling, build
engine = build(EngineSpec(refs.pin(sys.argv[2], None, "model"), sys.argv[1], "float32"))
pairs, limit = json.loads(sys.argv[3]), int(sys.argv[4])
prompts = [engine.tokenizer(prompt)["input_ids"] for prompt, _ in pairs]
answers = [engine.tokenizer(answer, add_special_tokens=False)["input_ids"] for _, answer in pairs]
greedy = engine.generate(prompts, [Sampling(limit)] * len(prompts))
many = engine.generate(prompts[:1], [Sampling(8, temperature=1.0, n=5, bad_words=("a",), stop=("q",))])[0]
long = [engine.tokenizer(f"{i} " + "x" * 900)["input_ids"] for i in range(16)]
seeded = [Sampling(8, temperature=1.0, n=2, seed=seed) for seed in range(len(prompts + long))]
together = engine.generate(prompts + long, seeded)
alone = [engine.generate([prompt], [sampling])[0] for prompt, sampling in zip(prompts + long, seeded)]
whole = [prompt + answer for prompt, answer in zip(prompts, answers)]
found = {
    "greedy": [asdict(one) for (one,) in greedy],
    "many": [one.text for one in many],
    "forced": [asdict(one) for one in engine.teacher_force(prompts, answers)],
    "whole": [asdict(one) for one in engine.teacher_force([[]] * len(whole), whole)],
    "together": [[one.text for one in row] for row in together],
    "alone": [[one.text for one in row] for row in alone],
    "nothing": [engine.generate([], []), engine.teacher_force([], [])],
}
print("RESULT" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def model(tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return memorise(
        tiny_model, tiny_tokenizer, KNOWN, tmp_path_factory.mktemp("models") / "memorised"
    )


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def results(request: pytest.FixtureRequest, model: Path) -> dict[str, Any]:
    """Generates and scores in a process of its own, with the environment that actors get."""
    from meow_ray.distributed.map_rows import cpu_env

    done = subprocess.run(
        [sys.executable, "-c", CODE, request.param, str(model), json.dumps(PAIRS), str(LIMIT)],
        env=os.environ | cpu_env(EngineResources(), 2),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.rpartition("RESULT")[2].splitlines()[0]))


@pytest.fixture(scope="module")
def plain(model: Path) -> list[dict[str, Any]]:
    """One pair at a time, straight from the model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    end, out = tokenizer.eos_token_id, []
    for prompt, answer in PAIRS:
        inputs = tokenizer(prompt, return_tensors="pt")
        start = inputs["input_ids"].shape[1]
        said = network.generate(
            **inputs, max_new_tokens=LIMIT, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        tokens = said[0, start:].tolist()
        finished = end in tokens
        tokens = tokens[: tokens.index(end)] if finished else tokens
        tail = tokenizer(answer, add_special_tokens=False)["input_ids"]
        whole = [*inputs["input_ids"][0].tolist(), *tail]
        with torch.no_grad():
            logs = network(torch.tensor([whole])).logits[0].log_softmax(-1)
        greedy = logs.argmax(-1).tolist()
        out.append(
            {
                "text": tokenizer.decode(tokens, skip_special_tokens=True),
                "tokens": tokens,
                "finished": finished,
                "start": start,
                "log_probs": [
                    math.nan,
                    *(float(logs[i - 1, whole[i]]) for i in range(1, len(whole))),
                ],
                "is_greedy": [False, *(greedy[i - 1] == whole[i] for i in range(1, len(whole)))],
                "ends": greedy[-1] == end,
            }
        )
    return out


def test_engines_say_what_the_plain_model_says(
    results: dict[str, Any], plain: list[dict[str, Any]]
) -> None:
    names = ("text", "tokens", "finished")
    assert results["greedy"] == [{name: one[name] for name in names} for one in plain]
    assert {one["finished"] for one in results["greedy"]} == {True, False}


def test_engines_read_an_answer_as_the_plain_model_does(
    results: dict[str, Any], plain: list[dict[str, Any]]
) -> None:
    for found, one in zip(results["forced"], plain, strict=True):
        assert found["log_probs"] == pytest.approx(one["log_probs"][one["start"] :], abs=1e-4)
        assert found["is_greedy"] == one["is_greedy"][one["start"] :]
        assert found["ends"] == one["ends"]
    known, other, unfinished, empty = results["forced"][4:]
    assert all(known["is_greedy"])
    assert known["ends"]
    assert len(set(other["is_greedy"])) == 2
    assert all(unfinished["is_greedy"])
    assert not unfinished["ends"]
    assert empty == {
        "log_probs": [],
        "is_greedy": [],
        "ends": True,
        "means": None,
        "deviations": None,
    }


def test_a_first_token_with_nothing_before_it_has_no_probability(
    results: dict[str, Any], plain: list[dict[str, Any]]
) -> None:
    for found, one in zip(results["whole"], plain, strict=True):
        assert math.isnan(found["log_probs"][0])
        assert found["log_probs"][1:] == pytest.approx(one["log_probs"][1:], abs=1e-4)
        assert found["is_greedy"] == one["is_greedy"]
        assert found["ends"] == one["ends"]


def test_nothing_asked_is_nothing_said(results: dict[str, Any]) -> None:
    assert results["nothing"] == [[], []]


def test_samples_hold_no_banned_word_and_end_before_a_stop(results: dict[str, Any]) -> None:
    assert len(results["many"]) == 5
    assert not any("a" in text or "q" in text for text in results["many"])


def test_samples_follow_their_seed_whatever_is_beside_them(results: dict[str, Any]) -> None:
    assert results["together"] == results["alone"]
    assert len({text for row in results["together"] for text in row}) > 20


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> EngineSpec:
    return EngineSpec(refs.pin(str(tiny_model), None, "model"), "transformers", "float32")


def test_transformers_continue_a_short_prompt_as_far_beside_a_long_one_as_alone(
    spec: EngineSpec,
) -> None:
    engine = build(replace(spec, max_model_len=64))
    prompts = [engine.tokenizer("x" * length)["input_ids"] for length in (3, 60, 30)]
    together = engine.generate(prompts, [Sampling(20)] * 3)
    assert together == [engine.generate([prompt], [Sampling(20)])[0] for prompt in prompts]
    assert [len(one.tokens) for (one,) in together] == [20, 3, 20]


def test_moments_are_those_of_the_whole_distribution(spec: EngineSpec) -> None:
    import torch

    engine = build(spec)
    prompts = [engine.tokenizer(prompt)["input_ids"] for prompt, _ in PAIRS]
    answers = [
        engine.tokenizer(answer, add_special_tokens=False)["input_ids"] for _, answer in PAIRS
    ]
    found = engine.teacher_force(prompts, answers, moments=True)
    for prompt, answer, one in zip(prompts, answers, found, strict=True):
        with torch.no_grad():
            logs = engine.model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)  # type: ignore[attr-defined]
        places = torch.distributions.Categorical(
            logits=logs[len(prompt) - 1 : len(prompt) + len(answer) - 1], validate_args=False
        )
        assert one.means == pytest.approx((-places.entropy()).tolist(), abs=1e-4)
        spread = (places.probs * (places.logits + places.entropy()[:, None]) ** 2).sum(-1).sqrt()
        assert one.deviations == pytest.approx(spread.tolist(), abs=1e-3)
