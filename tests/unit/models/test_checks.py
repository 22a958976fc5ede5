"""Models that no stage can use are named before their weights are loaded."""

import json
from pathlib import Path
from typing import Any

import pytest

from meow_ray.config import Target
from meow_ray.models import checks
from meow_ray.stages.model_checks import prompt_faults
from tests.support.models import SIZES, llama_config, write_model

T5 = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 262}
BERT = {"model_type": "bert", "architectures": ["BertForMaskedLM"], **SIZES}
BERT_WITH_HEAD = {"model_type": "bert", "architectures": ["BertLMHeadModel"], **SIZES}
VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (T5, "T5ForConditionalGeneration"),
        (BERT, "BertForMaskedLM"),
        (BERT_WITH_HEAD, "BertLMHeadModel"),
        (VIT, "ViTForImageClassification"),
    ],
    ids=["encoder and decoder", "encoder", "encoder with a head", "vision"],
)
def test_a_model_that_is_no_decoder_is_named_with_its_architecture(
    config: dict[str, Any], name: str, tiny_tokenizer: Any, tmp_path: Path
):
    model = write_model(tmp_path, tiny_tokenizer, config)
    assert checks.model_faults(model, "invert.model") == (
        f"`invert.model`: {tmp_path} is a {name}, which is no causal language model. "
        "Name a decoder, such as a Llama or Qwen model.",
    )


@pytest.mark.parametrize(
    "config",
    [
        llama_config(),
        llama_config(architectures=None),
        llama_config(vocab_size=512),
        {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "vocab_size": 262},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 262},
    ],
    ids=["Llama", "no architecture", "unused rows of embeddings", "Mamba", "GPT-2"],
)
def test_a_decoder_has_no_faults(config: dict[str, Any], tiny_tokenizer: Any, tmp_path: Path):
    model = write_model(tmp_path, tiny_tokenizer, config)
    assert checks.model_faults(model, "target.model") == ()
    assert checks.training_fault(model, "target.model") is None
    assert checks.transformers_fault(model, "target.model", "target.engine") is None


def test_tokens_without_embeddings_are_refused(tiny_tokenizer: Any, tmp_path: Path):
    model = write_model(tmp_path, tiny_tokenizer, llama_config(vocab_size=200))
    (fault,) = checks.model_faults(model, "target.model")
    assert "token ids up to 261, but the model has embeddings for 200 tokens" in fault


def test_a_special_token_that_no_text_has_needs_no_embedding(tiny_tokenizer: Any, tmp_path: Path):
    model = write_model(tmp_path, tiny_tokenizer, llama_config())
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text())
    image = stored["added_tokens"][0] | {"id": 262, "content": "<image>", "special": True}
    stored["added_tokens"].append(image)
    path.write_text(json.dumps(stored))
    assert checks.model_faults(model, "target.model") == ()


def test_a_tokenizer_without_an_end_is_refused(tiny_tokenizer: Any, tmp_path: Path):
    model = write_model(tmp_path, tiny_tokenizer, llama_config())
    path = tmp_path / "tokenizer_config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"eos_token": None, "pad_token": None}))
    config = json.loads((tmp_path / "config.json").read_text()) | {"eos_token_id": None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    (fault,) = prompt_faults(model, "target.model", Target())
    assert fault.startswith("`target.model`: its tokenizer has no end-of-sequence token, so no")


def test_a_folder_that_cannot_be_read_is_a_fault_and_no_traceback(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    (fault,) = checks.model_faults(checks.ModelRef(str(tmp_path), "unreadable"), "target.model")
    assert "its configuration or its tokenizer cannot be loaded" in fault


def test_quantised_weights_are_refused_for_training_and_if_a_library_is_missing(
    tiny_tokenizer: Any, tmp_path: Path
):
    model = write_model(tmp_path, tiny_tokenizer, llama_config(quantization_config=GPTQ))
    assert checks.model_faults(model, "target.model") == ()
    assert checks.training_fault(model, "target.model") == (
        f"`target.model`: {tmp_path} is quantised (gptq) and cannot be trained. Name the full "
        "model. To save memory, train adapters on it: train.lora.quantize=nf4."
    )
    fault = checks.transformers_fault(model, "invert.model", "invert.engine")
    assert fault is not None
    assert fault.startswith(f"`invert.model`: {tmp_path} is quantised (gptq), and transformers")
    assert fault.endswith("Name the full model, or set invert.engine=vllm.")
