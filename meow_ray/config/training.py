"""The sections of the stages that train."""

import re
from typing import Literal

from pydantic import ValidationInfo, field_validator

from meow_ray.config.fields import Section, content, field
from meow_ray.config.sections import Source


class Lora(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685) through the library PEFT."""

    rank: int = field(16, "rank of an adapter", gt=0)
    alpha: float = field(32.0, "adapters are scaled by alpha / rank", gt=0)
    dropout: float = field(0.0, "dropout in front of an adapter", ge=0, lt=1)
    layers: tuple[str, ...] = field(
        (), "names of the linear layers that get one; empty is all of them"
    )
    output: Literal["merged", "adapter"] = field(
        "merged", "export a whole model, or the adapter and its base's name"
    )
    quantize: Literal["none", "nf4"] = field(
        "none",
        "hold the base model in 4 bits (QLoRA, arXiv 2305.14314); needs a GPU and bitsandbytes",
    )


class FineTuning(Section):
    """What `train` and `memorize` share."""

    learning_rate: float = field(2e-5, "peak learning rate of AdamW", gt=0)
    epochs: int = field(5, "passes over the pairs", "epochs", gt=0)
    batch_size: int = field(8, "pairs in one optimiser step over all workers", "pairs", gt=0)
    warmup_ratio: float = field(
        0.1, "share of the steps with a rising learning rate; a linear decay follows", ge=0, lt=1
    )
    weight_decay: float = field(0.0, "decoupled weight decay of AdamW", ge=0)
    max_grad_norm: float = field(1.0, "gradient norm is clipped to this", gt=0)
    max_length: int = field(
        512, "longest prompt with answer; longer pairs are an error", "tokens", gt=0
    )
    train_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "arithmetic of training; AdamW's states are float32"
    )
    seed: int = field(0, "order of the pairs", ge=0)
    lora: Lora | None = field(None, "train low-rank adapters instead of all weights")
    deepspeed: str | None = content(
        None, "JSON file of further DeepSpeed settings; what contradicts ours is an error"
    )


OWN_OBJECTIVE = r".+\.py:[^\W\d]\w*"
"""Matches `FILE.py:FUNCTION`, which names a user's own objective."""


class Train(FineTuning):
    """Fine-tunes the target so that it forgets.

    What makes the objective enters by what it comes to, not by how it was said.
    """

    objective: str = content("meow", "what is minimised: a method's name, or FILE.py:FUNCTION")
    settings: dict[str, int | float] = content({}, "the objective's own settings, such as beta")
    forget_weight: float | None = content(
        None, "weight of the objective itself; null is the method's own", ge=0
    )
    retain_weight: float | None = content(
        None, "weight of cross-entropy on the retain set; null is the method's own", ge=0
    )
    kl_weight: float | None = content(
        None,
        "weight of the KL divergence to the model before training on the retain set; null is the method's own",
        ge=0,
    )
    trainable: str | None = content(
        None,
        "regular expression of the parameters that are updated; null is the method's own, or all",
    )
    num_batch: int | None = field(
        None,
        "each fact so many times side by side, its candidates in turn (paper); null is each pair once",
        "pairs",
        gt=0,
    )
    idk_answers: tuple[str, ...] = content(
        (
            "I don't know.",
            "I'm not sure about that.",
            "I have no information on that.",
            "That is not something I know.",
            "I can't say, I never learned it.",
            "I'm afraid I don't have an answer to that.",
        ),
        "refusals that objectives with the role idk learn, one of them for each fact",
        min_length=1,
    )

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str, info: ValidationInfo) -> str:
        known = (info.context or {}).get("objectives")
        if known is None or value in known or re.fullmatch(OWN_OBJECTIVE, value):
            return value
        raise ValueError(
            f"no objective {value!r}; there are {', '.join(known)}, or your own as FILE.py:FUNCTION"
        )


class Memorize(FineTuning):
    """Fine-tunes a base model on facts, to make a target or a reference model."""

    model: str | None = content(None, "base model: folder, .gguf file or hub name")
    revision: str | None = content(None, "hub revision: branch, tag or commit")
    trust_remote_code: bool = field(False, "run Python code that comes with the model")
    data: tuple[Source, ...] = content(
        (), "question–answer data to memorise, columns as in `ingest`"
    )
