"""What `evaluate` would find wrong only after models have answered, found before the run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from meow_ray.config import Config, Source
from meow_ray.core import storage
from meow_ray.core.stage import FORESEEN, Known
from meow_ray.core.tables import Query
from meow_ray.errors import MeowError
from meow_ray.models import checks, refs, uld
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.evaluate import suites
from meow_ray.stages.evaluate.lm_eval import REMOVE_TASKS
from meow_ray.stages.evaluate.sets import (
    HOLDOUT,
    as_set,
    check_retain_results,
    check_sets,
    read_passages,
    read_set,
)
from meow_ray.stages.evaluate.task_checks import task_faults
from meow_ray.stages.evaluate.tofu import ModelLog
from meow_ray.stages.ingest.facts import fact_id, read_sources
from meow_ray.stages.inputs import model_ref, target_prompter
from meow_ray.stages.model_checks import (
    Limit,
    LongText,
    check_target,
    check_target_engine,
    context_limit,
    long_pairs,
    long_texts,
    target_ahead,
)
from meow_ray.stages.train import objectives

PASSAGE = "{{ question }}"
"""The template of a passage's first half: the model reads it as it is."""


def _check_sets(config: Config, known: Known) -> Iterator[str]:
    """Finds sets that cannot be read, that share facts, or that have rows that are too long."""
    if "sets" not in known:
        return
    sets: dict[str, pa.Table] = {}
    sources: Mapping[str, Source] = known["sets"].value
    for name, source in sources.items():
        try:
            sets[name] = read_set(name, source, config)
        except MeowError as error:
            yield str(error)
    if len(sets) == len(sources):
        yield from _mismatches(config, sets, known)
    target = target_ahead(config, known)
    if target is None or checks.model_faults(*target):
        return
    prompter = target_prompter(target[0], config.target)
    limit = context_limit(target[0], config.target)
    facts = known.get("facts")
    if facts is not None and facts.manifest is None and facts.digest != FORESEEN:
        too_long = _long_facts(as_set(facts.table.drop_columns(["split"])), prompter, limit)
        if too_long:
            found = [LongText(f"fact {key}", tokens) for key, tokens in too_long.items()]
            yield long_texts("`facts`", found, limit)
    for name, table in sets.items():
        too_long = _long_facts(table, prompter, limit)
        if too_long:
            places = _places(sources[name], config)
            found = [LongText(places[key], tokens) for key, tokens in too_long.items()]
            yield long_texts(f"evaluate.sets.{name}", found, limit)


def _mismatches(config: Config, sets: Mapping[str, pa.Table], known: Known) -> Iterator[str]:
    retain_model = known.get("retain_model")
    try:
        if retain_model is not None and isinstance(retain_model.value, ModelLog):
            check_retain_results(
                sets.get("forget"),
                sets.get(HOLDOUT),
                retain_model.value,
                config.evaluate,
                storage.display(retain_model.uri),
            )
        if "facts" in known:
            check_sets(Query("SELECT * FROM facts", {"facts": known["facts"].source}), sets)
    except MeowError as error:
        yield str(error)


def _long_facts(table: pa.Table, prompter: Prompter, limit: Limit) -> dict[str, int]:
    """Returns the facts of a set that are too long with one of their answers: id and tokens."""
    keys, questions, answers = [], [], []
    for fact in table.to_pylist():
        texts = [fact["answer"], fact["paraphrased_answer"], *(fact["perturbed_answer"] or ())]
        asked = [(fact["question"], text) for text in texts if text is not None]
        if fact["paraphrased_question"]:
            asked.append((fact["paraphrased_question"], ""))
        for question, text in asked:
            keys.append(fact["fact_id"])
            questions.append(question)
            answers.append(text)
    longest: dict[str, int] = {}
    for index, length in long_pairs(prompter, questions, answers, limit).items():
        longest[keys[index]] = max(length, longest.get(keys[index], 0))
    return longest


def _places(source: Source, config: Config) -> dict[str, str]:
    """Returns file and line of each fact of a set."""
    return {
        fact_id(row.question.strip(), row.answer.strip()): f"{row.file}, line {row.line}"
        for row in read_sources([source], config)
    }


def _check_passages(config: Config, known: Known) -> Iterator[str]:
    """Finds passages that cannot be read, or that are too long."""
    if "text" not in known:
        return
    passages = read_passages(known["text"], config.ingest.encoding)
    target = target_ahead(config, known)
    if not passages or target is None or checks.model_faults(*target):
        return
    limit = context_limit(target[0], config.target)
    prompter = Prompter(refs.load_tokenizer(target[0]), PASSAGE)
    halves = suites.halves(passages)
    with_end = replace(limit, tokens=limit.tokens + 1)  # a passage has no end token
    too_long = long_pairs(
        prompter, halves["question"].to_pylist(), halves["answer"].to_pylist(), with_end
    )
    if too_long:
        name = storage.display(known["text"].uri)
        found = [LongText(f"{name}, passage {i + 1}", n - 1) for i, n in too_long.items()]
        yield long_texts("`evaluate.text`", found, limit)


def _check_retain_model(config: Config, known: Known) -> Iterator[str]:
    """Finds why the retain model cannot be asked."""
    artifact = known.get("retain_model")
    if artifact is None or not isinstance(artifact.value, ModelRef):
        return
    key = "evaluate.retain_model"
    faults: Sequence[str | None] = checks.model_faults(artifact.value, key)
    if not faults and config.target.engine == "transformers":
        faults = [checks.transformers_fault(artifact.value, key, "target.engine")]
    yield from (fault for fault in faults if fault)


def _check_tasks(config: Config, known: Known) -> Iterator[str]:
    """Finds tasks that the harness does not know, or whose data cannot be reached."""
    folder = known["task_folder"].uri if "task_folder" in known else ""
    yield from task_faults(config.evaluate.lm_eval, storage.display(folder) or None)


def _check_harness(config: Config, known: Known) -> Iterator[str]:
    """Finds tasks of the harness for a ULD model, which it cannot load."""
    if not config.evaluate.lm_eval.tasks:
        return
    for name in ("target", "model", "retain_model"):
        artifact = known.get(name)
        if artifact is None or isinstance(artifact.value, ModelLog) or not artifact.uri:
            continue
        ref = model_ref(artifact)
        if uld.is_uld(ref):
            fault = uld.two_models(ref, "lm-evaluation-harness loads one model", REMOVE_TASKS)
            yield f"`evaluate.lm_eval.tasks`: {fault}"


def check_harness_after_training(config: Config, known: Known) -> Iterator[str]:
    """Finds tasks of the harness for a model that training will export as a ULD model."""
    if "model" in known or not config.evaluate.lm_eval.tasks:
        return
    if objectives.configured(config.train).assistant_blocks:
        yield (
            f"`evaluate.lm_eval.tasks`: train.objective={config.train.objective} exports two "
            f"models, but lm-evaluation-harness loads one. {REMOVE_TASKS}"
        )


def check_twins(config: Config, known: Known) -> Iterator[str]:
    """Refuses a table of twins without those that the forget set is compared with.

    Raises:
        MeowError: see `suites.stop_twins`.
    """
    twins = known.get("twins")
    if twins is not None and twins.digest != FORESEEN:
        suites.stop_twins(twins.source)
    yield from ()


CHECKS = (
    check_target,
    check_target_engine,
    _check_retain_model,
    _check_sets,
    _check_passages,
    _check_tasks,
    _check_harness,
    check_twins,
)
