"""The work of a run, and how long it takes: estimates made before anything runs.

The steps of each stage are run on a sample of the facts, with an engine that counts its requests
instead of answering them. Where the work depends on a model's replies, the functions state what
they assume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config, Memorize
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models.prompts import Prompter
from meow_ray.pipeline.pipeline import Pipeline
from meow_ray.planning import audit, neighbours, probe
from meow_ray.planning.methods import training_methods
from meow_ray.planning.rates import Rates, read_rates
from meow_ray.planning.sample import FactSample, sample_facts
from meow_ray.planning.shapes import target_shapes, trained_shapes
from meow_ray.planning.tally import StageWork, Tally
from meow_ray.planning.times import Estimate, estimate_times, stage_units
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.steps import EvaluateSteps
from meow_ray.stages.inputs import engine_spec, model_ref
from meow_ray.stages.invert.generators import LocalGenerator, LocalSpec
from meow_ray.stages.invert.stage import generator_spec
from meow_ray.stages.invert.steps import InvertSteps
from meow_ray.stages.memo.steps import MemoSteps
from meow_ray.stages.paraphrases.steps import SPARE, ParaphraseSteps
from meow_ray.stages.train import fila, objectives
from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.twins.making import wanted_per_half

ROW_BYTES = 200
"""Bytes of a row in any table, apart from its text."""


# --- work ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the sampled facts, from which those of the tables and the training data follow."""

    pairs: list[int]
    """Tokens of each question with its answer."""
    forget_pair: float
    """The mean of the same over the facts to forget."""
    forget_answer: float
    """The mean number of tokens of an answer to forget."""
    row_bytes: float
    """The mean size of a table's row."""
    model_bytes: float
    """An exported model with its checkpoint."""


def count_work(
    config: Config,
    objective: ObjectiveSpec,
    sample: FactSample,
    num_layers: int,
    on_gpu: bool,
) -> list[StageWork]:
    """Returns the work of each stage that uses a model, in the order of the stages.

    Args:
        config: the configuration.
        objective: the objective of training.
        sample: the sampled facts.
        num_layers: blocks of the target, which an audit reads one by one.
        on_gpu: whether engines have GPUs, which decides the budgets of an audit.
    """
    sizes = _sizes(config, sample)
    num_forget = sample.counts["forget"]
    inverted_per_fact = config.select.top_k if "inverted" in objective.roles else 1
    num_items = num_forget * inverted_per_fact
    num_wordings = 1 + objective.paraphrases
    works = list[StageWork]()
    if config.memorize is not None:
        works.append(_memorize_work(config.memorize, sample, sizes))
    works.append(_invert_work(config, sample, sizes))
    if objective.paraphrases:
        works.append(_paraphrases_work(config, objective.paraphrases, sample, sizes))
    if objective.retains_neighbours:
        works.append(_neighbours_work(config, sample, sizes))
    works.append(_memo_work(config, sample, sizes))
    if objective.guessed_floors:
        # true answers, inverted facts and the twins that set the floors
        calibrating = wanted_per_half(num_forget, config.twins)
        num_guessed = num_forget * (1 + inverted_per_fact + calibrating)
        works.append(
            StageWork(
                stage="guesses",
                by="generator",
                read=num_guessed * sizes.forget_pair,
                storage=num_guessed * sizes.row_bytes,
            )
        )
    if objective.reference == "log_probs":
        works.append(
            StageWork(
                stage="reference",
                by="target",
                read=num_wordings * num_items * sizes.forget_pair,
                storage=num_wordings * num_items * sizes.row_bytes,
            )
        )
    if fila.is_configured(config.train):
        num_pairs = num_forget + _num_retained(config, objective, sample)
        works.append(
            StageWork(
                stage="fila",
                by="training",
                trained=num_pairs * sizes.forget_pair,
                storage=4.0 * sample.trainable,
            )
        )
    num_sequences = max(1, len(objective.roles))
    works.append(
        StageWork(
            stage="train",
            by="training",
            trained=_trained_items(config, objective, num_items)
            * sizes.forget_pair
            * num_sequences,
            storage=sizes.model_bytes,
        )
    )
    works.append(_evaluate_work(config, sample, sizes))
    if config.pipeline.audit:
        asked = audit.asked_of(config, sample, objective.paraphrases, on_gpu)
        works += audit.count_audit(asked, num_layers, sizes.forget_answer, sizes.row_bytes)
    return works


def _trained_items(config: Config, objective: ObjectiveSpec, num_items: int) -> int:
    """Returns how many times an item is trained on; the largest number if training ends itself."""
    if objective.until == "never_seen":
        return objective.max_steps * min(config.train.batch_size, num_items)
    return num_items * config.train.epochs


def _sizes(config: Config, sample: FactSample) -> _Sizes:
    prompter = Prompter.of(sample.tokenizer, config.target)
    facts = sample.facts.to_pylist()
    pairs = [len(prompter.encode_pair(fact["question"], fact["answer"])[0]) for fact in facts]
    forget_pairs = [
        length for length, fact in zip(pairs, facts, strict=True) if fact["split"] == "forget"
    ]
    answers = [
        len(prompter.encode_answer(text)) for text in sample.split("forget")["answer"].to_pylist()
    ]
    characters = sum(len(fact["question"]) + len(fact["answer"]) for fact in facts)
    return _Sizes(
        pairs=pairs,
        forget_pair=sum(forget_pairs) / len(forget_pairs),
        forget_answer=sum(answers) / len(answers),
        row_bytes=ROW_BYTES + characters / len(facts),
        # weights, momentum and variance in float32
        model_bytes=sample.model_bytes + 12.0 * sample.trainable,
    )


def _tally(sample: FactSample, reply_tokens: float | None = None) -> Tally:
    return Tally(sample.tokenizer, max_model_len=1 << 30, reply_tokens=reply_tokens)


def _memorize_work(spec: Memorize, sample: FactSample, sizes: _Sizes) -> StageWork:
    num_facts = sum(sample.counts.values())
    return StageWork(
        stage="memorize",
        by="memorizing",
        trained=num_facts * spec.epochs * sum(sizes.pairs) / len(sizes.pairs),
        storage=sizes.model_bytes,
    )


def _invert_work(config: Config, sample: FactSample, sizes: _Sizes) -> StageWork:
    """Counts one attempt per fact, without a judge; replies are as long as true answers."""
    spec = config.invert.model_copy(
        update={"max_attempts": 1, "fallback": False, "judge": "none", "engine": "vllm"}
    )
    style = "prefill" if spec.style == "prefill" else "chat"
    tally = _tally(sample, sizes.forget_answer)
    if style == "chat":  # one reply contains all candidates
        num_candidates = spec.num_candidates + spec.spare
        tally = replace(tally, reply_tokens=sizes.forget_answer * num_candidates)
    forget = sample.split("forget").select(["fact_id", "question", "answer"])
    InvertSteps(spec, style)(LocalGenerator(tally), forget)
    work = StageWork(
        stage="invert",
        by="generator",
        storage=sample.counts["forget"] * spec.num_candidates * sizes.row_bytes,
    )
    work.add(tally, sample.scale("forget"))
    return work


def _paraphrases_work(config: Config, number: int, sample: FactSample, sizes: _Sizes) -> StageWork:
    """Counts one message per fact; a rewording is assumed to be as long as a pair.

    Without the generator among its sources, the stage has no work.
    """
    num_asked = number + SPARE
    tally = _tally(sample, sizes.forget_pair * num_asked)
    spec = config.paraphrases.model_copy(update={"max_attempts": 1})
    forget = sample.split("forget").select(["fact_id", "question", "answer"])
    ParaphraseSteps(spec, number)(LocalGenerator(tally), forget)
    work = StageWork(
        stage="paraphrases",
        by="generator",
        storage=sample.counts["forget"] * number * sizes.row_bytes,
    )
    work.add(tally, sample.scale("forget"))
    return work


def _num_retained(config: Config, objective: ObjectiveSpec, sample: FactSample) -> int:
    """Returns the number of pairs of the retain set."""
    made = 0
    if objective.retains_neighbours:
        num_forget = sample.counts["forget"]
        made = neighbours.num_neighbours(config, num_forget) + config.neighbours.generic
    given = sample.counts["retain"] if objective.retain in ("given", "both") else 0
    return made + given


def _neighbours_work(config: Config, sample: FactSample, sizes: _Sizes) -> StageWork:
    """Counts answers as long as allowed; no question is assumed to be rejected."""
    of_facts, of_turn = _tally(sample), _tally(sample)
    neighbours.count_neighbours(config, sample, of_facts)
    neighbours.count_generic_turn(config, sample, of_turn)
    num_facts = sample.counts["forget"]
    num_rows = num_facts * neighbours.num_neighbours(config, num_facts) + config.neighbours.generic
    work = StageWork(stage="neighbours", by="target", storage=num_rows * sizes.row_bytes)
    work.add(of_facts, sample.scale("forget"))
    work.add(of_turn, neighbours.num_generic(config))
    return work


def _memo_work(config: Config, sample: FactSample, sizes: _Sizes) -> StageWork:
    """Counts the windows of true answers; candidates are assumed to have as many."""
    target = config.target
    steps = MemoSteps(config.memo, target.template, target.system, target.template_variables)
    forget = sample.split("forget")
    texts = pa.array([[text] for text in forget["answer"].to_pylist()], pa.list_(pa.string()))
    tally = _tally(sample)
    steps.generate(tally, steps.prepare(tally.tokenizer, forget.append_column("texts", texts)))
    answers_per_fact = config.invert.num_candidates + 1
    work = StageWork(
        stage="memo",
        by="target",
        storage=sample.counts["forget"] * answers_per_fact * sizes.row_bytes,
    )
    work.add(tally, sample.scale("forget") * answers_per_fact)
    return work


def _evaluate_work(config: Config, sample: FactSample, sizes: _Sizes) -> StageWork:
    """Counts what the target, the tuned model and the retain model are asked in each suite."""
    spec = config.evaluate
    num_models = 2 + bool(spec.retain_model)
    # the models before and after are loaded
    work = StageWork(stage="evaluate", by="target", starts=2)
    other_sets = {
        name: table for name, table in sample.sets.items() if name not in ("forget", "retain")
    }
    rows = suites.rows_to_ask(
        Query("SELECT * FROM facts", {"facts": sample.facts}), other_sets, (), spec
    )
    target = config.target
    steps = EvaluateSteps(
        spec, config.memo, target.template, target.system, target.template_variables
    )
    for suite in rows["suite"].unique().to_pylist():
        suite_rows = rows.filter(pc.equal(rows["suite"], suite))
        scale = 1.0
        if suite.startswith("forget"):
            scale = sample.scale("forget")
        elif suite == "retain":
            num_retain = sample.counts["retain"]
            scale = min(num_retain, spec.sample or num_retain) / suite_rows.num_rows
        tally = _tally(sample, sizes.forget_answer)
        steps.generate(tally, suite_rows)
        work.add(tally, scale * num_models)
        work.storage += scale * num_models * suite_rows.num_rows * sizes.row_bytes
    return work


# --- the plan -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunPlan:
    """The work of a whole run, and the time it takes if rates are known."""

    facts: Mapping[str, int]
    """The number of facts by split."""
    works: Sequence[StageWork]
    rates: Rates | None
    estimates: Sequence[Estimate]
    """The times of `works`, in the same order; empty without rates."""

    def as_row(self) -> dict[str, Any]:
        """Returns the plan as JSON values."""
        stages = []
        for work, estimate in zip_longest(self.works, self.estimates):
            row = asdict(work)
            if estimate is not None:
                row |= {name: v for name, v in asdict(estimate).items() if name != "work"}
            stages.append(row)
        return {
            "facts": dict(self.facts),
            "rates": self.rates.model_dump() if self.rates else None,
            "stages": stages,
        }


def plan_run(
    config: Config, num_forget: int | None, rates_file: str | None, gpus: int, measure: bool
) -> RunPlan:
    """Estimates the work of a run, and its time if rates are given or measured.

    Args:
        config: the configuration.
        num_forget: the number of facts to forget; None uses the number in the file.
        rates_file: URI of a file with rates.
        gpus: GPUs of the cluster; 0 plans for CPU, with the configured actors and workers.
        measure: whether rates are measured on this cluster.

    Raises:
        MeowError: the model, the facts or the rates cannot be read, or the generator cannot be
            measured.
    """
    pipeline = Pipeline(config)
    target = pipeline.artifact("target") or pipeline.artifact("base")
    assert target is not None, "an input from outside always exists"
    _, architecture = target_shapes(config)
    objective = objectives.configured(config.train)
    trained = trained_shapes(architecture, objective)
    full, lora = training_methods(trained, config, objective)
    method = lora if config.train.lora else full
    sample = sample_facts(config, model_ref(target), method, num_forget)
    works = count_work(config, objective, sample, architecture.layers, on_gpu=gpus > 0)
    rates = read_rates(storage.absolute(rates_file)) if rates_file else None
    if measure:
        rates = _measured_rates(config, pipeline, target, sample)
    estimates = list[Estimate]()
    if rates is not None:
        units = stage_units(config, [work.stage for work in works], gpus)
        estimates = estimate_times(works, rates, units)
    return RunPlan(sample.counts, works, rates, estimates)


def _measured_rates(
    config: Config, pipeline: Pipeline, target: Artifact, sample: FactSample
) -> Rates:
    generator = pipeline.artifact("generator")
    assert generator is not None, "an input from outside always exists"
    spec = generator_spec(generator, config, engine_spec)
    if not isinstance(spec, LocalSpec):
        raise MeowError(
            "--probe: the model of `invert` is behind an endpoint (engine openai), which cannot be "
            "measured. Give rates with --rates FILE."
        )
    target_engine = engine_spec(model_ref(target), config.target, config.resources.memo)
    return probe.measure_rates(config, spec.engine, target_engine, sample)
