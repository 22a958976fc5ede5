"""Lets a model write texts for attacks: prompts for other models, and translations."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from meow_ray.config import Config
from meow_ray.core import storage
from meow_ray.core.manifest import Artifact
from meow_ray.core.outside import OutsideInput
from meow_ray.core.schema import ROW
from meow_ray.engines import Sampling
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.audit.scoring import AuditContext
from meow_ray.stages.inputs import adopt_model
from meow_ray.stages.invert.endpoint import EndpointSpec
from meow_ray.stages.invert.generators import Ask, Generator, LocalSpec
from meow_ray.stages.invert.parsing import without_reasoning
from meow_ray.stages.invert.stage import generator_spec

VERSION = 1
"""Raised whenever the same messages get other texts from the same model."""
MAX_NEW_TOKENS = 128
"""The longest text, in tokens."""

_ROWS_SCHEMA = pa.schema([(ROW, pa.string()), ("text", pa.string())])
_TEXTS = pa.list_(pa.string())


# --- who writes -----------------------------------------------------------------------------------


def _attacker(config: Config, verify: bool) -> Artifact:
    """Returns the model `audit.attacker.model`, or an artifact without one."""
    model = config.audit.attacker.model
    if model is None:
        return Artifact("attacker", "", "none")
    ref = refs.pin(model, None, "audit.attacker.model", verify=verify)
    return Artifact("attacker", ref.uri, ref.digest, value=ref)


ATTACKER = OutsideInput("attacker", _attacker, adopt_model)
"""The model that writes prompts; without one, the original model does."""


@dataclass(frozen=True)
class Writer:
    """A model that writes texts."""

    loader: LocalSpec | EndpointSpec
    digest: str
    """Identifies the model by its content."""
    resources: str = "audit"
    """The section of the resources for its actors."""


def attacker(audit: AuditContext) -> Writer:
    """Returns the attacker: the model of the input `attacker`, else the original model."""
    given = audit.context.inputs.get(ATTACKER.name)
    if given is not None and isinstance(given.value, ModelRef):
        return _local(audit, given.value, {})
    return original_model(audit)


def translator(audit: AuditContext) -> Writer:
    """Returns the generator of inverted facts; without one, the original model."""
    context = audit.context
    generator = context.inputs.get("generator")
    if generator is None or generator.digest == "none":
        return original_model(audit)
    loader = generator_spec(generator, context.config, context.engine_spec)
    return Writer(loader, generator.digest, "invert")


def original_model(audit: AuditContext) -> Writer:
    """Returns the model before training."""
    variables = audit.context.config.target.template_variables
    return _local(audit, audit.models["before"], variables)


def _local(audit: AuditContext, ref: ModelRef, variables: Mapping[str, Any]) -> Writer:
    config = audit.context.config
    engine = audit.context.engine_spec(ref, config.target, config.resources.audit)
    return Writer(LocalSpec(engine, variables), ref.digest)


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WritingSteps:
    """Lets a model answer the messages of a batch."""

    num_texts: int
    """Texts per message: 1 is the greedy one, more are sampled at temperature 1."""
    seed: int

    def __call__(self, generator: Generator, batch: pa.Table) -> pa.Table:
        """Adds the column `texts`; null for a message that is too long."""
        rows = batch.to_pylist()
        asks = [Ask(row["text"], self._sampling(row[ROW])) for row in rows]
        replies = [
            None if found is None else [without_reasoning(reply.text) for reply in found]
            for found in generator.ask(asks)
        ]
        return batch.append_column("texts", pa.array(replies, _TEXTS))

    def _sampling(self, row_id: str) -> Sampling:
        greedy = Sampling(MAX_NEW_TOKENS)
        if self.num_texts == 1:
            return greedy
        seed = (int(row_id[:8], 16) + self.seed) % 2**31
        return replace(greedy, temperature=1.0, n=self.num_texts, seed=seed)


def write(
    audit: AuditContext, writer: Writer, messages: Mapping[str, str], num_texts: int = 1
) -> dict[str, list[str]]:
    """Returns the texts that a model writes in reply to messages; an engine runs until all are.

    Texts are kept in the storage, so that another run does not ask again.

    Args:
        audit: settings and storage.
        writer: the model.
        messages: the messages by a name, which has a part in the seed of each.
        num_texts: texts per message; see `WritingSteps`.

    Returns:
        The texts by the same names, without reasoning; none for a message that is too long.
    """
    from meow_ray.distributed import map_rows

    context, spec = audit.context, audit.spec
    names = {_row_id(name, text): name for name, text in messages.items()}
    rows = [{ROW: row_id, "text": messages[name]} for row_id, name in names.items()]
    rows.sort(key=lambda row: (-len(row["text"]), row[ROW]))
    key = {
        "version": VERSION,
        "writer": writer.digest,
        "rows": sorted(names),
        "num_texts": num_texts,
        "seed": spec.seed,
    }
    table = pa.Table.from_pylist(rows, schema=_ROWS_SCHEMA)
    work = map_rows.BatchWork(WritingSteps(num_texts, spec.seed))
    with context.shared_work(f"audit-writing-{storage.json_digest(key)[:32]}") as folder:
        written = map_rows.map_rows(
            table,
            ROW,
            writer.loader,
            work,
            folder,
            writer.resources,
            context.config.resources,
        )
    with written.batches() as reader:
        return {
            names[row[ROW]]: row["texts"] or [] for batch in reader for row in batch.to_pylist()
        }


def _row_id(name: str, text: str) -> str:
    return hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()[:32]
