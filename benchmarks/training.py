"""What a step of fine-tuning costs: `python -m benchmarks.training speed|memory|pairs`.

All sides train the same model on the same global batches of TOFU questions, in TOFU's template, and inverted facts,
each in a process of its own. Tokens are those of the pairs: padding does not count. A side's first step, which
allocates, does not either.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Manager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import typer

from benchmarks.common import SHARED_DATA, SMALL_MODEL, fresh, peak_rss_mib, report, together
from meow_ray.config import Lora, Train, TrainResources
from meow_ray.models import refs
from meow_ray.models.prompts import IGNORE, Prompter
from meow_ray.models.refs import ModelRef
from meow_ray.stages.ingest.readers import read_records
from meow_ray.stages.invert import own_candidates
from meow_ray.stages.train import batches, layout, loop, zero
from meow_ray.stages.train.batches import Dataset, Pair
from meow_ray.stages.train.job import Job
from meow_ray.stages.train.launch import CPU_ENV
from meow_ray.stages.train.loop import Hooks
from meow_ray.stages.train.objectives import PRESETS
from meow_ray.stages.train.pairs import pairs_of

PAPER_WIDTH = 200
"""Tokens that the MEOW authors' code pads each pair to."""

LONGEST_TURN = 900
"""Seconds."""

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

Model = Annotated[str, typer.Option(help="Model folder or .gguf file [SmolLM2-135M-Instruct].")]
Batch = Annotated[int, typer.Option(help="Pairs of an optimiser step.")]
Micro = Annotated[int, typer.Option(help="Pairs of a forward pass.")]
Output = Annotated[
    Path | None, typer.Option(help="JSON file; the default is below benchmarks/results.")
]


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
        """Times as many tokens a second as another side: median over all steps but the first, each with its like."""
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


Side = Callable[[Case, Turn], Measured]


@app.command()
def speed(
    model: Model = SMALL_MODEL,
    pairs: Annotated[
        int, typer.Option(help="Pairs of TOFU forget01 with the authors' inverted facts.")
    ] = 128,
    batch_size: Batch = 32,
    micro_batch_size: Micro = 8,
    output: Output = None,
) -> None:
    """Times ours, a plain PyTorch loop, transformers' Trainer, and the paper's padding to 200.

    The sides of a group take turns, a step each, so that a machine which is slower for a while is so for all of them.
    All have the environment that our workers get on CPU.
    """
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as folder, Manager() as manager:
        spec = Train(batch_size=batch_size, epochs=1, learning_rate=1e-5, warmup_ratio=0)
        packed = _job(model, pairs, spec, TrainResources(micro_batch_size=micro_batch_size), folder)
        padded = Job(
            **{**vars(packed), "resources": packed.resources.model_copy(update={"packing": False})}
        )
        groups: list[dict[str, tuple[Side, Case]]] = [
            {
                "paper": (plain, Case(padded, PAPER_WIDTH)),
                "plain_packed": (plain, Case(packed)),
                "ours_packed": (ours, Case(packed)),
            },
            {
                "trainer": (trainer, Case(padded)),
                "plain_padded": (plain, Case(padded)),
                "ours_padded": (ours, Case(padded)),
            },
        ]
        for group in groups:
            turns = [manager.Semaphore(int(i == 0)) for i in range(len(group))]
            ring = [
                Turn(mine, after) for mine, after in zip(turns, turns[1:] + turns[:1], strict=True)
            ]
            calls = [
                (side, (case, turn), CPU_ENV)
                for (side, case), turn in zip(group.values(), ring, strict=True)
            ]
            found |= zip(group, together(calls), strict=True)
            print(
                *(f"{name}: {found[name].tokens_per_second:.1f} tokens/s" for name in group),
                sep="\n",
                flush=True,
            )
    rates = {name: one.tokens_per_second for name, one in found.items()}
    figures = {
        "tokens_per_second": rates,
        "peak_rss_mib": {name: one.peak_rss_mib for name, one in found.items()},
        "ours_over_paper": {
            name: found[f"ours_{name}"].over(found["paper"]) for name in ("padded", "packed")
        },
        "ours_over_plain": {
            name: found[f"ours_{name}"].over(found[f"plain_{name}"])
            for name in ("padded", "packed")
        },
        "ours_padded_over_trainer": found["ours_padded"].over(found["trainer"]),
        "largest_relative_difference_of_losses": {
            name: _difference(one.losses, found["plain_padded"].losses)
            for name, one in found.items()
            if name != "trainer"
        },
        "step_seconds": {name: one.step_seconds for name, one in found.items()},
    }
    settings = {"pairs": pairs, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
    report("training_speed", settings, figures, output)


@app.command()
def memory(
    model: Model = SMALL_MODEL,
    batch_size: Batch = 8,
    micro_batch_size: Micro = 4,
    output: Output = None,
) -> None:
    """Measures the peak memory of one of two workers, by ZeRO stage, full and with LoRA."""
    figures = {}
    for name, lora in (("full", None), ("lora", Lora())):
        for stage in (1, 2, 3):
            spec = Train(batch_size=batch_size, epochs=1, learning_rate=1e-5, lora=lora)
            resources = TrainResources(zero_stage=stage, micro_batch_size=micro_batch_size)
            with tempfile.TemporaryDirectory() as folder:
                job = _job(model, 2 * batch_size, spec, resources, folder)
                figures[f"{name}_zero{stage}"] = {
                    "worker_peak_rss_mib": fresh(two_workers, job, env=CPU_ENV)
                }
            print(f"{name}, ZeRO {stage}: {figures[f'{name}_zero{stage}']}", flush=True)
    report(
        "training_memory",
        {"batch_size": batch_size, "micro_batch_size": micro_batch_size},
        figures,
        output,
    )


@app.command()
def pairs(
    model: Model = SMALL_MODEL,
    count: Annotated[int, typer.Option(help="Pairs that a worker holds.")] = 400_000,
    output: Output = None,
) -> None:
    """Measures how fast the driver tokenises pairs, and what they take in its memory and in each worker's."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        job = _job(model, count, Train(), TrainResources(), folder)
        seconds, found = time.perf_counter() - began, job.load().pairs
    figures = {
        "tokens_per_pair": pc.sum(pc.list_value_length(found["input_ids"])).as_py() / count,
        "tokenised_pairs_per_second": count / seconds,
        "bytes_per_pair": found.nbytes / count,
    }
    report("training_pairs", {"pairs": count}, figures, output)


def _job(model: str, pairs: int, spec: Train, resources: TrainResources, folder: str) -> Job:
    """Writes the pairs, the same ones again if there are too few, and returns the job that learns them."""
    path = SHARED_DATA / "meow" / "inverted_forget01.json"
    table = own_candidates.complete(read_records(str(path)), path.name)
    rows = table.take([i % table.num_rows for i in range(pairs)]).select(
        ["fact_id", "question", "inverted_answer"]
    )
    rows = rows.rename_columns(["fact_id", "question", "answer"])
    rows = rows.append_column("rank", pa.array(range(pairs), pa.int32()))
    place, ref = Path(tempfile.mkdtemp(dir=folder)), refs.pin(model, None, "--model")
    prompter = Prompter(refs.load_tokenizer(ref), "tofu")
    batches.write_token_pairs(
        pairs_of(("inverted",), None, rows), prompter, spec.max_length, str(place / "pairs.parquet")
    )
    return Job(
        ref, str(place / "pairs.parquet"), spec, PRESETS["meow"], resources, str(place / "out")
    )


def _difference(losses: Sequence[float], others: Sequence[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(losses, others, strict=True))


# --- sides --------------------------------------------------------------------------------------


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
                logits, labels = loop.forward(network, found, model, None)[0], found.labels
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


if __name__ == "__main__":
    app()
