"""From a stage's declared inputs to what its code works with."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from meow_ray import facts as facts_module
from meow_ray import storage
from meow_ray.config import Config, Invert, Source, Target
from meow_ray.engines import EngineSpec
from meow_ray.errors import MeowError
from meow_ray.models import ModelRef
from meow_ray.resources import EngineResources
from meow_ray.sets import SET
from meow_ray.stage import Artifact


def model_ref(artifact: Artifact) -> ModelRef:
    """Returns the model that an input is: one from outside, or the folder that a stage exported."""
    if isinstance(artifact.value, ModelRef):
        return artifact.value
    return ModelRef(artifact.uri, artifact.digest)


def engine_spec(ref: ModelRef, section: Target | Invert, resources: EngineResources) -> EngineSpec:
    """Says how a stage's actors load a model."""
    assert section.engine != "openai"
    return EngineSpec(
        model=replace(ref, trust_remote_code=section.trust_remote_code),
        engine=section.engine,
        dtype=section.dtype,
        max_model_len=section.max_model_len,
        tensor_parallel_size=resources.tensor_parallel_size,
        kv_cache_gib=resources.kv_cache_gib,
        gpu_memory_utilization=resources.gpu_memory_utilization,
    )


def read_sources(sources: Sequence[Source], config: Config) -> list[facts_module.Row]:
    """Reads sources with the column names of `ingest`."""
    spec = config.ingest
    return [row for source in sources for row in facts_module.read(source, spec.question_columns, spec.answer_columns)]


def read_sets(sources: Mapping[str, Source], config: Config) -> dict[str, pa.Table]:
    """Reads `evaluate.sets`, see `read_set`."""
    return {name: read_set(name, source, config) for name, source in sources.items()}


def read_set(name: str, source: Source, config: Config) -> pa.Table:
    """Reads a set of `evaluate.sets`: a table of `evaluation.SET`, with what TOFU's perturbed files have.

    Raises:
        MeowError: a row is refused, or a paraphrase or a wrong answer is no text.
    """
    rows = read_sources([source], config)
    table, rejects = facts_module.build(rows, [], lambda question, answer: None)
    if rejects.num_rows:
        raise MeowError(f"evaluate.sets.{name}: {rejects_text(rejects)}")
    more = [{column: _further(row, column) for column in SET.names[3:]} for row in rows]
    facts = [fact | extra for fact, extra in zip(table.to_pylist(), more, strict=True)]
    for column in SET.names[4:]:
        count = sum(fact[column] is not None for fact in facts)
        if 0 < count < len(facts):
            raise MeowError(f"{storage.display(source.path)}: only {count} of {len(facts)} rows have a {column}.")
    return pa.Table.from_pylist(facts, schema=SET)


def _further(row: facts_module.Row, column: str) -> Any:
    value = row.record.get(column)
    if column == "perturbed_answer" and isinstance(value, str):
        value = [value]
    wanted = pa.types.is_list(SET.field(column).type)
    texts = [] if value is None else list(value) if wanted and isinstance(value, list) else [value]
    if any(not isinstance(text, str) or not text.strip() for text in texts) or (wanted and value == []):
        raise MeowError(f"{row.file}, line {row.line}: {column} is {'no list of texts' if wanted else 'no text'}.")
    return texts if wanted and texts else value


def read_passages(text: Artifact) -> list[str]:
    """Reads the passages of `evaluate.text`, one a line.

    Raises:
        MeowError: the file is not UTF-8, or has no passage.
    """
    if not text.uri:
        return []
    try:
        found = [line.strip() for line in storage.read_bytes(text.uri).decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise MeowError(f"`evaluate.text`: {storage.display(text.uri)}, byte {error.start}: not UTF-8 text.") from None
    if not found:
        raise MeowError(f"`evaluate.text`: {storage.display(text.uri)} is empty.")
    return found


def rejects_text(rejects: pa.Table, most: int = 10) -> str:
    """Names rejected rows by file, line and reason; no text of facts."""
    rows = rejects.slice(0, most).to_pylist()
    more = f"\n  … and {rejects.num_rows - most} more" if rejects.num_rows > most else ""
    lines = "".join(f"\n  {row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"{rejects.num_rows} rows were rejected:{lines}{more}"
