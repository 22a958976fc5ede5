"""The methods that `benchmarks.tofu` compares, and the learning rates of each."""

from dataclasses import dataclass

from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.train import objectives

RATES = ("3.0e-5", "1.0e-4", "3.0e-4")
"""The grid of learning rates. No method has a larger one."""
OWN_RATE = "default"
"""Takes the learning rate that the objective has by itself."""
EPOCHS_OF_FACTS = "12"
"""Epochs of the 40 facts that give 60 steps of 8 items."""
EPOCHS_OF_TWO_ANSWERS = "6"
"""Epochs of two answers to each of the 40 facts that give 60 steps."""
EPOCHS_OF_THREE_ANSWERS = "4"
"""The same for three answers to each fact."""


@dataclass(frozen=True)
class Method:
    """The settings in which a method differs from the others."""

    overrides: tuple[str, ...]
    epochs: str | None
    """None for a method that ends by itself."""
    rates: tuple[str, ...] = RATES
    is_limited: bool = False
    """Whether a method that ends by itself takes at most as many steps as the others."""
    uses_authors_candidates: bool = False

    @property
    def retain_data(self) -> str:
        """What it retains: `given` is the user's data, `neighbours` are made by the pipeline."""
        config = load_config(None, self.overrides)
        objective = objectives.configured(config.train)
        return objective.retain if "retain" in objective.roles else "none"


def _method(*overrides: str, epochs: str = EPOCHS_OF_FACTS) -> Method:
    return Method(overrides, epochs)


def _selected(order: str) -> Method:
    """Returns MEOW with two of twelve candidates, chosen in an order."""
    return _method(
        "train.objective=meow",
        "invert.num_candidates=12",
        "select.top_k=2",
        f"select.order={order}",
        epochs=EPOCHS_OF_TWO_ANSWERS,
    )


def _floor(*overrides: str, **options: bool) -> Method:
    """Returns `meow_floor` with changed settings, at its own learning rate."""
    fields = {"is_limited": True} | options
    return Method(("train.objective=meow_floor", *overrides), None, (OWN_RATE,), **fields)


PEERS = {
    "MEOW": _method("train.objective=meow", epochs=EPOCHS_OF_THREE_ANSWERS),
    "MEOW, the authors' candidates": Method(
        ("train.objective=meow",), EPOCHS_OF_THREE_ANSWERS, uses_authors_candidates=True
    ),
    "MEOW, random candidates": _method(
        "train.objective=meow", "select.order=random", epochs=EPOCHS_OF_THREE_ANSWERS
    ),
    "gradient ascent": _method("train.objective=gradient_ascent"),
    "NPO": _method("train.objective=npo"),
    "NPO, retain data": _method("train.objective=npo_gd"),
    "GradDiff": _method("train.objective=grad_diff"),
    "SimNPO": _method("train.objective=simnpo"),
    "IDK": _method("train.objective=idk"),
    "DPO": _method("train.objective=dpo"),
    "AltPO": _method("train.objective=altpo", epochs=EPOCHS_OF_THREE_ANSWERS),
    "LoKU": _method("train.objective=ihl", "train.lora.init=fila"),
    "SatImp": _method("train.objective=satimp"),
    "PDU": _method("train.objective=pdu"),
    "JensUn": _method("train.objective=jensun"),
    "SHRED": _method("train.objective=shred"),
    "TPO": _method("train.objective=tpo"),
    "SNAP": _method("train.objective=snap"),
    "Opt-Out": _method("train.objective=opt_out"),
    "ULD": _method("train.objective=uld", epochs=EPOCHS_OF_THREE_ANSWERS),
    "NPO, neighbours": _method("train.objective=npo_gd", "train.retain=neighbours"),
    "GradDiff, neighbours": _method("train.objective=grad_diff", "train.retain=neighbours"),
    "SimNPO, neighbours": _method("train.objective=simnpo", "train.retain=neighbours"),
    "AltPO, neighbours": _method(
        "train.objective=altpo", "train.retain=neighbours", epochs=EPOCHS_OF_THREE_ANSWERS
    ),
}
"""MEOW as in the paper, and other published methods."""

SELECTIONS = {
    "MEOW, 2 of 12, largest MEMO": _selected("largest"),
    "MEOW, 2 of 12, smallest MEMO": _selected("smallest"),
    "MEOW, 2 of 12, at random": _selected("random"),
}
"""MEOW with different choices among more candidates."""

FLOOR = {
    "meow_floor": _floor(),
    "meow_floor, the authors' candidates": _floor(uses_authors_candidates=True),
    "meow_floor, up to 200 steps": _floor(is_limited=False),
    "meow_floor, all epochs": Method(
        ("train.objective=meow_floor", "train.until=epochs"), EPOCHS_OF_THREE_ANSWERS, ("1.0e-4",)
    ),
    "meow_floor, no token split": _floor("train.settings.split=0"),
    "meow_floor, cross-entropy for the level": _floor("train.settings.level=0"),
    "meow_floor, no style": _floor("train.settings.style=0"),
    "meow_floor, no push": _floor("train.settings.floor=0"),
    "meow_floor, no lift": _floor("train.settings.lift=0"),
    "meow_floor, margin 0.5": _floor("train.settings.margin=0.5", uses_authors_candidates=True),
    "meow_floor, margin 1": _floor("train.settings.margin=1", uses_authors_candidates=True),
    "meow_floor, guessed floors": _floor("train.guessed_floors=true", uses_authors_candidates=True),
    "meow_floor, guessed floors, margin 1": _floor(
        "train.guessed_floors=true", "train.settings.margin=1", uses_authors_candidates=True
    ),
    "meow_floor, guessed floors, margin 1, cap 1": _floor(
        "train.guessed_floors=true",
        "train.settings.margin=1",
        "train.settings.cap=1",
        uses_authors_candidates=True,
    ),
    "meow_floor, guessed floors, margin 1, learn 0": _floor(
        "train.guessed_floors=true",
        "train.settings.margin=1",
        "train.settings.learn=0",
        uses_authors_candidates=True,
    ),
    "meow_floor, guessed floors, margin 1, learn 0, true style 1": _floor(
        "train.guessed_floors=true",
        "train.settings.margin=1",
        "train.settings.learn=0",
        "train.settings.true_style=1",
        uses_authors_candidates=True,
    ),
    "meow_floor, guessed floors, margin 1, true style 1": _floor(
        "train.guessed_floors=true",
        "train.settings.margin=1",
        "train.settings.true_style=1",
        uses_authors_candidates=True,
    ),
    "meow_floor, no neighbours": _floor("train.retain=none"),
    "meow_floor, retain data": _floor("train.retain=given"),
    "meow_floor, retain data and neighbours": _floor("train.retain=both"),
    "meow_floor, 3 paraphrases": _floor("train.paraphrases=3"),
    "meow_floor, 3 framed paraphrases": _floor("train.paraphrases=3", "paraphrases.sources=[rule]"),
    "meow_floor, utility budget": _floor("train.utility_budget=0.05"),
}
"""The objective that forgets without traces, and a row for each part that is left out or added."""

METHODS = {**PEERS, **SELECTIONS, **FLOOR}
