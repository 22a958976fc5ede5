"""What the stages that train would find wrong only at their start, found before the run."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config, FineTuning, TrainResources
from meow_ray.core import storage
from meow_ray.core.schema import TRUE_ANSWER
from meow_ray.core.stage import FORESEEN, Known
from meow_ray.errors import MeowError
from meow_ray.models import checks, refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest.facts import read_sources, valid_facts
from meow_ray.stages.inputs import model_ref, target_prompter
from meow_ray.stages.invert.own_candidates import places_of
from meow_ray.stages.memo.forced import has_window
from meow_ray.stages.model_checks import (
    NAMED,
    LongText,
    check_target,
    counted,
    long_pairs,
    long_texts,
    prompt_faults,
    target_ahead,
    training_limit,
)
from meow_ray.stages.train import assistant, forward, objectives, structure, zero
from meow_ray.stages.train.adapter_checks import fila_faults, lora_faults, skeleton
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.objective_spec import ObjectiveSpec
from meow_ray.stages.train.pairs import NO_RETAIN_SET
from meow_ray.stages.train.tracker_checks import tracker_faults

PAIRS_TO_PACK = (
    Pair([1, 2, 3, 4, 5, 6, 7, 8], [-100, -100, -100, -100, 5, 6, 7, 8]),
    Pair([11, 12, 13, 14, 15, 16], [-100, -100, -100, 14, 15, 16]),
)
"""Two pairs, with which a small copy of a model shows whether it keeps packed pairs apart."""


# --- the model ------------------------------------------------------------------------------------


def _check_trained_model(config: Config, known: Known) -> Iterator[str]:
    """Finds why the target cannot be trained with the configured settings."""
    target = target_ahead(config, known)
    if target is not None and not checks.model_faults(*target):
        objective = objectives.configured(config.train)
        yield from _training_faults(*target, "train", config.train, config.resources.train)
        yield from _objective_faults(*target, objective)
        if objective.masks and config.resources.train.zero_stage == 3:
            yield (
                f"`train.objective`: {config.train.objective} masks whole matrices, of which ZeRO "
                "3 gives each worker a part. Set resources.train.zero_stage to 2."
            )
        if objective.weight_distance and config.resources.train.zero_stage == 3:
            yield (
                "`train.weight_distance` needs whole matrices, of which ZeRO 3 gives each worker a "
                "part. Set resources.train.zero_stage to 2, or train.weight_distance to 0."
            )


def _check_memorizing_model(config: Config, known: Known) -> Iterator[str]:
    """Finds the same of the base model that memorises."""
    if "base" not in known:
        return
    assert config.memorize is not None
    ref = model_ref(known["base"])
    faults = checks.model_faults(ref, "memorize.model")
    yield from faults or prompt_faults(ref, "memorize.model", config.target)
    if not faults:
        yield from _training_faults(
            ref, "memorize.model", "memorize", config.memorize, config.resources.memorize
        )


def _training_faults(
    ref: ModelRef, key: str, section: str, spec: FineTuning, resources: TrainResources
) -> Iterator[str]:
    fault = checks.training_fault(ref, key)
    if fault:
        yield fault
        return
    is_flash = zero.attention(spec, resources) == "flash_attention_2"
    if resources.packing and not is_flash and _leaks(ref):
        yield f"resources.{section}.packing: {forward.LEAKS}"
    if spec.lora is not None:
        yield from lora_faults(ref, section, spec.lora)
        yield from fila_faults(section, spec)


@cache
def _leaks(ref: ModelRef) -> bool:
    """Whether a small copy of a model mixes packed pairs; False if it cannot be told.

    Training checks the model itself again.
    """
    try:
        model = structure.small_copy(ref)
        keeps_logits = "logits_to_keep" in refs.forward_parameters(model)
        leak = forward.packing_leak(model, PAIRS_TO_PACK, 0, "cpu", keeps_logits)
    except Exception as error:  # noqa: BLE001 - some configurations cannot be made smaller
        return "position_ids" in str(error)  # the model does not take them
    return leak > forward.LEAK["float32"]


def _objective_faults(ref: ModelRef, key: str, objective: ObjectiveSpec) -> Iterator[str]:
    """Yields why an objective cannot update or read the blocks that it names."""
    layer = objective.layer
    try:
        check_layer(objective, ref)
    except MeowError as error:
        yield str(error)
        return
    if objective.trainable is None:
        return
    model = skeleton(ref)
    if model is None:
        return
    names = structure.trained_parameters(model, objective.trainable, layer)
    if names:
        yield from _mask_faults(model, names, objective)
        return
    blocks = structure.blocks_of(model)
    examples = [name for name, _ in model.named_parameters() if name.startswith(f"{blocks}.0.")]
    if objective.trainable == structure.MLP_MATRICES:
        fault = "no matrices of feed-forward networks are found in the model's blocks"
    elif objective.trainable == structure.MLP_OUTPUTS:
        fault = "no last matrices of feed-forward networks are found in the model's blocks"
    else:
        fault = f"no parameter of the model matches {objective.trainable}"
    yield (
        f"`train.trainable`: {fault}. Set a regular expression of whole names. The names of the "
        f"first block are {', '.join(examples) or 'unknown'}."
    )


def _mask_faults(model: Any, names: Collection[str], objective: ObjectiveSpec) -> Iterator[str]:
    """Yields why parameters of a model cannot have masks, if the objective has masks."""
    from meow_ray.stages.train import masks

    if objective.mask_ratio is None:
        return
    try:
        masks.check(model, names, objective.mask_ratio)
    except MeowError as error:
        yield str(error)


def _check_assistant(config: Config, known: Known) -> Iterator[str]:
    """Finds why no assistant can be made of the target, or why two models could not go on."""
    objective = objectives.configured(config.train)
    if not objective.assistant_blocks:
        return
    if config.pipeline.rounds > 1:
        yield (
            f"`pipeline.rounds` is {config.pipeline.rounds}, but a second round would train the "
            f"two models that {config.train.objective} exports. Set pipeline.rounds=1."
        )
    target = target_ahead(config, known)
    if target is None or checks.model_faults(*target):
        return
    fault = assistant.fault(target[0])
    if fault:
        yield (
            f"`train.objective`: no assistant can be made of the blocks of {target[0].uri}: "
            f"{fault}. Choose another objective than {config.train.objective}."
        )


def check_layer(objective: ObjectiveSpec, model: ModelRef) -> None:
    """Raises MeowError if an objective reads a block that the model does not have."""
    text_config = refs.load_model_config(model).get_text_config()
    num_layers = getattr(text_config, "num_hidden_layers", None)
    if objective.layer is None or num_layers is None or objective.layer < num_layers - 1:
        return
    raise MeowError(
        f"`train.settings.layer` is {objective.layer}; it must be below the last block of the "
        f"target, {num_layers - 1}."
    )


# --- the pairs ------------------------------------------------------------------------------------


def _check_retain_facts(config: Config, known: Known) -> Iterator[str]:
    """Finds that an objective reads facts to retain and there are none."""
    if "facts" not in known or not objectives.configured(config.train).retains_given:
        return
    if not pc.any(pc.equal(known["facts"].table["split"], "retain")).as_py():
        yield NO_RETAIN_SET


def _check_lengths(config: Config, known: Known) -> Iterator[str]:
    """Finds pairs that are longer than `train.max_length`.

    `ingest` has rejected such facts, so only candidates and the user's own facts are read here.
    """
    target = target_ahead(config, known)
    if target is None or checks.model_faults(*target):
        return
    limit = training_limit(target[0], config.train, config.target, "train.max_length")
    prompter = target_prompter(target[0], config.target)
    objective = objectives.configured(config.train)
    for name, table, places in _tables_to_train_on(known, objective):
        answers = "inverted_answer" if name == "candidates" else "answer"
        found = long_pairs(
            prompter, table["question"].to_pylist(), table[answers].to_pylist(), limit
        )
        if found:
            rows = table.take(pa.array(found, pa.int64())).to_pylist()
            place_of = places()
            texts = [
                LongText(
                    place_of.get((row["fact_id"], row[answers]), f"fact {row['fact_id']}"), tokens
                )
                for row, tokens in zip(rows, found.values(), strict=True)
            ]
            yield long_texts(f"`{name}`", texts, limit)


def _tables_to_train_on(
    known: Known, objective: ObjectiveSpec
) -> Iterator[tuple[str, pa.Table, Any]]:
    """Yields name and rows of tables with pairs to train on, and a function of their places."""
    roles = objective.roles
    if "inverted" in roles and "selected" in known:
        yield "selected", known["selected"].table, dict
    elif "inverted" in roles and "candidates" in known:
        candidates = known["candidates"]
        table = candidates.table
        answered = table.filter(pc.greater(table["candidate_id"], TRUE_ANSWER))
        yield "candidates", answered, lambda: places_of(candidates)
    facts = known.get("facts")
    if facts is not None and facts.manifest is None and facts.digest != FORESEEN:
        is_read = {"forget": "forget" in roles, "retain": objective.retains_given}
        splits = [split for split, reads in is_read.items() if reads]
        table = facts.table
        yield "facts", table.filter(pc.is_in(table["split"], pa.array(splits, pa.string()))), dict
    if objective.retains_neighbours and "neighbours" in known:
        yield "neighbours", known["neighbours"].table, dict


def _check_memorize_lengths(config: Config, known: Known) -> Iterator[str]:
    """Finds rows of `memorize.data` that cannot be read or are too long."""
    if "memorize_data" not in known or "base" not in known:
        return
    assert config.memorize is not None
    ref = model_ref(known["base"])
    rows = read_sources(known["memorize_data"].value, config)
    facts = valid_facts(rows, where="memorize.data")
    if checks.model_faults(ref, "memorize.model"):
        return
    limit = training_limit(ref, config.memorize, config.target, "memorize.max_length")
    prompter = target_prompter(ref, config.target)
    too_long = long_pairs(
        prompter, facts["question"].to_pylist(), facts["answer"].to_pylist(), limit
    )
    if too_long:
        found = [
            LongText(f"{rows[index].file}, line {rows[index].line}", tokens)
            for index, tokens in too_long.items()
        ]
        yield long_texts("`memorize.data`", found, limit)


# --- what can be selected -------------------------------------------------------------------------


def _check_windows(config: Config, known: Known) -> Iterator[str]:
    """Finds facts for which no inverted fact could be selected, because none gets a MEMO score."""
    is_scored = config.select.order != "random"
    reads_selected = "inverted" in objectives.configured(config.train).reads
    target = target_ahead(config, known)
    if not (is_scored and reads_selected) or {"memo", "selected"} & set(known):
        return
    if target is None or checks.model_faults(*target):
        return
    prompter = target_prompter(target[0], config.target)
    if config.memo.template == "raw":
        prompter = replace(prompter, template="raw")
    places: Mapping[tuple[str, str], str] = {}
    if "candidates" in known:
        candidates = known["candidates"].table
        rows = candidates.filter(pc.greater(candidates["candidate_id"], TRUE_ANSWER)).to_pylist()
        texts = [(row["fact_id"], row["question"], row["inverted_answer"]) for row in rows]
    elif "facts" in known:
        facts = known["facts"].table
        rows = facts.filter(pc.equal(facts["split"], "forget")).to_pylist()
        texts = [(row["fact_id"], row["question"], row["answer"]) for row in rows]
    else:
        return
    scored = {
        key for key, question, text in texts if has_window(prompter, question, text, config.memo)
    }
    short = {key: text for key, _, text in texts if key not in scored}
    if not short or (scored and config.ingest.on_reject == "skip"):
        return
    if "candidates" in known:
        places = places_of(known["candidates"])
    yield _too_short(config, short, places)


def _too_short(
    config: Config, short: Mapping[str, str], places: Mapping[tuple[str, str], str]
) -> str:
    """Returns the paragraph about facts without any window, by their ids and a short answer."""
    named = [places.get(pair, f"fact {pair[0]}") for pair in short.items()]
    more = [f"{len(named) - NAMED} more"] if len(named) > NAMED else []
    cures = ["select.order=random, which needs no score"]
    if config.memo.mode == "suffix":
        cures.insert(0, "memo.mode=prefix, which cuts the question")
    if config.memo.window == "token" and any(len(text) > 1 for text in short.values()):
        cures.insert(0, "memo.window=character, which cuts within tokens")
    what = "answers" if config.memo.mode == "suffix" else "question"
    return (
        f"`memo`: {counted(len(short), 'fact')} without any score, and none of the inverted facts "
        f"could be selected, because the {what} cannot be cut (memo.window={config.memo.window}, "
        f"memo.mode={config.memo.mode}): {', '.join([*named[:NAMED], *more])}. "
        f"Set {', or '.join(cures)}; or remove these rows."
    )


# --- trackers -------------------------------------------------------------------------------------


def _check_trackers(config: Config, known: Known) -> Iterator[str]:
    """Finds trackers that cannot be used."""
    yield from tracker_faults(config.tracking, storage.absolute(config.storage.root))


def check_generator(config: Config, known: Known) -> Iterator[str]:
    """Finds that an endpoint writes the inverted facts, since it gives no probabilities."""
    if config.invert.engine == "openai":
        yield (
            "`train.guessed_floors`: the generator is an endpoint, which does not return the "
            "probabilities of given answers. Set `invert.engine` to vllm or transformers and "
            "`invert.model` to a model that was never taught the facts, or remove the setting."
        )
    elif config.invert.model is None:
        yield (
            "`train.guessed_floors`: there is no generator. Set `invert.model` to a model that was "
            "never taught the facts, or remove the setting."
        )


TRAIN_CHECKS = (
    check_target,
    _check_trained_model,
    _check_assistant,
    _check_retain_facts,
    _check_lengths,
    _check_windows,
    _check_trackers,
)
MEMORIZE_CHECKS = (_check_memorizing_model, _check_memorize_lengths, _check_trackers)
