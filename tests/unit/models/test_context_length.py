"""The context length of a model, under the names that configurations give it."""

from pathlib import Path
from typing import Any

import pytest

from meow_ray.models import refs
from tests.support.models import SIZES, llama_config, write_model

MAMBA = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "vocab_size": 262}


@pytest.mark.parametrize(
    ("config", "declared"),
    [
        (llama_config(), 1024),
        ({"model_type": "gpt2", "vocab_size": 262, "n_positions": 96}, 96),
        ({"model_type": "mpt", "vocab_size": 262, "max_seq_len": 64}, 64),
        ({"model_type": "bloom", "vocab_size": 262, "seq_length": 2048}, 2048),
        ({"model_type": "gemma3", "text_config": {**SIZES, "max_position_embeddings": 77}}, 77),
        (MAMBA, None),
    ],
    ids=["at the top", "GPT-2", "MPT", "BLOOM", "in the text model", "none"],
)
def test_the_limit_has_many_names(
    config: dict[str, Any], declared: int | None, tiny_tokenizer: Any, tmp_path: Path
):
    assert refs.declared_context(write_model(tmp_path, tiny_tokenizer, config)) == declared


def test_without_a_declared_limit_the_tokenizer_has_one(tiny_tokenizer: Any, tmp_path: Path):
    model = write_model(tmp_path, tiny_tokenizer, MAMBA)
    assert refs.context_length(model, None) == refs.MOST_TOKENS
    assert refs.context_length(model, 300) == 300
    path = tmp_path / "tokenizer_config.json"
    text = path.read_text()
    path.write_text(text.replace("1000000000000000019884624838656", "4096"))
    refs.load_tokenizer.cache_clear()
    assert refs.context_length(model, None) == 4096


def test_a_lower_limit_of_the_user_wins(tiny_tokenizer: Any, tmp_path: Path):
    model = write_model(tmp_path, tiny_tokenizer, llama_config())
    assert refs.context_length(model, 100) == 100
    assert refs.context_length(model, 5000) == 1024
