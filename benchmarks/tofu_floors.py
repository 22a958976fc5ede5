"""How far facts that a model was never taught lie above the floors of `meow_floor`.

The floors are log-probabilities of twins: invented facts. The retain model was never taught the
facts to forget, so it shows what true facts look like to a model that can only guess them. Their
distance from the floors, in log-odds, is what `margin` of `meow_floor` should be.

A user has no retain model. The generator was never taught the facts either, so its distances, of
the true facts from its own log-probabilities of the twins, may tell how the margin should differ
from fact to fact.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import spearmanr
from tabulate import tabulate

from benchmarks.common import run_script
from benchmarks.tofu_setting import Setting
from meow_ray.core.formatting import format_number, format_optional
from meow_ray.engines import EngineSpec
from meow_ray.models import refs
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.evaluate.metrics import mean_interval
from meow_ray.stages.inputs import model_ref, target_prompter
from meow_ray.stages.train.before import quantiles
from meow_ray.stages.train.log_odds import log_odds
from meow_ray.stages.train.steps import encode_rows, fact_log_probs

OBJECTIVE = "train.objective=meow_floor"
RESAMPLES = 1000


class Distances(NamedTuple):
    """How far the fact-bearing tokens of one fact lie above floors, in log-odds; means."""

    needed: float
    """By the retain model, above the floors of the target."""
    guessed: float
    """By the generator, above the generator's own floors."""


def distances(setting: Setting, root: Path) -> dict[str, Distances]:
    """Returns the distances of each fact that has twins, by fact.

    Args:
        setting: the split.
        root: the folder of data and storage root of `benchmarks.tofu`.
    """
    config_file = setting.write_config(root)
    given = {"candidates": setting.authors_candidates()}
    options = [f"--input={name}={uri}" for name, uri in given.items()]
    run_script("meow.py", "--config", str(config_file), *options, "--until=twins", OBJECTIVE)
    config = load_config(config_file, [OBJECTIVE])
    pipeline = Pipeline(config, given)
    target = _artifact(pipeline, "target")
    retain_model = config.evaluate.retain_model
    assert retain_model is not None
    prompter = target_prompter(model_ref(target), config.target)
    facts = [row for row in _artifact(pipeline, "facts").table.to_pylist() if _is_to_forget(row)]
    twins = [
        row
        for row in _artifact(pipeline, "twins").table.to_pylist()
        if row["half"] == "calibration"
    ]
    never_taught = refs.pin(retain_model, None, "evaluate.retain_model")
    needed = _above(_floors(model_ref(target), twins, prompter), never_taught, facts, prompter)
    assert config.invert.model is not None
    generator = refs.pin(config.invert.model, None, "invert.model")
    guessed = _above(_floors(generator, twins, prompter), generator, facts, prompter)
    return {fact_id: Distances(needed[fact_id], guessed[fact_id]) for fact_id in needed}


def _floors(
    model: ModelRef, twins: Sequence[Mapping[str, Any]], prompter: Prompter
) -> dict[str, list[float]]:
    """Returns what a model says of the fact-bearing tokens of the twins, by fact."""
    floors: dict[str, list[float]] = {}
    for twin, log_probs in zip(twins, _read(model, twins, prompter), strict=True):
        floors.setdefault(twin["fact_id"], []).extend(log_probs)
    return floors


def _above(
    floors: Mapping[str, Sequence[float]],
    model: ModelRef,
    facts: Sequence[Mapping[str, Any]],
    prompter: Prompter,
) -> dict[str, float]:
    """Returns how far a model's log-probabilities of each fact lie above its floors."""
    return {
        fact["fact_id"]: distance(log_probs, floors[fact["fact_id"]])
        for fact, log_probs in zip(facts, _read(model, facts, prompter), strict=True)
        if fact["fact_id"] in floors
    }


def distance(log_probs: Sequence[float], floors: Sequence[float]) -> float:
    """Returns how far fact-bearing tokens lie above floors, in log-odds; the mean over tokens.

    As in `meow_floor`, the most probable token is compared with the highest floor, and so on.

    Args:
        log_probs: `[tokens]`.
        floors: the log-probabilities of the twins' tokens, in any number; their quantiles count.
    """
    by_rank = quantiles(floors, len(log_probs))
    above = log_odds(np.sort(log_probs)) - log_odds(by_rank)
    return float(above.mean())


def print_distances(by_fact: Mapping[str, Distances]) -> None:
    """Prints the means over facts with intervals and spread, and how well one predicts the other.

    The residual is what remains of the distances needed if those of the generator are subtracted.
    """
    columns = np.array(list(by_fact.values()))
    needed, guessed = columns[:, 0], columns[:, 1]
    rows = [
        ("needed, by the retain model", *_mean_and_spread(needed)),
        ("guessed, by the generator", *_mean_and_spread(guessed)),
        ("residual", *_mean_and_spread(needed - guessed)),
    ]
    heads = ("distance, log-odds", "facts", "mean", "95 % interval", "standard deviation")
    print(tabulate(rows, heads, tablefmt="github", disable_numparse=True))
    print(f"Spearman's rank correlation: {spearmanr(needed, guessed).statistic:.3f}")


def _mean_and_spread(values: Any) -> tuple[Any, ...]:
    mean = mean_interval(values.tolist(), RESAMPLES, seed=0)
    return (
        len(values),
        format_number(mean.value),
        f"[{format_optional(mean.low)}, {format_optional(mean.high)}]",
        format_number(float(np.std(values, ddof=1))),
    )


def _read(
    model: ModelRef, rows: Sequence[Mapping[str, Any]], prompter: Prompter
) -> list[list[float]]:
    """Returns the log-probabilities of the fact-bearing tokens of each row's answer."""
    engine = EngineSpec(model, engine="transformers", dtype="float32").load()
    results = engine.teacher_force(*encode_rows(prompter, rows))
    return [values.tolist() for values in fact_log_probs(prompter, rows, results)]


def _artifact(pipeline: Pipeline, name: str) -> Any:
    found = pipeline.artifact(name)
    assert found is not None, f"the run above makes {name}"
    return found


def _is_to_forget(row: Mapping[str, Any]) -> bool:
    return bool(row["split"] == "forget")
