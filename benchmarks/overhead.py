"""Runs the stages `memo` and `invert` with an engine that answers at once: their own overhead."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import sampled, stopwatch
from benchmarks.host import peak_rss_mib
from meow_ray.config import Config, EngineResources, ModelSection
from meow_ray.core import stage, storage
from meow_ray.core.manifest import Artifact, Manifest
from meow_ray.core.schema import SCHEMAS
from meow_ray.engines import Completion, EngineSpec, Sampling, TeacherForced
from meow_ray.models import refs
from meow_ray.models.refs import ModelRef
from meow_ray.stages.invert.stage import INVERT
from meow_ray.stages.memo.stage import MEMO

Tokens = Sequence[int]


class InstantEngine:
    """Replies to each prompt with the same tokens, and finds every answer greedy."""

    def __init__(self, ref: ModelRef) -> None:
        self.tokenizer: Any = refs.load_tokenizer(ref)
        self.ends = {self.tokenizer.eos_token_id}
        self.max_model_len = refs.context_length(ref, None)
        text = "thing 7 was made"
        self.reply = Completion(
            text, True, tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        )

    generated = 0

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        return [[self.reply] for _ in prompts]

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """See `Engine.teacher_force`."""
        return [
            TeacherForced(log_probs=[0.0] * len(answer), is_greedy=[True] * len(answer), ends=True)
            for answer in answers
        ]


@dataclass(frozen=True)
class InstantSpec(EngineSpec):
    """Loads an `InstantEngine` with the tokenizer of the model."""

    def load(self) -> InstantEngine:
        """Loads the tokenizer alone."""
        return InstantEngine(self.model)


def instant_spec(ref: ModelRef, section: ModelSection, resources: EngineResources) -> InstantSpec:
    """Takes the place of `stages.inputs.engine_spec`."""
    return InstantSpec(ref)


ANSWERS = 5
"""Rows of the table `memo` per fact: its true answer and four candidates."""


def write_candidates(path: Path, facts: int, group: int = 1 << 14) -> None:
    """Writes synthetic candidates with answers so short that each has two or three windows."""
    with pq.ParquetWriter(path, SCHEMAS["candidates"], compression="zstd") as writer:
        for start in range(0, facts, group):
            rows = [
                {
                    "fact_id": f"{i:016x}",
                    "candidate_id": j,
                    "question": f"What is thing {i}?",
                    "answer": f"Thing {i}",
                    "inverted_answer": f"Thing {(i + 1 + j) % 10**6}",
                    "attempt": 0,
                    "seed": 0,
                    "generator": "synthetic",
                }
                for i in range(start, min(start + group, facts))
                for j in range(ANSWERS - 1)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["candidates"]))


@dataclass
class Run:
    """The cost of one run of a stage: without the start of Ray, with the loading of tokenizers."""

    rows: int
    seconds: float
    driver_peak_pss_mib: float
    driver_peak_rss_mib: float


def measured(
    step: stage.Stage,
    config: Config,
    inputs: dict[str, Artifact],
    engine_spec: Callable[..., EngineSpec],
) -> tuple[Manifest, float, float]:
    """Runs a stage as its driver.

    Returns:
        The manifest, the seconds without the start of Ray, and this process's peak PSS in MiB.
    """
    import ray

    from meow_ray.distributed import cluster

    state = stage.state_of(step, config, inputs)
    cluster.connect()
    seconds: dict[str, float] = {}
    with sampled(os.getpid(), tree=False) as memory, stopwatch(seconds, "stage"):
        made = stage.execute(state, config, inputs, engine_spec)
    ray.shutdown()
    assert made.manifest is not None
    return made.manifest, seconds["stage"], memory.peak_pss_mib


def drive(config: Config, candidates: Path, ref: ModelRef) -> Run:
    """Runs the stage as its driver, on candidates that are not loaded before it."""
    files = [str(candidates)]
    inputs = {
        "candidates": Artifact(
            "candidates", files[0], storage.content_digest(files[0]), value=files
        ),
        "target": Artifact("target", ref.uri, ref.digest, value=ref),
    }
    manifest, seconds, pss = measured(MEMO, config, inputs, instant_spec)
    assert manifest.rows is not None
    return Run(manifest.rows, seconds, pss, peak_rss_mib())


# --- invert -------------------------------------------------------------------------------------


class InstantTokenizer:
    """Turns every text into one token, so that no time is spent on tokens."""

    chat_template = None
    eos_token_id = 0
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}

    def __call__(self, text: str | list[str], **options: Any) -> dict[str, list[Any]]:
        """Returns the token of a text, or of each text of a list."""
        return {"input_ids": [0] if isinstance(text, str) else [[0]] * len(text)}


class InstantWriter:
    """Replies to each prompt with as many different answers as are wanted."""

    tokenizer: Any = InstantTokenizer()
    max_model_len = 1 << 20
    generated = 0

    def __init__(self) -> None:
        self.ends = {0}

    def generate(
        self, prompts: Sequence[Tokens], sampling: Sequence[Sampling]
    ) -> list[list[Completion]]:
        """See `Engine.generate`."""
        return [
            [Completion(f" has colour c{number}.", True) for number in range(settings.n)]
            for settings in sampling
        ]

    def teacher_force(
        self, prompts: Sequence[Tokens], answers: Sequence[Tokens], moments: bool = False
    ) -> list[TeacherForced]:
        """Is never called: `invert` forces no answers."""
        raise NotImplementedError


@dataclass(frozen=True)
class InstantWriterSpec(EngineSpec):
    """Loads an `InstantWriter`."""

    def load(self) -> InstantWriter:
        """Loads nothing."""
        return InstantWriter()


def instant_writer_spec(
    ref: ModelRef, section: ModelSection, resources: EngineResources
) -> InstantWriterSpec:
    """Takes the place of `stages.inputs.engine_spec`."""
    return InstantWriterSpec(ref)


def write_facts(path: Path, facts: int, group: int = 1 << 14) -> None:
    """Writes synthetic facts to forget."""
    with pq.ParquetWriter(path, SCHEMAS["facts"], compression="zstd") as writer:
        for start in range(0, facts, group):
            rows = [
                {
                    "fact_id": f"{i:016x}",
                    "split": "forget",
                    "question": f"Which colour has thing {i}?",
                    "answer": f"Thing {i} has colour red.",
                }
                for i in range(start, min(start + group, facts))
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=SCHEMAS["facts"]))


def drive_invert(config: Config, facts: Path) -> Run:
    """Runs the stage as its driver, on facts that are not loaded before it."""
    files = [str(facts)]
    inputs = {
        "facts": Artifact("facts", files[0], storage.content_digest(files[0]), value=files),
        "generator": Artifact(
            "generator", "instant", "instant", value=ModelRef("instant", "instant")
        ),
    }
    manifest, seconds, pss = measured(INVERT, config, inputs, instant_writer_spec)
    return Run(manifest.summary["candidates"], seconds, pss, peak_rss_mib())
