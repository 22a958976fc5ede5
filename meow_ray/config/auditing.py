"""The section `audit`: attacks on the tuned model, with controls."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from meow_ray.config.fields import Section, content, field

ATTACKS = (
    "direct",
    "paraphrase",
    "cloze",
    "completion",
    "few_shot",
    "expert",
    "hypothetical",
    "multiple_choice",
    "languages",
    "prefix",
    "affirmative",
    "best_prefix",
    "sampling",
    "attacker",
    "likelihood",
    "membership",
    "depth",
    "quantise",
    "prune",
    "relearn",
)
"""The attacks of `meow_ray`, in the order in which tables show them."""

SUMMARY_FIGURES = (
    "before",
    "after",
    "never_taught",
    "excess",
    "excess_low",
    "excess_high",
    "margin",
    "false_alarms",
)
"""The figures that an audit has of each attack, in the order in which tables show them."""

Budget = Annotated[int, Field(gt=0)] | Literal["auto"]
"""A number of tries; `auto` depends on whether there are GPUs."""


class Attacker(Section):
    """A language model that searches for prompts which make the model say the answer."""

    model: str | None = content(
        None, "the attacker: a folder or hub name; null is the original model itself"
    )
    prompts: Budget = field(
        "auto", "prompts tried in each round; auto is 24 on GPU and 4 on CPU", "prompts"
    )
    rounds: Budget = field("auto", "rounds of search; auto is 3 on GPU and 2 on CPU", "rounds")
    alpha: float = field(
        0.5, "weight of the reply's likeness to the answer against the prompt's", ge=0, le=1
    )


class Relearn(Section):
    """Teaches the models a part of the facts again and asks for the others."""

    steps: tuple[Annotated[int, Field(ge=0)], ...] = field(
        (10, 25, 50, 100), "optimiser steps after which the models are asked", "steps", min_length=1
    )
    data: tuple[Literal["facts", "unrelated"], ...] = field(
        ("facts", "unrelated"),
        "what is taught: the other half of the facts, or unrelated text",
        min_length=1,
    )
    learning_rate: float | None = field(
        None, "learning rate; null is 0.06 divided by the width of the model", gt=0
    )
    batch_size: int = field(8, "pairs per step", "pairs", gt=0)


class Audit(Section):
    """Attacks the tuned model and the controls. The stage runs if `pipeline.audit` is true."""

    attacks: tuple[str, ...] = field(
        ATTACKS, "attacks to run: names, or your own as FILE.py:FUNCTION", min_length=1
    )
    twins: int | None = field(
        None, "twins that are asked as facts never taught; null asks all", "twins", gt=0
    )
    samples: Budget = field(
        "auto", "replies sampled per fact; auto is 64 on GPU and 16 on CPU", "samples"
    )
    rewordings: int = field(3, "template rewordings of each question", "questions", ge=0)
    languages: tuple[Literal["English", "Spanish", "German", "Chinese", "Hindi"], ...] = field(
        ("Spanish", "German", "Chinese", "Hindi"), "languages of the attack languages", min_length=1
    )
    quantise: tuple[Literal["bf16", "int8", "int4", "nf4"], ...] = field(
        ("bf16", "int8", "int4", "nf4"),
        "formats of the attack quantise; nf4 needs a GPU",
        min_length=1,
    )
    prune: tuple[Literal["magnitude", "wanda", "gradient"], ...] = field(
        ("magnitude", "wanda", "gradient"), "how the attack prune chooses weights", min_length=1
    )
    sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = field(
        (0.1, 0.2, 0.3, 0.5), "shares of weights that the attack prune removes", min_length=1
    )
    recovery_steps: int = field(
        0, "training steps on unrelated text after pruning; 0 is none", "steps", ge=0
    )
    relearn: Relearn = Relearn()
    attacker: Attacker = Attacker()
    max_new_tokens: int = field(64, "longest reply", "tokens", gt=0)
    minimum_controls: int = field(
        10, "fewest facts never taught with which a verdict is possible", "facts", gt=1
    )
    remembered_above: float = field(
        0.5,
        "a fact is remembered if an attack gets this share of what it gets from the original model",
        gt=0,
        le=1,
    )
    bootstrap_resamples: int = field(1000, "bootstrap resamples for each 95 % interval", gt=0)
    seed: int = field(0, "seed of halves, samples and bootstrap", ge=0)

    @field_validator("attacks")
    @classmethod
    def _known_attacks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in ATTACKS and ":" not in name:
                raise ValueError(
                    f"no attack {name!r}. Choose from {', '.join(ATTACKS)}, "
                    "or give your own as FILE.py:FUNCTION"
                )
        return value
