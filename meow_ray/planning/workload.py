"""How much a run asks of its engines and workers, and how long that takes: arithmetic before anything runs.

What is counted is what the stages' own steps ask on a sample of the facts, of an engine that writes it down and
answers nothing. Where the answer of a model decides, the estimate says what it assumes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config, TrainResources
from meow_ray.core import storage
from meow_ray.core.tables import Query
from meow_ray.engines import Completion, Sampling, TeacherForced
from meow_ray.engines.base import Tokens
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.planning import shapes
from meow_ray.planning.memory import methods
from meow_ray.planning.rates import EngineRates, Rates, TrainingRates, read_rates
from meow_ray.planning.sample import Given, look
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.steps import EvaluateSteps
from meow_ray.stages.inputs import engine_spec, model_ref
from meow_ray.stages.invert.generators import LocalGenerator, LocalSpec
from meow_ray.stages.invert.stage import generator_spec
from meow_ray.stages.invert.steps import InvertSteps
from meow_ray.stages.memo.steps import MemoSteps
from meow_ray.stages.train import objectives
from meow_ray.stages.train.objectives import ObjectiveSpec

MISMATCHES = 3
"""One token of so many is assumed not to be greedy: from each of them a token window is continued."""
ROW_BYTES = 200
"""What a row of any table takes besides its text."""


@dataclass
class Work:
    """What one stage asks for, over all its actors or workers."""

    stage: str
    by: str
    """Whose rates apply, a key of `Rates`."""
    requests: float = 0
    """Continuations."""
    read: float = 0
    """Tokens of prompts, and of answers that are only looked at."""
    generated: float = 0
    """Tokens, at most."""
    trained: float = 0
    """Tokens forwards and backwards."""
    storage: float = 0
    """Bytes that stay."""

    def add(self, other: "Work | Tally", times: float) -> None:
        """Adds what was counted, so many times."""
        for name in ("requests", "read", "generated"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))


@dataclass
class Tally:
    """Stands where an engine would: writes down what it is asked and answers nothing."""

    tokenizer: Any
    max_model_len: int
    reply: float | None = None
    """Tokens after which a reply is assumed to end; None: at its limit."""
    requests: int = 0
    read: int = 0
    generated: int = 0

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        self.requests += sum(one.n for one in sampling)
        self.read += sum(map(len, prompts))
        for one in sampling:
            self.generated += one.n * round(
                min(one.max_new_tokens, self.reply or one.max_new_tokens)
            )
        return [[Completion("", True)] * one.n for one in sampling]

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`."""
        self.read += sum(map(len, prompts)) + sum(map(len, answers))
        return [
            TeacherForced(
                [0.0] * len(a),
                [i % MISMATCHES > 0 for i in range(len(a))],
                True,
                *[[0.0] * len(a)] * 2,
            )
            for a in answers
        ]


# --- counting -----------------------------------------------------------------------------------


def works(config: Config, objective: ObjectiveSpec, given: Given) -> list[Work]:
    """Counts what each stage asks for, in order."""
    forget, times = given.split("forget"), given.times("forget")
    prompter = Prompter(given.tokenizer, config.target.template, config.target.system)
    pairs = [
        prompter.encode_pair(row["question"], row["answer"])[0] for row in given.facts.to_pylist()
    ]
    of_forget = [
        len(ids)
        for ids, split in zip(pairs, given.facts["split"].to_pylist(), strict=True)
        if split == "forget"
    ]
    answers = [len(prompter.encode_answer(text)) for text in forget["answer"].to_pylist()]
    reply, pair = sum(answers) / len(answers), sum(of_forget) / len(of_forget)
    text = sum(
        len(q) + len(a)
        for q, a in zip(*(given.facts[c].to_pylist() for c in ("question", "answer")), strict=True)
    )
    row = ROW_BYTES + text / given.facts.num_rows
    count, k = given.counts["forget"], config.invert.num_candidates
    saved = given.model_bytes + 12.0 * given.trainable
    out = []
    if config.memorize is not None:
        everything = sum(given.counts.values())
        trained = everything * config.memorize.epochs * sum(map(len, pairs)) / len(pairs)
        out.append(Work("memorize", "memorizing", trained=trained, storage=saved))
    out.append(Work("invert", "generator", storage=count * k * row))
    out[-1].add(_inverted(config, forget, _tally(given, reply)), times)
    out.append(Work("memo", "target", storage=count * (k + 1) * row))
    out[-1].add(_scored(config, forget, _tally(given)), times * (k + 1))
    items = count * (config.select.top_k if "inverted" in objective.roles else 1)
    if objective.reference == "log_probs":
        out.append(Work("reference", "target", read=items * pair, storage=items * row))
    trained = items * config.train.epochs * pair * max(1, len(objective.roles))
    out.append(Work("train", "training", trained=trained, storage=saved))
    out.append(_evaluated(config, given, reply, row))
    return out


def _tally(given: Given, reply: float | None = None) -> Tally:
    return Tally(given.tokenizer, 1 << 30, reply)


def _inverted(config: Config, forget: pa.Table, tally: Tally) -> Tally:
    once = config.invert.model_copy(
        update={"max_attempts": 1, "fallback": False, "judge": "none", "engine": "vllm"}
    )
    style = "prefill" if config.invert.style == "prefill" else "chat"
    if style == "chat":  # a reply has all answers
        tally = replace(tally, reply=(tally.reply or 0) * (once.num_candidates + once.spare))
    InvertSteps(once, style)(
        LocalGenerator(tally), forget.select(["fact_id", "question", "answer"])
    )
    return tally


def _scored(config: Config, forget: pa.Table, tally: Tally) -> Tally:
    steps = MemoSteps(config.memo, config.target.template, config.target.system)
    texts = pa.array([[text] for text in forget["answer"].to_pylist()], pa.list_(pa.string()))
    steps.generate(tally, steps.prepare(tally.tokenizer, forget.append_column("texts", texts)))
    return tally


def _evaluated(config: Config, given: Given, reply: float, row: float) -> Work:
    spec, models = config.evaluate, 3 if config.evaluate.retain_model else 2
    out = Work("evaluate", "target")
    sets = {name: table for name, table in given.sets.items() if name not in ("forget", "retain")}
    rows = suites.rows_to_ask(Query("SELECT * FROM facts", {"facts": given.facts}), sets, (), spec)
    steps = EvaluateSteps(spec, config.memo, config.target.template, config.target.system)
    for suite in rows["suite"].unique().to_pylist():
        part = rows.filter(pc.equal(rows["suite"], suite))
        times = 1.0
        if suite.startswith("forget"):
            times = given.times("forget")
        elif suite == "retain":
            times = (
                min(given.counts["retain"], spec.sample or given.counts["retain"]) / part.num_rows
            )
        tally = _tally(given, reply)
        steps.generate(tally, part)
        out.add(tally, times * models)
        out.storage += times * models * part.num_rows * row
    return out


# --- time ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """One stage's work, and what it takes."""

    work: Work
    units: int
    """Engines or workers."""
    seconds: float
    gpu_hours: float


def units(config: Config, stages: Sequence[str], gpus: int) -> dict[str, tuple[int, int]]:
    """Returns each stage's engines or workers and the GPUs of one: all GPUs, or without any what is configured."""
    out = {}
    for stage in stages:
        own = getattr(config.resources, "memo" if stage == "reference" else stage)
        if isinstance(own, TrainResources):
            out[stage] = (own.workers(gpus or 2), int(gpus > 0))
        else:
            size = own.tensor_parallel_size
            out[stage] = (max(1, gpus // size), size) if gpus else (own.actors[1], 0)
    return out


def estimate(
    found: Sequence[Work], rates: Rates, units: Mapping[str, tuple[int, int]]
) -> list[Estimate]:
    """Says how long each stage takes.

    Args:
        found: the stages' work.
        rates: of one engine or worker.
        units: engines or workers of each stage, and the GPUs of one.
    """
    out = []
    for work in found:
        count, gpus = units[work.stage]
        if work.trained:
            rate: TrainingRates = getattr(rates, work.by) or rates.training
            seconds = rate.start + work.trained / rate.train / count
        else:
            own: EngineRates = getattr(rates, work.by)
            asked = (2 if work.stage == "evaluate" else 1) * own.start
            seconds = asked + (work.read / own.read + work.generated / own.generate) / count
        out.append(Estimate(work, count, seconds, seconds * count * gpus / 3600))
    return out


@dataclass(frozen=True)
class RunPlan:
    """What a whole run asks for, and where rates are known how long it takes."""

    facts: Mapping[str, int]
    works: Sequence[Work]
    rates: Rates | None
    estimates: Sequence[Estimate]

    def as_row(self) -> dict[str, Any]:
        """Returns the plan for programs."""
        return {
            "facts": dict(self.facts),
            "rates": self.rates.model_dump() if self.rates else None,
            "stages": [
                asdict(work)
                | ({k: v for k, v in asdict(found).items() if k != "work"} if found else {})
                for work, found in zip_longest(self.works, self.estimates)
            ],
        }


def plan(
    config: Config, count: int | None, rates_file: str | None, gpus: int, measure: bool
) -> RunPlan:
    """Plans a run.

    Args:
        config: the configuration.
        count: facts to forget; None: those of the file.
        rates_file: URI of known rates.
        gpus: of the cluster; 0: on CPU, with the configured actors and workers.
        measure: take the rates here and now.
    """
    from meow_ray.planning import probe

    pipeline = Pipeline(config)
    ref = next(found for name in ("target", "base") if (found := pipeline.artifact(name)))
    _, target_shapes = shapes.of_target(config)
    objective = objectives.configured(config.train)
    full, lora = methods(target_shapes, config, objective)
    given = look(config, model_ref(ref), lora if config.train.lora else full, count)
    every = works(config, objective, given)
    rates = read_rates(storage.absolute(rates_file)) if rates_file else None
    if measure:
        generator = pipeline.artifact("generator")
        assert generator
        writer = generator_spec(generator, config, engine_spec)
        if not isinstance(writer, LocalSpec):
            raise MeowError(
                "--probe loads the model of `invert`, which is behind an endpoint here: give --rates FILE."
            )
        target = engine_spec(model_ref(ref), config.target, config.resources.memo)
        rates = probe.rates(config, writer.engine, target, given)
    many = units(config, [work.stage for work in every], gpus)
    return RunPlan(given.counts, every, rates, estimate(every, rates, many) if rates else ())
