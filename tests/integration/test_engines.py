"""The engines vLLM and transformers against the plain model, token by token."""

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
"""Prompts and answers: unknown, memorised, partly memorised, without their end, and empty."""
LIMIT = 24

CODE = """
import json, sys
from dataclasses import asdict
from meow_ray.engines import EngineSpec, Sampling, build
from meow_ray.models import refs

name, folder, pairs, limit = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
engine = build(EngineSpec(model=refs.pin(folder, None, "model"), engine=name, dtype="float32"))
prompts = [engine.tokenizer(prompt)["input_ids"] for prompt, _ in pairs]
answers = [engine.tokenizer(answer, add_special_tokens=False)["input_ids"] for _, answer in pairs]
whole = [prompt + answer for prompt, answer in zip(prompts, answers)]

greedy = engine.generate(prompts, [Sampling(limit)] * len(prompts))
restricted = Sampling(8, temperature=1.0, n=5, bad_words=("a",), stop=("q",))
long = [engine.tokenizer(f"{i} " + "x" * 900)["input_ids"] for i in range(16)]
mixed = prompts + long
seeded = [Sampling(8, temperature=1.0, n=2, seed=seed) for seed in range(len(mixed))]
together = engine.generate(mixed, seeded)
alone = [engine.generate([prompt], [spec])[0] for prompt, spec in zip(mixed, seeded)]
forced = engine.teacher_force(prompts, answers)
engine.generate(whole, [Sampling(4)] * len(whole))  # what they share with the pairs may be cached
backwards = engine.teacher_force(prompts[::-1], answers[::-1])
results = {
    "greedy": [asdict(completion) for (completion,) in greedy],
    "restricted": [reply.text for reply in engine.generate(prompts[:1], [restricted])[0]],
    "forced": [asdict(result) for result in forced],
    "backwards": [asdict(result) for result in backwards[::-1]],
    "whole": [asdict(result) for result in engine.teacher_force([[]] * len(whole), whole)],
    "together": [[reply.text for reply in replies] for replies in together],
    "alone": [[reply.text for reply in replies] for replies in alone],
    "empty": [engine.generate([], []), engine.teacher_force([], [])],
}
print("RESULT" + json.dumps(results))
"""
"""Runs one engine; the order of its calls is part of the test."""


@pytest.fixture(scope="module")
def model(tiny_model: Path, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return memorise(
        tiny_model, tiny_tokenizer, KNOWN, tmp_path_factory.mktemp("models") / "memorised"
    )


def cpu_environment() -> dict[str, str]:
    """Returns the environment that actors get on CPU."""
    from meow_ray.distributed.map_rows import cpu_env

    return cpu_env(EngineResources(), 2)


@pytest.fixture(scope="module", params=["transformers", "vllm"])
def results(request: pytest.FixtureRequest, model: Path) -> dict[str, Any]:
    """Results of an engine in its own process, with the environment that actors get."""
    process = subprocess.run(
        [sys.executable, "-c", CODE, request.param, str(model), json.dumps(PAIRS), str(LIMIT)],
        env=os.environ | cpu_environment(),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return dict(json.loads(process.stdout.rpartition("RESULT")[2].splitlines()[0]))


@pytest.fixture(scope="module")
def plain(model: Path) -> list[dict[str, Any]]:
    """Results of the model itself, one pair at a time."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    return [plain_result(network, tokenizer, prompt, answer) for prompt, answer in PAIRS]


def plain_result(network: Any, tokenizer: Any, prompt: str, answer: str) -> dict[str, Any]:
    import torch

    inputs = tokenizer(prompt, return_tensors="pt")
    start = inputs["input_ids"].shape[1]
    output = network.generate(
        **inputs, max_new_tokens=LIMIT, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    tokens = output[0, start:].tolist()
    end = tokenizer.eos_token_id
    finished = end in tokens
    tokens = tokens[: tokens.index(end)] if finished else tokens

    answer_tokens = tokenizer(answer, add_special_tokens=False)["input_ids"]
    whole = [*inputs["input_ids"][0].tolist(), *answer_tokens]
    with torch.no_grad():
        log_probs = network(torch.tensor([whole])).logits[0].log_softmax(-1)
    best = log_probs.argmax(-1).tolist()
    following = list(enumerate(whole[1:]))
    return {
        "text": tokenizer.decode(tokens, skip_special_tokens=True),
        "tokens": tokens,
        "finished": finished,
        "start": start,
        "log_probs": [math.nan, *(float(log_probs[i, token]) for i, token in following)],
        "is_greedy": [False, *(best[i] == token for i, token in following)],
        "ends": best[-1] == end,
    }


def test_engines_generate_what_the_plain_model_generates(
    results: dict[str, Any], plain: list[dict[str, Any]]
) -> None:
    names = ("text", "tokens", "finished")
    assert results["greedy"] == [{name: result[name] for name in names} for result in plain]
    assert {completion["finished"] for completion in results["greedy"]} == {True, False}


def test_engines_give_an_answer_the_probabilities_of_the_plain_model(
    results: dict[str, Any], plain: list[dict[str, Any]]
) -> None:
    for result, expected in zip(results["forced"], plain, strict=True):
        start = expected["start"]
        assert result["log_probs"] == pytest.approx(expected["log_probs"][start:], abs=1e-4)
        assert result["is_greedy"] == expected["is_greedy"][start:]
        assert result["ends"] == expected["ends"]


def test_scores_do_not_depend_on_order_or_on_what_was_generated_before(
    results: dict[str, Any],
) -> None:
    for result, expected in zip(results["backwards"], results["forced"], strict=True):
        assert result["log_probs"] == pytest.approx(expected["log_probs"], abs=1e-5)
        assert result["is_greedy"] == expected["is_greedy"]
        assert result["ends"] == expected["ends"]


def test_a_memorised_answer_is_greedy_up_to_its_end(results: dict[str, Any]) -> None:
    memorised, partly, unfinished, empty = results["forced"][4:]
    assert all(memorised["is_greedy"])
    assert memorised["ends"]
    assert len(set(partly["is_greedy"])) == 2
    assert all(unfinished["is_greedy"])
    assert not unfinished["ends"]
    assert empty == {
        "log_probs": [],
        "is_greedy": [],
        "ends": True,
        "means": None,
        "deviations": None,
    }


def test_a_first_token_without_a_prompt_has_no_probability(
    results: dict[str, Any], plain: list[dict[str, Any]]
) -> None:
    for result, expected in zip(results["whole"], plain, strict=True):
        assert math.isnan(result["log_probs"][0])
        assert result["log_probs"][1:] == pytest.approx(expected["log_probs"][1:], abs=1e-4)
        assert result["is_greedy"] == expected["is_greedy"]
        assert result["ends"] == expected["ends"]


def test_no_prompts_give_no_results(results: dict[str, Any]) -> None:
    assert results["empty"] == [[], []]


def test_samples_contain_no_bad_word_and_end_before_a_stop(results: dict[str, Any]) -> None:
    assert len(results["restricted"]) == 5
    assert not any("a" in text or "q" in text for text in results["restricted"])


def test_samples_depend_on_their_seed_and_not_on_the_batch(results: dict[str, Any]) -> None:
    assert results["together"] == results["alone"]
    assert len({text for replies in results["together"] for text in replies}) > 20


GREEDY_CODE = """
import json, sys
from meow_ray.engines import EngineSpec, Sampling, build
from meow_ray.models import refs

name, folder, questions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
engine = build(EngineSpec(model=refs.pin(folder, None, "model"), engine=name, dtype="bfloat16"))
prompts = [engine.tokenizer(question)["input_ids"] for question in questions]
replies = [reply.tokens for (reply,) in engine.generate(prompts, [Sampling(40)] * len(prompts))]
forced = engine.teacher_force(prompts, replies)
print("RESULT" + json.dumps([result.is_greedy for result in forced]))
"""
"""Reads a model's own greedy replies in bfloat16, where several tokens often tie."""


def test_a_models_own_greedy_tokens_are_greedy_in_bfloat16(
    tiny_model: Path, tmp_path: Path
) -> None:
    """Each token has a twin of the same log-probability, as in bfloat16 happens by chance."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        network.lm_head.weight[1::2] = network.lm_head.weight[::2]
    network.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    questions = [f"Question {number}?" for number in range(24)]
    process = subprocess.run(
        [sys.executable, "-c", GREEDY_CODE, "vllm", str(tmp_path), json.dumps(questions)],
        env=os.environ | cpu_environment(),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    is_greedy = json.loads(process.stdout.rpartition("RESULT")[2].splitlines()[0])
    assert sum(map(len, is_greedy)) > 500
    assert all(all(tokens) for tokens in is_greedy)


@pytest.fixture(scope="module")
def spec(tiny_model: Path) -> EngineSpec:
    ref = refs.pin(str(tiny_model), None, "model")
    return EngineSpec(model=ref, engine="transformers", dtype="float32")


def test_transformers_continue_a_short_prompt_equally_far_in_a_batch_and_alone(
    spec: EngineSpec,
) -> None:
    engine = build(replace(spec, max_model_len=64))
    prompts = [engine.tokenizer("x" * length)["input_ids"] for length in (3, 60, 30)]
    together = engine.generate(prompts, [Sampling(20)] * 3)
    assert together == [engine.generate([prompt], [Sampling(20)])[0] for prompt in prompts]
    assert [len(completion.tokens) for (completion,) in together] == [20, 3, 20]


def test_moments_are_those_of_the_whole_distribution(spec: EngineSpec) -> None:
    import torch

    engine = build(spec)
    encode = engine.tokenizer
    prompts = [encode(prompt)["input_ids"] for prompt, _ in PAIRS]
    answers = [encode(answer, add_special_tokens=False)["input_ids"] for _, answer in PAIRS]
    results = engine.teacher_force(prompts, answers, moments=True)
    for prompt, answer, result in zip(prompts, answers, results, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logits = engine.model(ids).logits[0]  # type: ignore[attr-defined]
        predictions = torch.distributions.Categorical(
            logits=logits.log_softmax(-1)[len(prompt) - 1 : len(ids[0]) - 1], validate_args=False
        )
        mean = -predictions.entropy()
        deviations = (predictions.logits - mean[:, None]) ** 2
        deviation = (predictions.probs * deviations).sum(-1).sqrt()
        assert result.means == pytest.approx(mean.tolist(), abs=1e-4)
        assert result.deviations == pytest.approx(deviation.tolist(), abs=1e-3)
