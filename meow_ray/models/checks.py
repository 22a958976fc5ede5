"""Checks of a model by its configuration and its tokenizer, before its weights are loaded."""

from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from meow_ray.models import refs, uld
from meow_ray.models.folders import ULD_BASE
from meow_ray.models.refs import ModelRef


@cache
def model_faults(ref: ModelRef, key: str) -> tuple[str, ...]:
    """Returns why no stage can use a model as a decoder, a paragraph each.

    Args:
        ref: the model.
        key: the configuration key that names it, such as `target.model`.
    """
    return tuple(_model_faults(ref, key))


def _model_faults(ref: ModelRef, key: str) -> Iterator[str]:
    place = f"`{key}`: {ref.uri}"
    try:
        config = refs.load_model_config(ref)
        tokenizer = refs.load_tokenizer(ref)
    except Exception as error:  # noqa: BLE001 - transformers raises errors of many types
        yield (
            f"{place}: its configuration or its tokenizer cannot be loaded ({_first_line(error)}). "
            "Name the folder of a whole Hugging Face model."
        )
        return
    if not is_decoder(config):
        yield (
            f"{place} is a {_architecture(config)}, which is no causal language model. "
            "Name a decoder, such as a Llama or Qwen model."
        )
        return
    yield from _tokenizer_faults(config, tokenizer, place)


def is_decoder(config: Any) -> bool:
    """Whether a configuration of transformers is that of a causal language model."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        return False
    can_mask = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if can_mask and getattr(config, "is_decoder", None) is False:
        return False  # a BERT, which reads both sides of a token
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return True  # by code of the model's own
    architectures = config.architectures or ()
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    if not architectures:
        return known is not None
    return known is not None and any(
        name in _names(known) or name.endswith(("ForCausalLM", "LMHeadModel"))
        for name in architectures
    )


def _names(known: Any) -> tuple[str, ...]:
    return (known,) if isinstance(known, str) else tuple(known)


def _architecture(config: Any) -> str:
    return str((config.architectures or [config.model_type])[0])


def _tokenizer_faults(config: Any, tokenizer: Any, place: str) -> Iterator[str]:
    rows = getattr(config.get_text_config(), "vocab_size", None)
    largest = max(_ids_of_texts(tokenizer), default=-1)
    if rows is not None and largest >= rows:
        yield (
            f"{place}: its tokenizer has token ids up to {largest}, but the model has embeddings "
            f"for {rows} tokens. Use the tokenizer of this model, or resize its embeddings."
        )


def _ids_of_texts(tokenizer: Any) -> set[int]:
    """Returns the ids of all tokens that a text, its prompt or its padding can have.

    Some tokenizers have special tokens for images that the language model does not know.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {number for number, token in added.items() if token.special}
    ids = set(tokenizer.get_vocab().values()) - special
    ids |= {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    if getattr(tokenizer, "chat_template", None):
        written = str(tokenizer.chat_template)
        ids |= {number for number, token in added.items() if str(token) in written}
    return {number for number in ids if number is not None}


# --- quantised weights --------------------------------------------------------------------------


def quantization(ref: ModelRef) -> str | None:
    """Returns the method by which a model's stored weights are quantised, or None."""
    settings = getattr(refs.load_model_config(ref), "quantization_config", None)
    if not settings:
        return None
    values = settings if isinstance(settings, dict) else settings.to_dict()
    return str(getattr(values.get("quant_method"), "value", values.get("quant_method", "unknown")))


def training_fault(ref: ModelRef, key: str) -> str | None:
    """Returns why a model cannot be trained, or None."""
    if uld.is_uld(ref):
        what = "training changes one model"
        return f"`{key}`: " + uld.two_models(
            ref, what, f"Name the model that it was made of, or its folder {ULD_BASE}/."
        )
    method = quantization(ref)
    if method is None:
        return None
    return (
        f"`{key}`: {ref.uri} is quantised ({method}) and cannot be trained. Name the full model. "
        "To save memory, train adapters on it: train.lora.quantize=nf4."
    )


def transformers_fault(ref: ModelRef, key: str, engine_key: str) -> str | None:
    """Returns why transformers cannot load a quantised model in this environment, or None.

    Args:
        ref: the model.
        key: the configuration key that names it.
        engine_key: the configuration key of its engine.
    """
    method = quantization(ref)
    if method is None:
        return None
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        settings = refs.load_model_config(ref).quantization_config
        with suppress(RuntimeError, ValueError, NotImplementedError):
            AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment()
    except ImportError as error:  # a missing GPU is no fault here: actors may have one
        return (
            f"`{key}`: {ref.uri} is quantised ({method}), and transformers cannot load it here "
            f"({_first_line(error)}). Name the full model, or set {engine_key}=vllm."
        )
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
