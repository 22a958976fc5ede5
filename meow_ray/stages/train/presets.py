"""The objectives of `train` that have a name: published methods with their defaults."""

from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.train.structure import MLP_MATRICES, MLP_OUTPUTS

MAX_STEPS = 200
"""The largest number of optimiser steps of a run that ends by itself."""

PRESETS: dict[str, ObjectiveSpec] = {
    "meow": ObjectiveSpec(function="meow", reads=("inverted",)),
    "meow_gd": ObjectiveSpec(
        function="meow", reads=("inverted",), forget_weight=0.9, retain_weight=0.1
    ),
    "meow_kl": ObjectiveSpec(
        function="meow", reads=("inverted",), forget_weight=0.9, kl_weight=0.1
    ),
    "meow_floor": ObjectiveSpec(
        function="meow_floor",
        reads=("inverted", "forget"),
        reference="top_k",
        settings={
            "split": 1,
            "level": 1,
            "style": 1.0,
            "floor": 1.0,
            "lift": 0.3,
            "margin": 0.0,
            "learn": 1.0,
            "cap": 0.0,
            "true_style": 0.0,
        },
        kl_weight=1.0,
        kl_reference="top_k",
        retain="neighbours",
        marks_facts=True,
        twins=True,
        until="never_seen",
        max_steps=MAX_STEPS,
        cooldown=1.0,
        scales_learning_rate=True,
    ),
    "gradient_ascent": ObjectiveSpec(function="gradient_ascent", reads=("forget",)),
    "grad_diff": ObjectiveSpec(function="gradient_ascent", reads=("forget",), retain_weight=1.0),
    "balanced_subnet": ObjectiveSpec(
        function="balanced_subnet",
        reads=("forget",),
        settings={"ratio": 0.05},
        retain_weight=1.0,
        retain="neighbours",
        trainable=MLP_MATRICES,
        masks=True,
        own_learning_rate=1e-2,
    ),
    "kl_min": ObjectiveSpec(function="gradient_ascent", reads=("forget",), kl_weight=1.0),
    "idk": ObjectiveSpec(function="idk", reads=("idk",), retain_weight=1.0),
    "dpo": ObjectiveSpec(
        function="dpo",
        reads=("idk", "forget"),
        reference="log_probs",
        settings={"beta": 0.1},
        retain_weight=1.0,
    ),
    "npo": ObjectiveSpec(
        function="npo", reads=("forget",), reference="log_probs", settings={"beta": 0.1}
    ),
    "npo_gd": ObjectiveSpec(
        function="npo",
        reads=("forget",),
        reference="log_probs",
        settings={"beta": 0.1},
        retain_weight=1.0,
    ),
    "npo_kl": ObjectiveSpec(
        function="npo",
        reads=("forget",),
        reference="log_probs",
        settings={"beta": 0.1},
        kl_weight=1.0,
    ),
    "simnpo": ObjectiveSpec(
        function="simnpo",
        reads=("forget",),
        settings={"beta": 2.5, "gamma": 0.0},
        forget_weight=0.1375,
        retain_weight=1.0,
    ),
    "altpo": ObjectiveSpec(
        function="altpo",
        reads=("inverted", "forget"),
        reference="log_probs",
        settings={"beta": 0.1},
        retain_weight=1.0,
    ),
    "snap": ObjectiveSpec(
        function="idk",
        reads=("idk",),
        retain_weight=1.0,
        retain="neighbours",
        weight_distance=0.1,
    ),
    "opt_out": ObjectiveSpec(
        function="npo",
        reads=("forget",),
        reference="log_probs",
        settings={"beta": 0.1},
        retain_weight=1.0,
        retain="neighbours",
        weight_distance=0.1,
    ),
    "ihl": ObjectiveSpec(function="ihl", reads=("forget",), retain_weight=1.0),
    "undial": ObjectiveSpec(
        function="undial", reads=("forget",), reference="model", settings={"beta": 10.0}
    ),
    "wga": ObjectiveSpec(
        function="wga", reads=("forget",), settings={"beta": 1.0}, retain_weight=1.0
    ),
    "satimp": ObjectiveSpec(
        function="satimp",
        reads=("forget",),
        settings={"beta1": 5.0, "beta2": 1.0},
        forget_weight=0.1,
        retain_weight=1.0,
    ),
    "pdu": ObjectiveSpec(function="pdu", reads=("forget",), retain_weight=50.0, retain_budget=0.3),
    "jensun": ObjectiveSpec(
        function="jensun",
        reads=("idk", "forget", "retain"),
        reference="model",
        settings={"alpha": 1.0},
    ),
    "shred": ObjectiveSpec(
        function="shred",
        reads=("forget",),
        reference="top_k",
        settings={"share": 0.3, "skip_tokens": 1},
    ),
    "tpo": ObjectiveSpec(
        function="tpo",
        reads=("forget",),
        reference="model",
        settings={"beta": 0.32},
        marks_facts=True,
    ),
    "ceu": ObjectiveSpec(function="ceu", reads=("forget",), settings={"skip_tokens": 1}),
    "flat": ObjectiveSpec(function="flat", reads=("idk", "forget")),
    "uld": ObjectiveSpec(
        function="uld",
        reads=("inverted", "forget", "retain"),
        settings={"alpha": 5.0},
        retain="neighbours",
        assistant_blocks=8,
        assistant_weight=-0.8,
        assistant_filter=0.01,
    ),
    "rmu": ObjectiveSpec(
        function="rmu",
        reads=("forget", "retain"),
        reference="model",
        settings={"layer": 7, "steering": 20.0, "alpha": 100.0},
        trainable=MLP_OUTPUTS,
    ),
}
"""Methods by the names that papers use, with their defaults. `losses` names the sources."""

MEMORIZE = PRESETS["meow"]
"""Plain cross-entropy, which `memorize` minimises."""
