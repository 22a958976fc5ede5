"""The options that the commands of `benchmarks.memo` share, and the engine that they measure."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.common import fresh
from benchmarks.host import SHARED_DATA
from benchmarks.sides import Case
from meow_ray.config import EngineResources, Resources, Select
from meow_ray.distributed.map_rows import ENV, cpu_env
from meow_ray.engines import EngineSpec
from meow_ray.models import refs

ModelOption = Annotated[
    str, typer.Option(help="Model folder or .gguf file [SmolLM2-135M-Instruct].")
]
FactsOption = Annotated[
    Path,
    typer.Option(
        help="JSONL with question and answer, or the MEOW authors' file with answer_0 and so on."
    ),
]
NumFacts = Annotated[int | None, typer.Option(help="Take the first so many facts of the file.")]
Window = Annotated[str, typer.Option(help="character or token")]
MaxNewTokens = Annotated[str, typer.Option(help="A number, or label.")]
Template = Annotated[str, typer.Option(help="raw or target")]
TargetTemplate = Annotated[
    str, typer.Option(help="chat, tofu or Jinja; counts with --template target.")
]
EngineOption = Annotated[str, typer.Option(help="vllm or transformers")]
Dtype = Annotated[str, typer.Option(help="Weights and arithmetic of all sides.")]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Context length; the model's own by default.")
]
BatchSize = Annotated[int, typer.Option(help="Facts of one batch, as resources.memo.batch_size.")]
Output = Annotated[Path | None, typer.Option(help="JSON file [benchmarks/results/memo-….json].")]

BATCH_SIZE = Resources().memo.batch_size
TOP_K = Select().top_k
FACTS = SHARED_DATA / "meow" / "inverted_forget01.json"


def engine_spec(model: str, engine: str, dtype: str, max_model_len: int | None) -> EngineSpec:
    """Returns how an engine loads a model; converts a .gguf file first."""
    ref = refs.pin(model, None, "--model")
    fresh(_convert, ref)
    return EngineSpec(ref, engine, dtype, max_model_len)  # type: ignore[arg-type]


def _convert(ref: refs.ModelRef) -> None:
    assert (
        ref.folder.exists()
    )  # a .gguf file is converted when it is first asked for, which no side shall pay


def engine_env() -> dict[str, str]:
    """Returns the environment that the pipeline gives its engine actors."""
    import torch

    return ENV if torch.cuda.is_available() else cpu_env(EngineResources(), os.cpu_count() or 1)


def settings_of(case: Case, facts: Path) -> dict[str, Any]:
    """Returns the settings of a case for the file of results."""
    return {
        "model": Path(case.engine.model.uri).name,
        "model_digest": case.engine.model.digest,
        "facts": facts.name,
        "engine": case.engine.engine,
        "dtype": case.engine.dtype,
        "max_model_len": case.engine.max_model_len,
        "target_template": case.template,
        "batch_size": case.batch_size,
        **case.memo.spec(),
    }
