"""The sections of the stages that train: `train` and `memorize`."""

import re
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator

from meow_ray.config.fields import Section, content, field
from meow_ray.config.sections import Source


class Lora(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685), by the library PEFT."""

    rank: int = field(16, "rank of the adapters", gt=0)
    alpha: float = field(32.0, "adapters are scaled by alpha / rank", gt=0)
    dropout: float = field(0.0, "dropout before the adapters", ge=0, lt=1)
    layers: tuple[str, ...] = field(
        (), "names of the linear layers with adapters; [] is all linear layers"
    )
    init: Literal["zero", "fila"] = field(
        "zero",
        "what the adapters start from: zero adds nothing to the weights; fila takes the part of "
        "the weights that matters for the forget facts and not for the retain set (FILA of LoKU, "
        "arXiv 2408.06621)",
    )
    output: Literal["merged", "adapter"] = field(
        "merged", "export the merged model, or the adapter with the name of its base model"
    )
    quantize: Literal["none", "nf4"] = field(
        "none",
        "nf4 loads the base model in 4 bits (QLoRA, arXiv 2305.14314); it needs a GPU and "
        "bitsandbytes",
    )
    gram: bool = field(
        False,
        "also write Gram matrices of the inputs of the adapted layers, which `meow merge` reads; "
        "needs output adapter",
    )


LEARNING_RATE = 2e-5
"""The learning rate that is used if none is set."""


class FineTuning(Section):
    """Settings that `train` and `memorize` share."""

    learning_rate: float | None = field(
        None,
        "peak learning rate of AdamW; null is 2e-5, for balanced_subnet 0.01, and for objectives "
        "that end by themselves 0.06 divided by the width of the model",
        gt=0,
    )
    epochs: int = field(5, "passes over the pairs", "epochs", gt=0)
    batch_size: int = field(8, "pairs per optimiser step, over all workers", "pairs", gt=0)
    warmup_ratio: float = field(
        0.1,
        "share of the steps in which the learning rate rises; then it decays linearly",
        ge=0,
        lt=1,
    )
    weight_decay: float = field(0.0, "decoupled weight decay of AdamW", ge=0)
    max_grad_norm: float = field(1.0, "gradients with a larger norm are scaled down to it", gt=0)
    max_length: int = field(
        512, "longest prompt with its answer; a longer pair is an error", "tokens", gt=0
    )
    train_dtype: Literal["float32", "bfloat16"] = field(
        "float32", "dtype of forward and backward passes; optimiser states are float32"
    )
    seed: int = field(0, "seed of the order of the pairs", ge=0)
    lora: Lora | None = field(None, "train low-rank adapters instead of all weights")
    deepspeed: str | None = content(
        None, "JSON file with more DeepSpeed settings; a setting that contradicts ours is an error"
    )

    def spec(self) -> dict[str, Any]:
        """Returns the fields that enter fingerprints, with the learning rate that null stands for.

        The objective enters them, too, and says whether null depends on the model's width.
        """
        return super().spec() | {"learning_rate": self.learning_rate or LEARNING_RATE}


RetainSource = Literal["none", "given", "neighbours", "both"]
"""Where the pairs of the role retain come from; see `train.retain`."""

OWN_OBJECTIVE = r".+\.py:[^\W\d]\w*"
"""Matches `FILE.py:FUNCTION`, the name of a user's own objective."""


class Train(FineTuning):
    """Fine-tunes the target so that it forgets.

    The fields of the objective are marked as content: the objective that they result in enters the
    fingerprint, so that naming a default changes nothing.
    """

    objective: str = content(
        "meow_floor",
        "objective to minimise: a name such as meow_floor, meow or npo, or your own as "
        "FILE.py:FUNCTION",
    )
    settings: dict[str, int | float] = content({}, "settings of the objective, such as beta")
    forget_weight: float | None = content(
        None, "weight of the loss on the forget set; null is the default of the objective", ge=0
    )
    retain_weight: float | None = content(
        None,
        "weight of the cross-entropy on the retain set; null is the default of the objective",
        ge=0,
    )
    kl_weight: float | None = content(
        None,
        "weight of the KL divergence from the model before training, on the retain set; null is "
        "the default of the objective",
        ge=0,
    )
    until: Literal["epochs", "never_seen"] | None = content(
        None,
        "when training ends: after `epochs`, or when the forget facts look as if the model had "
        "never seen them; null is the default of the objective",
    )
    max_steps: int | None = content(
        None,
        "largest number of optimiser steps with until never_seen, which passes over the pairs "
        "until then; null is the default of the objective",
        gt=0,
    )
    stop_level: float | None = content(
        None,
        "p-value that the comparisons of the forget facts with facts never seen have to exceed "
        "with until never_seen; null is the default of the objective",
        gt=0,
        lt=1,
    )
    cooldown: float | None = content(
        None,
        "steps after the facts look never seen, in which the learning rate falls to 0, as a share "
        "of the steps before; null is the default of the objective",
        ge=0,
    )
    utility_budget: float | None = content(
        None,
        "KL divergence on the retain set, in nats per token, to which the weight of that term is "
        "adapted; null keeps the weight",
        gt=0,
    )
    retain_budget: float | None = content(
        None,
        "cross-entropy on the retain set, in nats per token, to which the weight of that term is "
        "adapted; null is the default of the objective, which for most keeps the weight",
        gt=0,
    )
    weight_distance: float | None = content(
        None,
        "weight of the sliced Wasserstein distance of the weights from those before training, "
        "which needs no data; null is the default of the objective",
        ge=0,
    )
    guessed_floors: bool | None = content(
        None,
        "whether the floors of an answer rise with the probability that the generator gives it, "
        "which was never taught the facts (stage guesses); null is the default of the objective",
    )
    retain: RetainSource | None = content(
        None,
        "pairs that the objective retains: given (`ingest.retain`), neighbours (made by the stage "
        "neighbours), both, or none, which drops retain_weight and kl_weight; null is the default "
        "of the objective",
    )
    paraphrases: int | None = content(
        None,
        "rewordings of each forget question to train on in turn with the question itself (stage "
        "paraphrases); 0 trains on the question alone; null is the default of the objective",
        ge=0,
        le=16,
    )
    trainable: str | None = content(
        None,
        "regular expression of the parameters to update; null is the default of the objective, or "
        "all parameters",
    )
    assistant_blocks: int | None = content(
        None,
        "blocks of the target of which uld makes its assistant; a target with fewer gives half of "
        "its own; null is the default of the objective",
        gt=0,
    )
    assistant_weight: float | None = content(
        None,
        "what the logits of the assistant are multiplied by before they are added to those of the "
        "target (uld), a negative number; null is the default of the objective",
        lt=0,
    )
    assistant_filter: float | None = content(
        None,
        "share of the target's largest probability below which the assistant has no say about a "
        "token (uld); 0 gives it a say about all; null is the default of the objective",
        ge=0,
        lt=1,
    )
    num_batch: int | None = field(
        None,
        "number of times that each fact comes in a row, with its candidates in turn (paper); null "
        "takes each pair once",
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
        "refusals for objectives with the role idk, one of them per fact; at least one",
        min_length=1,
    )

    @field_validator("objective")
    @classmethod
    def _known_objective(cls, value: str, info: ValidationInfo) -> str:
        known = (info.context or {}).get("objectives")
        if known is None or value in known or re.fullmatch(OWN_OBJECTIVE, value):
            return value
        raise ValueError(
            f"no objective {value!r}. Choose from {', '.join(known)}, or use FILE.py:FUNCTION"
        )


class Memorize(FineTuning):
    """Fine-tunes a base model on facts, to make a target or a retain model."""

    model: str | None = content(None, "base model: a folder, a .gguf file or a hub name")
    revision: str | None = content(None, "hub revision: branch, tag or commit")
    trust_remote_code: bool = field(False, "allow Python code in the model's files to run")
    data: tuple[Source, ...] = content(
        (), "questions and answers to memorise; columns as in `ingest`"
    )
