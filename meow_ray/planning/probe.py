"""Short measurements of throughput on the cluster, for `meow plan --probe`."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config, EngineResources, FineTuning
from meow_ray.core import storage
from meow_ray.distributed import cluster, map_rows, placement
from meow_ray.engines import EngineSpec, Sampling
from meow_ray.models.prompts import Prompter
from meow_ray.planning.rates import EngineRates, Rates, TrainingRates
from meow_ray.planning.sample import FactSample
from meow_ray.stages.train import batches, launch, presets
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.pairs import pairs_of
from meow_ray.stages.train.tracking import TrackerSpec

STEPS = 4
"""Optimiser steps that are measured."""
NEW_TOKENS = 32
"""Tokens that each prompt is continued with."""


def measure_rates(
    config: Config, generator: EngineSpec, target: EngineSpec, sample: FactSample
) -> Rates:
    """Loads each engine once and trains for a few steps.

    This takes about as long as starting each of the stages.

    Raises:
        MeowError: the cluster cannot hold the actors or workers of a stage.
    """
    cluster.connect()
    sections = ["invert", "memo", "train"]
    if config.memorize:
        sections.append("memorize")
    for name in sections:
        placement.require(name, config.resources)
    return Rates(
        generator=measure_engine(config, "invert", generator, sample),
        target=measure_engine(config, "memo", target, sample),
        training=measure_training(config, "train", target, sample),
        memorizing=measure_training(config, "memorize", target, sample)
        if config.memorize
        else None,
    )


@dataclass(frozen=True)
class _EngineTimes:
    """What one engine generated, and the seconds that it took to generate and to read."""

    generated: int
    generating: float
    reading: float


def measure_engine(config: Config, stage: str, spec: EngineSpec, sample: FactSample) -> EngineRates:
    """Measures one engine of a stage with a full batch of prompts from the facts."""
    resources: EngineResources = getattr(config.resources, stage)
    prompter = Prompter.of(sample.tokenizer, config.target)
    rows = _repeated_forget_facts(sample, resources.batch_size)
    prompts = [prompter.encode_prompt(prompter.prompt(row["question"])) for row in rows]
    answers = [prompter.encode_answer(row["answer"]) for row in rows]
    gpus = placement.gpus_per_actor(stage, config.resources)
    began = perf_counter()
    times = cluster.call(
        _time_engine,
        spec,
        prompts,
        answers,
        cpus=resources.cpus_per_actor,
        gpus=gpus,
        labels=resources.node_labels,
        env=map_rows.actor_env(resources, gpus),
    )
    elapsed = perf_counter() - began
    prompt_tokens = sum(map(len, prompts))
    read = (prompt_tokens + sum(map(len, answers))) / times.reading
    # `generating` includes reading the prompts
    generating_alone = max(1e-3, times.generating - prompt_tokens / read)
    return EngineRates(
        start=elapsed - times.generating - times.reading,
        read=read,
        generate=times.generated / generating_alone,
    )


def _time_engine(
    spec: EngineSpec, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> _EngineTimes:
    engine = spec.load()
    engine.generate(prompts[:2], [Sampling(2)] * 2)  # the first call is slower
    generated_before = engine.generated
    began = perf_counter()
    engine.generate(prompts, [Sampling(NEW_TOKENS)] * len(prompts))
    generation_ended = perf_counter()
    generated = engine.generated - generated_before
    engine.teacher_force(prompts, answers)
    reading_ended = perf_counter()
    return _EngineTimes(
        generated=generated,
        generating=generation_ended - began,
        reading=reading_ended - generation_ended,
    )


def measure_training(
    config: Config, stage: Literal["memorize", "train"], target: EngineSpec, sample: FactSample
) -> TrainingRates:
    """Measures one worker of a training stage over a few steps, in a folder that it removes."""
    folder = storage.join(storage.absolute(config.storage.root), "work", f"probe-{uuid4().hex[:8]}")
    job = _training_job(config, stage, target, sample, folder)
    tokens = pc.sum(pc.list_value_length(job.load().pairs["input_ids"])).as_py()
    tracker = TrackerSpec(config.tracking, "probe", storage.join(folder, "tensorboard"), {})
    try:
        began = perf_counter()
        summary = launch.fit(job, folder, stage, config.resources, tracker)
        seconds = perf_counter() - began
    finally:
        storage.remove(folder)
    steps, pace = summary["steps"], summary["seconds_per_step"]
    return TrainingRates(
        start=seconds - steps * pace, train=tokens / steps / pace / summary["workers"]
    )


def _training_job(
    config: Config,
    stage: Literal["memorize", "train"],
    target: EngineSpec,
    sample: FactSample,
    folder: str,
) -> Job:
    """Writes training pairs for one epoch of `STEPS` steps; returns the job that trains on them."""
    section: FineTuning = getattr(config, stage)
    settings = {name: getattr(section, name) for name in FineTuning.model_fields}
    spec = FineTuning(**settings | {"epochs": 1})
    facts = pa.Table.from_pylist(_repeated_forget_facts(sample, section.batch_size * STEPS))
    prompter = Prompter.of(sample.tokenizer, config.target)
    pairs = storage.join(folder, "pairs.parquet")
    batches.write_token_pairs(
        pairs_of(("inverted",), None, facts), prompter, spec.max_length, pairs
    )
    return Job(
        model=target.model,
        pairs=pairs,
        spec=spec,
        objective=presets.MEMORIZE,
        resources=getattr(config.resources, stage),
        out=storage.join(folder, "model"),
    )


def _repeated_forget_facts(sample: FactSample, count: int) -> list[dict[str, Any]]:
    """Returns `count` facts to forget, each with the number of its repetition as `rank`."""
    facts = sample.split("forget").to_pylist()
    return [facts[i % len(facts)] | {"rank": i // len(facts)} for i in range(count)]
