"""The sides of the training benchmark: ours, a plain loop, and the Trainer of transformers."""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.host import peak_rss_mib
from meow_ray.config import LEARNING_RATE
from meow_ray.models import refs
from meow_ray.models.prompts import IGNORE
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import layout, loop
from meow_ray.stages.train.batches import Dataset
from meow_ray.stages.train.forward import forward
from meow_ray.stages.train.items import Item, Pair, micro_batches, totals_of
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.loop import Hooks

PAPER_WIDTH = 200
"""Tokens that the MEOW authors' code pads each pair to."""

LONGEST_TURN = 900
"""Seconds after which a side gives up waiting for its turn."""


@dataclass(frozen=True)
class Case:
    """A job, and how its batches are padded."""

    job: Job
    width: int | None = None
    """Tokens that each pair is padded to; None pads to the longest pair of a micro-batch."""


@dataclass(frozen=True)
class Measured:
    """The times, losses and peak memory of a side."""

    step_seconds: list[float]
    tokens: list[int]
    losses: list[float]
    peak_rss_mib: float

    @property
    def tokens_per_second(self) -> float:
        """The median over all steps but the first."""
        steps = zip(self.tokens[1:], self.step_seconds[1:], strict=True)
        return median(tokens / seconds for tokens, seconds in steps)

    def over(self, other: "Measured") -> float:
        """Returns the speed relative to another side's: the median over steps but the first."""
        steps = zip(self.step_seconds[1:], other.step_seconds[1:], strict=True)
        return median(theirs / seconds for seconds, theirs in steps)


@dataclass(frozen=True)
class Turn:
    """A side's turn in a ring of sides, of which one works at a time."""

    mine: Any
    """A semaphore that the side before this one releases."""
    after: Any
    """The semaphore of the next side."""

    def take(self) -> None:
        """Waits until it is this side's turn.

        Raises:
            RuntimeError: another side has failed and does not pass its turn on.
        """
        if not self.mine.acquire(timeout=LONGEST_TURN):
            raise RuntimeError(
                f"benchmarks.training: no turn within {LONGEST_TURN} s. "
                "Look for the error of another side above."
            )

    def pass_on(self) -> None:
        """Lets the next side work."""
        self.after.release()


def ours(case: Case, turn: Turn) -> Measured:
    """Measures our training loop with one worker."""
    _join_group(rank=0, world_size=1, port=0)
    data = case.job.load()
    seconds: list[float] = []
    losses: list[float] = []
    turn.take()
    start = time.perf_counter()

    def progress(record: dict[str, Any]) -> None:
        nonlocal start
        seconds.append(time.perf_counter() - start)
        losses.append(record["loss"])
        if len(seconds) < data.num_steps:
            turn.pass_on()
            turn.take()
            start = time.perf_counter()

    loop.run(case.job, _hooks(0, 1, progress))
    turn.pass_on()
    return Measured(seconds, _tokens(data), losses, peak_rss_mib())


def plain(case: Case, turn: Turn) -> Measured:
    """Measures a plain PyTorch loop over our micro-batches; with a width, padded as the paper's."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    job = case.job
    data = job.load()
    network, optimizer = _network(job.model, job.spec.learning_rate or LEARNING_RATE)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, data.num_steps + 1)
    pad = refs.load_tokenizer(job.model).pad_token_id
    seconds, losses = [], []
    for step in range(data.num_steps):
        turn.take()
        start = time.perf_counter()
        batch = data.batch(step)
        tokens = totals_of(batch)["inverted"][0]
        total = 0.0
        for items in micro_batches(batch, 0, 1, job.accumulation(1)):
            if case.width:
                pairs = [item["inverted"] for item in items]
                logits, labels = _paper_forward(network, pairs, case.width, pad)
            else:
                logits, labels = _our_forward(network, items, pad, packed=job.resources.packing)
            summed = torch.nn.functional.cross_entropy(
                logits, labels, ignore_index=IGNORE, reduction="sum"
            )
            loss = summed / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(network.parameters(), job.spec.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
        losses.append(total)
        turn.pass_on()
    return Measured(seconds, _tokens(data), losses, peak_rss_mib())


def _our_forward(network: Any, items: Sequence[Item], pad: int, *, packed: bool) -> tuple[Any, Any]:
    """Returns the logits and labels of answers, laid out as in our training loop."""
    laid_out = layout.lay_out(items, pad, "cpu", packed=packed)
    logits, _ = forward(network, laid_out, keeps_logits=True, layer=None)
    return logits, laid_out.labels


def _paper_forward(network: Any, pairs: Sequence[Pair], width: int, pad: int) -> tuple[Any, Any]:
    """Returns all logits and labels of pairs padded to one width, as in the authors' code."""
    import torch

    ids = torch.tensor([p.input_ids + [pad] * (width - len(p.input_ids)) for p in pairs])
    mask = torch.tensor([[1] * len(p.input_ids) + [0] * (width - len(p.input_ids)) for p in pairs])
    labels = torch.tensor([p.labels + [IGNORE] * (width - len(p.labels)) for p in pairs])
    logits = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def trainer(case: Case, turn: Turn) -> Measured:
    """Measures the Trainer of transformers, which pads to the longest pair of a micro-batch."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    job = case.job
    data = job.load()
    network, _ = _network(job.model, job.spec.learning_rate or LEARNING_RATE)
    tokenizer = refs.load_tokenizer(job.model)
    pairs = [item["inverted"] for step in range(data.num_steps) for item in data.batch(step)]
    rows = [
        {
            "input_ids": pair.input_ids,
            "attention_mask": [1] * len(pair.input_ids),
            "labels": pair.labels,
        }
        for pair in pairs
    ]
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn.take()
            self.start = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.start)
            turn.pass_on()

    micro = job.resources.micro_batch_size
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=job.spec.batch_size // micro,
            num_train_epochs=1,
            learning_rate=job.spec.learning_rate,
            weight_decay=job.spec.weight_decay,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            train_sampling_strategy="sequential",
        )
        collator = DataCollatorForSeq2Seq(tokenizer)
        Trainer(network, arguments, collator, rows, callbacks=[Clock()]).train()
    return Measured(seconds, _tokens(data), [], peak_rss_mib())


def _network(ref: ModelRef, learning_rate: float) -> tuple[Any, Any]:
    """Loads a model; returns it with its optimiser."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(ref.folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
    )
    return network, optimizer


def _tokens(data: Dataset) -> list[int]:
    """Returns the tokens of each step's pairs."""
    return [
        sum(len(item["inverted"].input_ids) for item in data.batch(step))
        for step in range(data.num_steps)
    ]


def two_workers(job: Job) -> list[float]:
    """Trains with two workers; returns the peak resident memory of each, in MiB."""
    from torch.multiprocessing.spawn import spawn

    with tempfile.TemporaryDirectory() as folder:
        spawn(_memory_worker, (job, folder), nprocs=2)  # type: ignore[no-untyped-call]
        return [float(Path(folder, str(rank)).read_text()) for rank in range(2)]


def _memory_worker(rank: int, job: Job, folder: str) -> None:
    import torch

    torch.set_num_threads(1)
    _join_group(rank=rank, world_size=2, port=29512)
    loop.run(job, _hooks(rank, 2, lambda record: None))
    Path(folder, str(rank)).write_text(str(peak_rss_mib()))


def _join_group(rank: int, world_size: int, port: int) -> None:
    """Joins the process group of the workers on this machine."""
    import torch

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
    }
    torch.distributed.init_process_group("gloo")


def _hooks(rank: int, world_size: int, progress: Callable[[dict[str, Any]], None]) -> Hooks:
    """Returns the hooks of a run that saves no checkpoints."""
    return Hooks(
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        resume=None,
        save=lambda folder, metrics: None,
        progress=progress,
    )
