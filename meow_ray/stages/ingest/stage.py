"""The stage `ingest`: reads the facts to forget and to retain, checks them, writes `facts`."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import REJECTS_FILE, Artifact
from meow_ray.core.outside import OutsideInput, adopt_table
from meow_ray.core.schema import KEYS, SCHEMAS
from meow_ray.core.stage import Context, Stage
from meow_ray.errors import MeowError
from meow_ray.models import refs
from meow_ray.models.control_tokens import control_tokens
from meow_ray.models.ends import check_end
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest.facts import build_facts, read_sources, rejects_text
from meow_ray.stages.inputs import GENERATOR, TARGET, data_sources, model_ref

PROMPT_RESERVE = 128
"""Tokens of a model's context that are reserved for the prompt template around a fact."""


def _ingest(context: Context) -> dict[str, Any]:
    config = context.config
    sources = context.inputs["data"].value
    limits = _length_limits(context)

    def too_long(question: str, answer: str) -> str | None:
        for limit in limits:
            reason = limit.fault(question, answer)
            if reason:
                return reason
        return None

    forget = read_sources([sources["forget"]], config)
    retain = read_sources([sources["retain"]], config) if sources["retain"] else []
    table, rejects = build_facts(forget, retain, too_long)
    context.write(rejects, REJECTS_FILE)
    if rejects.num_rows and config.ingest.on_reject == "fail":
        raise _rejects_error(context, rejects)
    if not pc.any(pc.equal(table["split"], "forget")).as_py():
        raise MeowError(
            f"{storage.display(sources['forget'].path)}: no fact is left to forget (rejected rows: "
            f"{rejects.num_rows}). Correct the rows, or name another file in `ingest.forget`."
        )
    context.write(table)
    splits = Counter(table["split"].to_pylist())
    return {"forget": splits["forget"], "retain": splits["retain"], "rejected": rejects.num_rows}


def _rejects_error(context: Context, rejects: pa.Table) -> MeowError:
    """Writes all rejected rows to a file and returns the error that names it."""
    uri = storage.join(context.work, REJECTS_FILE)
    storage.write_table(rejects, uri)
    return MeowError(
        f"{rejects_text(rejects)}\n"
        "Correct these rows, or set ingest.on_reject=skip to continue without them. "
        f"The full list is in {storage.display(uri)}."
    )


# --- lengths ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _LengthLimit:
    """The number of tokens that a fact may have for one model."""

    model: str
    """`target` or `generator`."""
    tokenizer: Any
    max_tokens: int

    def fault(self, question: str, answer: str) -> str | None:
        """Returns why the model cannot read a fact, or None if it can."""
        text = f"{question} {answer}"
        fault = control_tokens(self.tokenizer).fault(text)
        if fault:
            return fault
        count = len(self.tokenizer(text)["input_ids"])
        if count <= self.max_tokens:
            return None
        return (
            f"too long: {count} tokens, but the {self.model} model reads at most "
            f"{self.max_tokens} next to its prompt"
        )


def _length_limits(context: Context) -> list[_LengthLimit]:
    """Returns the limits of the target and of a generator that runs here."""
    config = context.config
    limits = [_length_limit(context, "target", config.target.max_model_len)]
    check_end(limits[0].tokenizer, "target.model")
    if isinstance(context.inputs["generator"].value, ModelRef):
        limits.append(_length_limit(context, "generator", config.invert.max_model_len))
    return limits


def _length_limit(context: Context, model: str, max_model_len: int | None) -> _LengthLimit:
    ref = model_ref(context.inputs[model])
    length = refs.context_length(ref, max_model_len)
    reserve = min(PROMPT_RESERVE, length // 4)
    return _LengthLimit(
        model=model, tokenizer=refs.load_tokenizer(ref), max_tokens=length - reserve
    )


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
    sections=("ingest", "target.max_model_len", "invert.max_model_len"),
    inputs=(OutsideInput("data", _data), TARGET, GENERATOR),
    run=_ingest,
    schema=SCHEMAS["facts"],
    key=KEYS["facts"],
    adopt=adopt_table,
)
