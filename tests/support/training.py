"""Fine-tunes in processes that a test starts itself, without Ray: many runs per group."""

import os
import shutil
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

import pyarrow as pa

from meow_ray.config import Train, TrainResources
from meow_ray.core import storage
from meow_ray.models.folders import HISTORY_FILE
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.models.refs import load_tokenizer, pin
from meow_ray.stages.train import batches, loop, watched
from meow_ray.stages.train.items import Pair
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.loop import Hooks
from meow_ray.stages.train.objectives import resolve
from meow_ray.stages.train.pairs import pairs_of


@dataclass(frozen=True)
class Run:
    """One fine-tuning by all workers of a group."""

    job: Job
    checkpoints: Path
    """The folder for checkpoints; each is a subfolder named by its step."""
    resume: Path | None = None
    stop_at: int | None = None
    """The run ends after the checkpoint of this step, as if it were killed."""


class _StoppedError(Exception):
    pass


def job(
    folder: Path,
    model: Path,
    facts: Any,
    selected: Any,
    spec: Train,
    resources: TrainResources,
    twins: Any = None,
    paraphrases: Any = None,
    **settings: Any,
) -> Job:
    """Makes a job; its pairs and its output are in a new folder below `folder`."""
    objective = resolve(spec, None)
    job_folder = Path(tempfile.mkdtemp(dir=folder))
    pairs = job_folder / "pairs.parquet"
    ref = pin(str(model), None, "model")
    prompter = Prompter(load_tokenizer(ref), "chat")
    batches.write_token_pairs(
        pairs_of(
            objective.roles,
            facts,
            selected,
            objective.idk_answers,
            paraphrases=paraphrases,
            num_paraphrases=objective.paraphrases,
        ),
        prompter,
        spec.max_length,
        str(pairs),
        marks_facts=objective.marks_facts,
    )
    if objective.watches_facts:
        settings["watched"] = str(job_folder / "watched.parquet")
        twins = twins_of(facts) if twins is None else twins
        watched.write(facts, twins, prompter, spec.max_length, settings["watched"])
    return Job(
        model=ref,
        pairs=str(pairs),
        spec=spec,
        objective=objective,
        resources=resources,
        out=str(job_folder / "out"),
        **settings,
    )


def twins_of(facts: Any) -> Any:
    """Returns facts of the same form that no model has seen, two of each half per fact."""
    rows = [
        {
            "fact_id": row["fact_id"],
            "twin_id": number,
            "half": ("calibration", "stop")[number % 2],
            "question": row["question"].replace("person", ("Ada", "Bo", "Cy", "Di")[number]),
            "answer": f"In the old {('port', 'city', 'fort', 'mill')[number]} of {row['fact_id']}.",
        }
        for row in facts.to_pylist()
        if row["split"] == "forget"
        for number in range(4)
    ]
    return pa.Table.from_pylist(rows)


class Workers:
    """Processes that serve many runs, so that they import the libraries once."""

    def __init__(self, world_size: int) -> None:
        import torch

        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        context = torch.multiprocessing.get_context("spawn")
        self._tasks = [context.Queue() for _ in range(world_size)]
        self._done = context.Queue()
        arguments = (world_size, port, self._tasks, self._done)
        self._processes = torch.multiprocessing.spawn(
            _worker, arguments, nprocs=world_size, join=False
        )

    def train(self, runs: Sequence[Run]) -> list[list[dict[str, Any]]]:
        """Runs one after the other; returns their histories (empty if the run was stopped)."""
        for tasks in self._tasks:
            tasks.put(list(runs))
        for _ in self._tasks:
            self._wait_for_a_worker()
        histories = [Path(run.job.out, HISTORY_FILE) for run in runs]
        return [storage.read_json(str(path)) if path.exists() else [] for path in histories]

    def _wait_for_a_worker(self) -> None:
        while True:
            try:
                self._done.get(timeout=1)
                return
            except Empty:
                # join() raises the exception of a worker that failed
                assert not self._processes.join(timeout=0), "a worker has ended"

    def close(self) -> None:
        for tasks in self._tasks:
            tasks.put(None)
        self._processes.join()


def _worker(rank: int, world_size: int, port: int, tasks: list[Any], done: Any) -> None:
    import torch

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": "cpu"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    while (runs := tasks[rank].get()) is not None:
        for run in runs:

            def save(folder: Path, metrics: dict[str, Any], run: Run = run) -> None:
                shutil.copytree(folder, run.checkpoints / str(metrics["step"]), dirs_exist_ok=True)
                torch.distributed.barrier()
                if metrics["step"] == run.stop_at:
                    raise _StoppedError

            with suppress(_StoppedError):
                hooks = Hooks(
                    rank=rank,
                    local_rank=rank,
                    world_size=world_size,
                    resume=run.resume,
                    save=save,
                    progress=lambda record: None,
                )
                loop.run(run.job, hooks)
            torch.distributed.barrier()
        done.put(rank)
    torch.distributed.destroy_process_group()


def reference_of(job: Job) -> None:
    """Adds the log-probabilities of the model before training to the pairs of a job."""
    import torch
    from transformers import AutoModelForCausalLM

    if job.objective.reference != "log_probs":
        return
    model = AutoModelForCausalLM.from_pretrained(job.model.folder, dtype=torch.float32)
    data = job.load()
    table = storage.read_table([job.pairs])
    rows = table.to_pylist()
    with torch.no_grad():
        for row in rows:
            if row["item"] is not None:
                row["log_probs"] = _score(model, data.item(row["item"])[row["role"]])
    storage.write_table(type(table).from_pylist(rows, schema=batches.TOKENS), job.pairs)


def _score(model: Any, pair: Pair) -> list[float]:
    import torch

    log_probs = model(torch.tensor([pair.input_ids])).logits[0].log_softmax(-1)
    return [
        log_probs[position - 1, label].item()
        for position, label in enumerate(pair.labels)
        if label != IGNORE
    ]
