"""Short measurements on the cluster itself, for `meow plan --probe`."""

from collections.abc import Sequence
from time import perf_counter
from typing import Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config, FineTuning
from meow_ray.core import storage
from meow_ray.distributed import cluster, map_rows, placement
from meow_ray.engines import EngineSpec, Sampling
from meow_ray.models.prompts import Prompter
from meow_ray.planning.rates import EngineRates, Rates, TrainingRates
from meow_ray.planning.sample import Given
from meow_ray.stages.train import batches, launch, objectives
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.pairs import pairs_of
from meow_ray.stages.train.tracking import TrackerSpec

STEPS = 4
"""Optimiser steps of the probe."""
NEW_TOKENS = 32


def rates(config: Config, generator: EngineSpec, target: EngineSpec, given: Given) -> Rates:
    """Loads each engine once and trains a few steps; needs about the time of starting as many stages."""
    cluster.connect()
    for name in ("invert", "memo", "train", *(("memorize",) if config.memorize else ())):
        placement.require(name, config.resources)
    return Rates(
        generator=engine_rates(config, "invert", generator, given),
        target=engine_rates(config, "memo", target, given),
        training=training_rates(config, "train", target, given),
        memorizing=training_rates(config, "memorize", target, given) if config.memorize else None,
    )


def engine_rates(config: Config, stage: str, spec: EngineSpec, given: Given) -> EngineRates:
    """Measures one engine of a stage with a full batch of the facts' prompts."""
    own = getattr(config.resources, stage)
    prompter = Prompter(given.tokenizer, config.target.template, config.target.system)
    rows = [row for row in given.facts.to_pylist() if row["split"] == "forget"]
    rows = [rows[i % len(rows)] for i in range(own.batch_size)]
    prompts = [prompter.encode_prompt(prompter.prompt(row["question"])) for row in rows]
    answers = [prompter.encode_answer(row["answer"]) for row in rows]
    gpus = placement.gpus_per_actor(stage, config.resources)
    began = perf_counter()
    generated, generating, reading = cluster.call(
        _use,
        spec,
        prompts,
        answers,
        cpus=own.cpus_per_actor,
        gpus=gpus,
        labels=own.node_labels,
        env=map_rows.actor_env(own, gpus),
    )
    start = perf_counter() - began - generating - reading
    read = sum(map(len, [*prompts, *answers])) / reading
    return EngineRates(
        start=start,
        read=read,
        generate=generated / max(1e-3, generating - sum(map(len, prompts)) / read),
    )


def _use(
    spec: EngineSpec, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> tuple[int, float, float]:
    engine = spec.load()
    engine.generate(prompts[:2], [Sampling(2)] * 2)
    before, began = engine.generated, perf_counter()
    engine.generate(prompts, [Sampling(NEW_TOKENS)] * len(prompts))
    between, generated = perf_counter(), engine.generated - before
    engine.teacher_force(prompts, answers)
    return generated, between - began, perf_counter() - between


def training_rates(
    config: Config, stage: Literal["memorize", "train"], target: EngineSpec, given: Given
) -> TrainingRates:
    """Trains the target on sampled facts for a few steps of a stage, in a folder that is removed."""
    folder = storage.join(storage.absolute(config.storage.root), "work", f"probe-{uuid4().hex[:8]}")
    section: FineTuning = getattr(config, stage)
    count = section.batch_size * STEPS
    rows = [row for row in given.facts.to_pylist() if row["split"] == "forget"]
    facts = pa.Table.from_pylist(
        [rows[i % len(rows)] | {"rank": i // len(rows)} for i in range(count)]
    )
    spec = FineTuning(
        **{name: getattr(section, name) for name in FineTuning.model_fields} | {"epochs": 1}
    )
    prompter = Prompter(given.tokenizer, config.target.template, config.target.system)
    path = storage.join(folder, "pairs.parquet")
    batches.write(pairs_of(("inverted",), None, facts), prompter, spec.max_length, path)
    job = Job(
        model=target.model,
        pairs=path,
        spec=spec,
        objective=objectives.MEMORIZE,
        resources=getattr(config.resources, stage),
        out=storage.join(folder, "model"),
    )
    tokens = pc.sum(pc.list_value_length(job.load().pairs["input_ids"])).as_py()
    tracker = TrackerSpec(config.tracking, "probe", storage.join(folder, "tensorboard"), {})
    try:
        began = perf_counter()
        done = launch.fit(job, folder, stage, config.resources, tracker)
        seconds = perf_counter() - began
    finally:
        storage.remove(folder)
    return TrainingRates(
        start=seconds - done["steps"] * done["seconds_per_step"],
        train=tokens / done["steps"] / done["seconds_per_step"] / done["workers"],
    )
