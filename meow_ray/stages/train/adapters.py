"""Low-rank adapters (LoRA) of a model that is trained, by the library PEFT."""

from typing import Any

from meow_ray.config import Lora

ADAPTER = "default"
"""PEFT's name of an adapter that was given none."""


def with_adapters(model: Any, lora: Lora) -> Any:
    """Returns a model with new adapters, which are all that is trained."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if lora.quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.layers) or "all-linear",
            task_type="CAUSAL_LM",
        ),
    )


def adapted_layers(model: Any) -> dict[str, Any]:
    """Returns the layers with an adapter of two matrices by name; embeddings are left out."""
    return {
        str(name): module
        for name, module in model.named_modules()
        if ADAPTER in getattr(module, "lora_A", ())
    }


def is_transposed(layer: Any) -> bool:
    """Whether a layer stores its weights as `[in, out]`, as those of GPT-2 do."""
    return bool(layer.fan_in_fan_out)
