"""The stage `ingest`: reads the facts to forget and to retain, checks them, writes `facts`."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config, Source
from meow_ray.core import storage
from meow_ray.core.manifest import REJECTS_FILE, Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Known, Stage
from meow_ray.errors import MeowError
from meow_ray.models import checks, refs
from meow_ray.models.control_tokens import control_tokens
from meow_ray.stages.ingest.facts import build_facts, fact_id, read_sources, rejects_text
from meow_ray.stages.inputs import GENERATOR, TARGET, TEMPLATE, data_sources, target_prompter
from meow_ray.stages.model_checks import (
    NAMED,
    check_generator,
    check_target,
    check_trainable,
    context_limit,
    generator_ahead,
    long_pairs,
    target_ahead,
    training_limit,
)

PROMPT_RESERVE = 128
"""Tokens of the generator's context that are reserved for the prompt around a fact."""
TRAIN_KEY = "train.max_length"
"""The longest pair that `train` takes; longer facts are rejected here, before others are used."""
_NO_GENERATOR = Artifact("generator", "", "none")


def _ingest(context: Context) -> dict[str, Any]:
    config = context.config
    sources = context.inputs["data"].value
    table, rejects, advice = _facts(config, context.inputs)
    context.write(rejects, REJECTS_FILE)
    if rejects.num_rows and config.ingest.on_reject == "fail":
        raise MeowError(_rejects_text(rejects, advice, context.root))
    _check_any_left(table, rejects, sources)
    context.write(table)
    splits = Counter(table["split"].to_pylist())
    return {"forget": splits["forget"], "retain": splits["retain"], "rejected": rejects.num_rows}


def _foresee(config: Config, known: Known) -> pa.Table | None:
    """Returns the facts that the stage will write; None if the target is not known."""
    target = target_ahead(config, known)
    if target is None or "data" not in known or checks.model_faults(*target):
        return None
    table, rejects, advice = _facts(config, {"generator": _NO_GENERATOR, **known})
    if rejects.num_rows and config.ingest.on_reject == "fail":
        raise MeowError(_rejects_text(rejects, advice, storage.absolute(config.storage.root)))
    _check_any_left(table, rejects, known["data"].value)
    return table


def _check_any_left(table: pa.Table, rejects: pa.Table, sources: Mapping[str, Source]) -> None:
    if not pc.any(pc.equal(table["split"], "forget")).as_py():
        raise MeowError(
            f"{storage.display(sources['forget'].path)}: no fact is left to forget (rejected rows: "
            f"{rejects.num_rows}). Correct the rows, or name another file in `ingest.forget`."
        )


def _facts(config: Config, inputs: Known) -> tuple[pa.Table, pa.Table, str]:
    """Reads and checks the facts; returns them, the rejected rows, and what cures long ones."""
    sources = inputs["data"].value
    forget = read_sources([sources["forget"]], config)
    retain = read_sources([sources["retain"]], config) if sources["retain"] else []
    valid, _ = build_facts(forget, retain, lambda question, answer: None)
    reasons = _control_token_reasons(config, inputs, valid)
    readable = pc.invert(pc.is_in(valid["fact_id"], value_set=pa.array([*reasons], pa.string())))
    too_long, advice = _too_long(config, inputs, valid.filter(readable))
    reasons |= too_long
    table, rejects = build_facts(
        forget, retain, lambda question, answer: reasons.get(fact_id(question, answer))
    )
    return table, rejects, advice


def _rejects_text(rejects: pa.Table, advice: str, root: str) -> str:
    """Returns a message that names rejected rows; if they are many, it names a file with all."""
    text = (
        f"{rejects_text(rejects)}\n"
        f"{advice or 'Correct these rows.'} Or set ingest.on_reject=skip to continue without them."
    )
    if rejects.num_rows <= NAMED:
        return text
    uri = storage.join(root, "work", REJECTS_FILE)
    storage.write_table(rejects, uri)
    return f"{text} The full list is in {storage.display(uri)}."


# --- texts that models cannot read ----------------------------------------------------------------


def _control_token_reasons(config: Config, inputs: Known, facts: pa.Table) -> dict[str, str]:
    """Returns why a tokenizer cannot read facts as text, by their ids."""
    target = target_ahead(config, inputs)
    models = [target[0] if target else None, generator_ahead(inputs)]
    reasons: dict[str, str] = {}
    for tokens in [control_tokens(refs.load_tokenizer(ref)) for ref in models if ref is not None]:
        for fact in facts.to_pylist():
            fault = tokens.fault(f"{fact['question']} {fact['answer']}")
            if fault:
                reasons[fact["fact_id"]] = fault
    return reasons


def _too_long(config: Config, inputs: Known, facts: pa.Table) -> tuple[dict[str, str], str]:
    """Returns why facts are too long, by their ids, and the setting that would admit them."""
    target = target_ahead(config, inputs)
    assert target is not None
    ref, _ = target
    prompter = target_prompter(ref, config.target)
    limits = [
        context_limit(ref, config.target),
        training_limit(ref, config.train, config.target, TRAIN_KEY),
    ]
    questions, answers = facts["question"].to_pylist(), facts["answer"].to_pylist()
    tightest = min(limits, key=lambda limit: limit.tokens)
    too_long = long_pairs(prompter, questions, answers, tightest)
    reasons = _generator_reasons(config, inputs, facts)
    for index, length in too_long.items():
        reasons[facts["fact_id"][index].as_py()] = tightest.fault(length)
    return reasons, tightest.advice(max(too_long.values())) if too_long else ""


def _generator_reasons(config: Config, inputs: Known, facts: pa.Table) -> dict[str, str]:
    """Returns why facts are too long for a generator that runs here, by their ids."""
    generator = generator_ahead(inputs)
    if generator is None:
        return {}
    length = refs.context_length(generator, config.invert.max_model_len)
    most = length - min(PROMPT_RESERVE, length // 4)
    texts = [f"{row['question']} {row['answer']}" for row in facts.to_pylist()]
    encoded = refs.load_tokenizer(generator)(texts)["input_ids"] if texts else []
    return {
        key: f"too long: {len(ids)} tokens, but the generator model reads at most {most} next to "
        "its prompt"
        for key, ids in zip(facts["fact_id"].to_pylist(), encoded, strict=True)
        if len(ids) > most
    }


# --- the stage ----------------------------------------------------------------------------------


def _data(config: Config, verify: bool) -> Artifact:
    """Returns the files of the facts to forget and to retain, as one input."""
    spec = config.ingest
    if spec.forget is None:
        raise MeowError("`ingest.forget` is not set. Name the file of the facts to forget.")
    return data_sources("data", {"forget": spec.forget, "retain": spec.retain}, verify)


INGEST = Stage(
    name="ingest",
    artifact="facts",
    version=2,
    sections=(
        "ingest",
        *TEMPLATE,
        "target.max_model_len",
        "target.trust_remote_code",
        "invert.max_model_len",
        TRAIN_KEY,
    ),
    inputs=(OutsideInput("data", _data), TARGET, GENERATOR),
    run=_ingest,
    schema=SCHEMAS["facts"],
    key=KEYS["facts"],
    adopt=adopt_table,
    checks=(check_target, check_trainable, check_generator),
    foresee=_foresee,
)

INGEST_ALONE = replace(INGEST, checks=(check_target, check_generator))
"""Takes the facts for an evaluation of the target, which need not be trainable."""
