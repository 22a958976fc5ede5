"""A model whose context is longer than the cache of vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import EngineResources
from meow_ray.distributed.map_rows import cpu_env
from tests.support.runs import PROJECT

pytestmark = pytest.mark.slow

CODE = """
import json, sys
from meow_ray.engines import EngineSpec, Sampling, build
from meow_ray.errors import MeowError
from meow_ray.models import refs

limit = json.loads(sys.argv[2])
try:
    engine = build(EngineSpec(refs.pin(sys.argv[1], None, "model"), "vllm", "float32", limit))
    (reply,) = engine.generate([[7] * 20], [Sampling(4)])[0]
    print("RESULT", json.dumps([engine.max_model_len, engine.warning, len(reply.tokens)]))
except MeowError as error:
    print("RESULT", json.dumps(str(error)))
"""

POSITIONS = 65536
FITTING = 16384 - 32
"""Tokens of 64 KiB in a cache of 1 GiB, of which vLLM keeps one block for itself."""


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with many keys and values per token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=POSITIONS,
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("models") / "long"
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def load(model: Path, limit: int | None) -> Any:
    """Loads the model in vLLM with a limit of tokens; returns what the program printed."""
    process = subprocess.run(
        [sys.executable, "-c", CODE, str(model), json.dumps(limit)],
        env=os.environ | cpu_env(EngineResources(), 2),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.rpartition("RESULT")[2].splitlines()[0])


def test_the_engine_takes_what_fits_and_says_so(model: Path):
    length, warning, tokens = load(model, None)
    assert length == FITTING
    assert warning.startswith(
        f"{model}: vLLM's cache holds {FITTING:,} of the model's {POSITIONS:,} tokens, "
        "so longer rows are refused."
    )
    assert tokens == 4


def test_a_limit_that_fits_is_taken_without_a_word(model: Path):
    assert load(model, 512)[:2] == [512, None]


def test_a_limit_that_does_not_fit_is_refused_with_the_number_that_does(model: Path):
    message = load(model, 40000)
    assert message.startswith(f"{model}: vLLM does not load this model. ")
    assert f"the estimated maximum model length is {FITTING}. Set `max_model_len`" in message
