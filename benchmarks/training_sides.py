"""The sides of the training benchmark: ours, a plain loop, and the Trainer of transformers."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import peak_rss_mib
from meow_ray.models import refs
from meow_ray.models.prompts import IGNORE
from meow_ray.models.refs import ModelRef
from meow_ray.stages.train import batches, layout, loop, zero
from meow_ray.stages.train.batches import Dataset, Pair
from meow_ray.stages.train.forward import forward
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.loop import Hooks

PAPER_WIDTH = 200
"""Tokens that the MEOW authors' code pads each pair to."""


LONGEST_TURN = 900
"""Seconds."""


@dataclass(frozen=True)
class Case:
    """One job that all sides do."""

    job: Job
    width: int | None = None
    """Pad to this width; None pads to the longest pair of a micro-batch."""


@dataclass(frozen=True)
class Measured:
    """What a side took."""

    step_seconds: list[float]
    tokens: list[int]
    losses: list[float]
    peak_rss_mib: float

    @property
    def tokens_per_second(self) -> float:
        """Median over all steps but the first."""
        return median(
            count / took for count, took in zip(self.tokens[1:], self.step_seconds[1:], strict=True)
        )

    def over(self, other: "Measured") -> float:
        """The speed over another side's: the median over pairs of steps, without the first."""
        return median(
            b / a for a, b in zip(self.step_seconds[1:], other.step_seconds[1:], strict=True)
        )


@dataclass(frozen=True)
class Turn:
    """A side's place in a ring whose sides do one thing at a time."""

    mine: Any
    after: Any
    """Semaphores."""

    def take(self) -> None:
        """Waits until it is this side's turn.

        Raises:
            RuntimeError: it never is: another side has failed.
        """
        if not self.mine.acquire(timeout=LONGEST_TURN):
            raise RuntimeError("Another side does not pass its turn on.")

    def pass_on(self) -> None:
        """Lets the next one go on."""
        self.after.release()


def ours(case: Case, turn: Turn) -> Measured:
    """Our training loop, one worker."""
    import os

    import torch

    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
    }
    torch.distributed.init_process_group("gloo")
    data, seconds, losses = case.job.load(), list[float](), list[float]()
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

    loop.run(case.job, Hooks(0, 0, 1, None, lambda folder, metrics: None, progress))
    turn.pass_on()
    return Measured(seconds, _tokens(data), losses, peak_rss_mib())


def plain(case: Case, turn: Turn) -> Measured:
    """A plain PyTorch loop over our micro-batches; with a width, over the paper's."""
    import torch
    from transformers import get_linear_schedule_with_warmup

    job, data = case.job, case.job.load()
    network, optimizer = _network(job.model, job.spec.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, data.num_steps + 1)
    pad, packed = refs.load_tokenizer(job.model).pad_token_id, job.resources.packing
    seconds, losses = [], []
    for step in range(data.num_steps):
        turn.take()
        start = time.perf_counter()
        batch = data.batch(step)
        tokens, total = batches.totals(batch)["inverted"][0], 0.0
        for items in batches.micro_batches(batch, 0, 1, job.accumulation(1)):
            if case.width:
                logits, labels = _paper_forward(
                    network, [item["inverted"] for item in items], case.width, pad
                )
            else:
                found = layout.lay_out(items, pad, "cpu", packed=packed)
                model = zero.Model(None, None, pad, keeps_logits=True, half=False)
                logits, labels = forward(network, found, model, None)[0], found.labels
            loss = (
                torch.nn.functional.cross_entropy(
                    logits, labels, ignore_index=IGNORE, reduction="sum"
                )
                / tokens
            )
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


def _paper_forward(network: Any, pairs: Sequence[Pair], width: int, pad: int) -> tuple[Any, Any]:
    """All logits of pairs that are padded to one width, as the authors' code computes them."""
    import torch

    ids = torch.tensor([p.input_ids + [pad] * (width - len(p.input_ids)) for p in pairs])
    mask = torch.tensor([[1] * len(p.input_ids) + [0] * (width - len(p.input_ids)) for p in pairs])
    labels = torch.tensor([p.labels + [IGNORE] * (width - len(p.labels)) for p in pairs])
    logits = network(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()


def trainer(case: Case, turn: Turn) -> Measured:
    """The Trainer of transformers with its own padding to the longest of a batch."""
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

    job, data = case.job, case.job.load()
    network, _ = _network(job.model, job.spec.learning_rate)
    tokenizer = refs.load_tokenizer(job.model)
    order = [
        pair
        for step in range(data.num_steps)
        for pair in (item["inverted"] for item in data.batch(step))
    ]
    rows = [
        {"input_ids": p.input_ids, "attention_mask": [1] * len(p.input_ids), "labels": p.labels}
        for p in order
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
        Trainer(
            network, arguments, DataCollatorForSeq2Seq(tokenizer), rows, callbacks=[Clock()]
        ).train()
    return Measured(seconds, _tokens(data), [], peak_rss_mib())


def _network(ref: ModelRef, learning_rate: float) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(ref.folder, dtype=torch.float32).train()
    return network, torch.optim.AdamW(
        network.parameters(), lr=learning_rate, weight_decay=0.0, fused=True
    )


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
    import os

    import torch

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29512", "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    loop.run(job, Hooks(rank, rank, 2, None, lambda folder, metrics: None, lambda record: None))
    Path(folder, str(rank)).write_text(str(peak_rss_mib()))
