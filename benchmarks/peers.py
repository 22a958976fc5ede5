"""Against plain transformers with open-unlearning's settings: `python -m benchmarks.peers`.

Both sides are programs that measure, or train, the same model on the same rows. They run in turn,
in pairs, and the command checks that their values agree. The side `ours` is the command of a user:
`pipelines/evaluate.py` or `pipelines/memorize.py`. The side `peer` is `benchmarks/peer_sides.py`.
"""

import json
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import typer
import yaml

from benchmarks.common import published, report
from benchmarks.host import PROJECT, SHARED_DATA, SMALL_MODEL
from benchmarks.peer_sides import Example, Row
from benchmarks.processes import watch
from benchmarks.startup import read_points
from meow_ray.config import Memorize
from meow_ray.core import storage, timeline
from meow_ray.core.manifest import EXAMPLES_FILE
from meow_ray.models import refs
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.models.prompts import Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest.facts import fact_id
from meow_ray.stages.train import batches
from meow_ray.stages.train.pairs import pairs_of

TOLERANCE = 1e-4
"""The largest difference of losses that counts as agreement, in nats per token."""
SEED = 0
READY = "worker ready"
"""The point of the timeline at which a model is loaded."""

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Model = Annotated[str, typer.Option(help="Model folder or .gguf file [SmolLM2-135M-Instruct].")]
Dtype = Annotated[str, typer.Option(help="float32 or bfloat16.")]
Count = Annotated[int, typer.Option(help="Rows of each of the sets forget and retain.", min=1)]
Repeat = Annotated[int, typer.Option(help="Number of pairs of runs.", min=1)]
Output = Annotated[
    Path | None, typer.Option(help="JSON file; the default is below benchmarks/results.")
]
Values = dict[str, Any]
"""What a side found."""


@dataclass(frozen=True)
class Timed:
    """One run of a side."""

    whole: Mapping[str, float]
    """Wall and CPU seconds of the program."""
    work: Mapping[str, float]
    """The same without the start, which ends when the model is loaded."""
    values: Values


Side = Callable[[], Timed]


def in_pairs(ours: Side, peer: Side, repeat: int) -> tuple[list[Timed], list[Timed]]:
    """Runs both sides in turn; each pair begins with the side that ended the pair before."""
    our_runs: list[Timed] = []
    peer_runs: list[Timed] = []
    for number in range(repeat):
        sides = [(ours, our_runs), (peer, peer_runs)]
        for side, runs in sides if number % 2 else reversed(sides):
            runs.append(side())
    return our_runs, peer_runs


def ratios(ours: Sequence[Timed], peer: Sequence[Timed]) -> dict[str, Any]:
    """Returns how many times longer the peer takes than ours: medians over pairs of runs."""
    return {
        f"peer_over_ours_{part}": {
            measure: median(
                getattr(theirs, part)[measure] / getattr(mine, part)[measure]
                for mine, theirs in zip(ours, peer, strict=True)
            )
            for measure in ("wall_seconds", "cpu_seconds")
        }
        for part in ("whole", "work")
    }


def _seconds(runs: Sequence[Timed]) -> list[dict[str, Any]]:
    return [{"whole": dict(run.whole), "work": dict(run.work)} for run in runs]


# --- the programs ---------------------------------------------------------------------------------


def run_ours(script: str, config: Mapping[str, Any], read: Callable[[Path], Values]) -> Timed:
    """Runs a script of `pipelines/` on an empty storage root.

    Args:
        script: its name.
        config: the configuration without `storage`.
        read: returns the values from the storage root.
    """
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as name:
        folder = Path(name)
        root, path, points = folder / "root", folder / "config.yaml", folder / "timeline.jsonl"
        path.write_text(yaml.safe_dump({**config, "storage": {"root": str(root)}}))
        command = [sys.executable, f"pipelines/{script}", "--config", str(path)]
        env = {"PYTHONPATH": str(PROJECT), timeline.FILE: str(points)}
        run = watch(command, PROJECT, env)
        ready = next(point.time for point in read_points(points) if point.name == READY)
        return Timed(run.seconds(), run.seconds(ready), read(root))


def run_peer(name: str, arguments: Mapping[str, Any]) -> Timed:
    """Runs a side of `benchmarks.peer_sides` as a program."""
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        source, target = Path(folder, "input.json"), Path(folder, "output.json")
        source.write_text(json.dumps(arguments))
        command = [sys.executable, "-m", "benchmarks.peer_sides", name, str(source), str(target)]
        run = watch(command, PROJECT, {"PYTHONPATH": str(PROJECT)})
        values = json.loads(target.read_text())
        return Timed(run.seconds(), run.seconds(values["ready"]), values)


# --- evaluate -------------------------------------------------------------------------------------


@app.command()
def evaluate(
    model: Model = SMALL_MODEL,
    engine: Annotated[str, typer.Option(help="Our engine: vllm or transformers.")] = "vllm",
    dtype: Dtype = "float32",
    count: Count = 40,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.", min=1)] = 200,
    repeat: Repeat = 1,
    output: Output = None,
) -> None:
    """Measure losses, truth ratios and ROUGE of replies on TOFU's sets forget and retain."""
    sets = {
        "forget": _read("forget01_perturbed.jsonl", count),
        "retain": _read("retain_perturbed.jsonl", count),
    }
    folder = str(refs.pin(model, None, "--model").folder)
    arguments: dict[str, Any] = {
        "model": folder,
        "dtype": dtype,
        "max_new_tokens": max_new_tokens,
        "sets": sets,
    }
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as data:
        config = evaluation_config(Path(data), engine, **arguments)
        ours, peer = in_pairs(
            lambda: run_ours("evaluate.py", config, read_examples),
            lambda: run_peer("evaluate", arguments),
            repeat,
        )
    agreement = compare_examples(ours[0].values["sets"], by_question(sets, peer[0].values["sets"]))
    settings = {"engine": engine, "dtype": dtype, "count": count, "max_new_tokens": max_new_tokens}
    _finish("peers_evaluate", settings, ours, peer, agreement, output)
    if agreement["largest_difference_of_losses"] > TOLERANCE or agreement["other_replies"]:
        raise SystemExit("benchmarks.peers: the values of the sides differ, see `agreement`.")


def evaluation_config(
    folder: Path,
    engine: str,
    *,
    model: str,
    dtype: str,
    max_new_tokens: int,
    sets: Mapping[str, Sequence[Row]],
) -> dict[str, Any]:
    """Writes the sets; returns the configuration with which our side measures the same."""
    paths = {name: _write(folder / f"{name}.jsonl", rows) for name, rows in sets.items()}
    return {
        "target": {"model": model, "engine": engine, "dtype": dtype, "template": "tofu"},
        "ingest": {"forget": paths["forget"], "retain": paths["retain"]},
        "evaluate": {
            "sets": paths,
            "definitions": "open_unlearning",
            "attacks": [],
            "membership": [],
            "memo": False,
            "max_new_tokens": max_new_tokens,
        },
    }


def read_examples(root: Path) -> Values:
    """Returns the values that our evaluation wrote, by set and question."""
    folder, _ = published(root, "metrics")
    found: dict[str, dict[str, Any]] = {}
    for row in storage.read_table([str(folder / EXAMPLES_FILE)]).to_pylist():
        found.setdefault(row["suite"], {})[row["question"]] = row
    return {"sets": found}


def by_question(
    sets: Mapping[str, Sequence[Row]], values: Mapping[str, Sequence[Values]]
) -> dict[str, dict[str, Values]]:
    """Returns the peer's values by set and question; it keeps the order of the rows."""
    return {
        name: {row["question"]: found for row, found in zip(rows, values[name], strict=True)}
        for name, rows in sets.items()
    }


def compare_examples(
    ours: Mapping[str, Mapping[str, Values]], peer: Mapping[str, Mapping[str, Values]]
) -> dict[str, Any]:
    """Returns how far the values of the sides differ, over all rows of the peer's sets."""
    pairs = [
        (ours[name][question], theirs)
        for name, rows in peer.items()
        for question, theirs in rows.items()
    ]

    def largest(name: str) -> float:
        return float(max(abs(mine[name] - theirs[name]) for mine, theirs in pairs))

    return {
        "rows": len(pairs),
        "largest_difference_of_losses": largest("loss"),
        "largest_difference_of_probabilities": largest("probability"),
        "largest_difference_of_truth_ratios": largest("truth_ratio"),
        "largest_difference_of_rouge": largest("rougeL_recall"),
        "other_replies": sum(a["generated"].strip() != b["generated"] for a, b in pairs),
    }


# --- train ----------------------------------------------------------------------------------------


@app.command()
def train(
    model: Model = SMALL_MODEL,
    dtype: Dtype = "float32",
    count: Count = 40,
    batch_size: Annotated[int, typer.Option(help="Rows per optimiser step.", min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(help="At the first step.")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.0,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Save memory on both sides.")
    ] = False,
    repeat: Repeat = 1,
    output: Output = None,
) -> None:
    """Fine-tune on rows of TOFU's sets forget and retain for one epoch, in the same order."""
    rows = [*_read("forget01.jsonl", count), *_read("retain99.jsonl", count)]
    ref = refs.pin(model, None, "--model")
    shared = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
    }
    with tempfile.TemporaryDirectory(prefix="meow-bench-") as folder:
        data = _write(Path(folder, "facts.jsonl"), rows)
        config = training_config(str(ref.folder), data, dtype, gradient_checkpointing, shared)
        arguments = {
            "model": str(ref.folder),
            "dtype": dtype,
            "gradient_checkpointing": gradient_checkpointing,
            "examples": ordered_examples(rows, ref, config["memorize"], Path(folder)),
            **shared,
        }
        ours, peer = in_pairs(
            lambda: run_ours("memorize.py", config, read_losses),
            lambda: run_peer("train", arguments),
            repeat,
        )
    agreement = compare_losses(ours[0].values["losses"], peer[0].values["losses"])
    settings = {
        "dtype": dtype,
        "rows": len(rows),
        "gradient_checkpointing": gradient_checkpointing,
        **shared,
    }
    _finish("peers_train", settings, ours, peer, agreement, output)
    if agreement["difference_of_first_losses"] > TOLERANCE:
        raise SystemExit("benchmarks.peers: the losses of the sides differ, see `agreement`.")


def training_config(
    model: str,
    data: str,
    dtype: str,
    gradient_checkpointing: bool,
    shared: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the configuration with which our side trains on the same rows."""
    memorize = {
        "model": model,
        "data": [data],
        "epochs": 1,
        "warmup_ratio": 0.0,
        "train_dtype": dtype,
        **shared,
    }
    resources = {
        "micro_batch_size": shared["batch_size"],
        "gradient_checkpointing": gradient_checkpointing,
        "num_workers": 1,
    }
    return {
        "memorize": memorize,
        "target": {"template": "tofu"},
        "resources": {"memorize": resources},
    }


def ordered_examples(
    rows: Sequence[Row], ref: ModelRef, memorize: Mapping[str, Any], folder: Path
) -> list[Example]:
    """Returns the tokenised rows in the order in which our side trains on them."""
    spec = Memorize.model_validate(memorize)
    table = pa.table(
        {
            "fact_id": [fact_id(row["question"], row["answer"]) for row in rows],
            "question": [row["question"] for row in rows],
            "answer": [row["answer"] for row in rows],
            "rank": [0] * len(rows),
        }
    )
    path = str(folder / "pairs.parquet")
    prompter = Prompter(refs.load_tokenizer(ref), "tofu")
    batches.write_token_pairs(pairs_of(("inverted",), None, table), prompter, spec.max_length, path)
    data = batches.Dataset(storage.read_table([path]), spec)
    pairs = [item["inverted"] for step in range(data.num_steps) for item in data.batch(step)]
    return [{"input_ids": pair.input_ids, "labels": pair.labels} for pair in pairs]


def read_losses(root: Path) -> Values:
    """Returns the loss of each step that our side wrote."""
    folder, _ = published(root, "target")
    return {"losses": [record["loss"] for record in storage.read_json(str(folder / HISTORY_FILE))]}


def compare_losses(ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    """Returns how far the losses of the sides differ, step by step.

    The first step has the same weights on both sides. Later losses differ a little, because the
    learning rate reaches 0 one step later on our side.
    """
    differences = [abs(mine - theirs) for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "steps": len(differences),
        "difference_of_first_losses": differences[0],
        "largest_difference_of_losses": max(differences),
    }


# --- data and figures -----------------------------------------------------------------------------


def _read(name: str, count: int) -> list[dict[str, Any]]:
    """Returns rows of a file of TOFU, drawn by a fixed seed."""
    path = SHARED_DATA / "tofu" / name
    if not path.exists():
        raise SystemExit(f"{path} does not exist. Set MEOW_SHARED_DATA to the folder with TOFU.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return random.Random(SEED).sample(rows, min(count, len(rows)))  # noqa: S311 - not for secrets


def _write(path: Path, rows: Sequence[Row]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def _finish(
    name: str,
    settings: Mapping[str, Any],
    ours: Sequence[Timed],
    peer: Sequence[Timed],
    agreement: Mapping[str, Any],
    output: Path | None,
) -> None:
    """Prints and writes the figures of both sides."""
    figures = {
        **ratios(ours, peer),
        "agreement": agreement,
        "rounds": {"ours": _seconds(ours), "peer": _seconds(peer)},
    }
    report(name, settings, figures, output)


if __name__ == "__main__":
    app()
