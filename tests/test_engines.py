"""vLLM and transformers say the same, and what plain transformers says."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meow_ray import models
from meow_ray.config import EngineResources
from meow_ray.engines import EngineSpec, Sampling, build
from tests.runs import PROJECT

PROMPTS = ["Hello", "A much longer prompt than the first one", "Mid size prompt", "x"]
ANSWERS = [" world.", " y", " with an answer that is long as well", " z z z"]


def run_engine(name: str, model: Path) -> dict[str, Any]:
    """Generates and scores in a process of its own, with the environment that actors get."""
    code = """
import json, sys
from dataclasses import asdict
from meow_ray import models
from meow_ray.engines import EngineSpec, Sampling, build
engine = build(EngineSpec(models.reference(sys.argv[2], None, "model"), sys.argv[1], "float32"))
prompts = [engine.tokenizer(t)["input_ids"] for t in json.loads(sys.argv[3])]
answers = [engine.tokenizer(t, add_special_tokens=False)["input_ids"] for t in json.loads(sys.argv[4])]
greedy = [c[0].text for c in engine.generate(prompts, [Sampling(24)] * len(prompts))]
many = engine.generate(prompts[:1], [Sampling(8, temperature=1.0, n=5, bad_words=("a",), stop=("q",))])[0]
found = {"greedy": greedy, "many": [c.text for c in many], "forced": [asdict(one) for one in engine.teacher_force(prompts, answers)]}
print("RESULT" + json.dumps(found))
"""
    from meow_ray.ray_data import cpu_env

    done = subprocess.run(
        [sys.executable, "-c", code, name, str(model), json.dumps(PROMPTS), json.dumps(ANSWERS)],
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
def results(tiny_model: Path) -> dict[str, dict[str, Any]]:
    return {name: run_engine(name, tiny_model) for name in ("transformers", "vllm")}


def plain(model: Path) -> tuple[list[str], list[list[float]]]:
    """One prompt at a time, straight from the model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model).eval()
    greedy, scores = [], []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = inputs["input_ids"]
        out = network.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        greedy.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
        tail = tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
        whole = torch.cat([ids, tail], dim=1)
        with torch.no_grad():
            logs = network(whole).logits[0].log_softmax(-1)
        start = ids.shape[1]
        scores.append([float(logs[i - 1, whole[0, i]]) for i in range(start, whole.shape[1])])
    return greedy, scores


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_engines_say_what_plain_transformers_says(results: dict[str, Any], tiny_model: Path, name: str) -> None:
    greedy, scores = plain(tiny_model)
    assert results[name]["greedy"] == greedy
    for found, expected in zip(results[name]["log_probs"], scores, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["transformers", "vllm"])
def test_samples_hold_no_banned_word_and_end_before_a_stop(results: dict[str, Any], name: str) -> None:
    assert len(results[name]["many"]) == 5
    assert not any("a" in text or "q" in text for text in results[name]["many"])


def test_transformers_samples_by_seed_alone(tiny_model: Path) -> None:
    engine = build(EngineSpec(models.reference(str(tiny_model), None, "model"), "transformers", "float32"))
    prompts = [engine.tokenizer(text)["input_ids"] for text in PROMPTS]
    sampling = [Sampling(8, temperature=1.0, n=2, seed=seed) for seed in range(4)]
    together = engine.generate(prompts, sampling)
    alone = [engine.generate([p], [s])[0] for p, s in zip(prompts, sampling, strict=True)]
    assert together == alone
