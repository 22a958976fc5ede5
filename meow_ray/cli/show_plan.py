"""Tables of `meow plan`: memory of training and engines, work and time of a run."""

from itertools import zip_longest

from rich.console import Console

from meow_ray.cli.show import plain_table
from meow_ray.planning import memory
from meow_ray.planning.engines import GIB
from meow_ray.planning.workload import RunPlan


def show_memory(target: Console, plan: memory.MemoryPlan) -> None:
    """Prints the memory that each configuration of training takes, and each engine."""
    columns = ["", "method", "ZeRO", "offload", "model states", "activations", "buckets"]
    columns += ["GPU", "CPU"] + (["fits"] if plan.gpu_memory else [])
    table = plain_table(*columns)
    for row in plan.rows:
        sizes = (row.states, row.activations, row.buckets, row.gpu, row.cpu)
        cells = ["→" if row.configured else "", memory.NAMES[row.method], str(row.zero_stage)]
        cells.append("CPU" if row.offload else "")
        cells += [_gib(size) for size in sizes]
        if row.fits is not None:
            cells.append("yes" if row.fits else "no")
        table.add_row(*cells, style="bold" if row.configured else None)
    target.print(
        f"{plan.model}: {plan.parameters / 1e9:.3g} billion parameters, {plan.workers} ZeRO "
        f"workers, at most {plan.gpus_per_node} per node. Figures are in GiB: GPU memory of a "
        "worker, CPU memory of a node. → marks the configured one.\n"
        f"Activations are those of {plan.tokens} tokens: a forward pass in which all pairs are as "
        "long as train.max_length. CUDA itself and fragmentation are not included.",
        markup=False,
    )
    target.print(table)
    target.print(plan.least)
    _show_engines(target, plan)
    if plan.left_out:
        target.print(plan.left_out, markup=False)


def _show_engines(target: Console, plan: memory.MemoryPlan) -> None:
    columns = ["engine of", "model", "GPUs", "weights", "KV cache", "longest"]
    columns += ["room", "fits"] if plan.gpu_memory else []
    table = plain_table(*columns)
    for row in plan.engines:
        cells = [row.stage, row.model, str(row.gpus), _gib(row.weights)]
        cells += [f"{row.cache / 1024:.1f}", f"{row.context:,}"]
        if row.room is not None:
            cells += [f"{row.room:,}", "yes" if row.fits else "no"]
        table.add_row(*cells)
    room = ", and the tokens that fit at once (room)" if plan.gpu_memory else ""
    target.print(
        "Engines, per GPU: weights in GiB, KV cache in KiB per token. Tokens of the longest "
        f"sequence{room}."
    )
    target.print(table)
    for row in plan.engines:
        if plan.gpu_memory is None and row.room_on_cpu < row.context:
            target.print(
                f"Warning: on CPU, vLLM's cache for {row.stage} holds {row.room_on_cpu:,} of the "
                f"model's {row.context:,} tokens. If rows are longer, raise "
                f"resources.{row.stage}.kv_cache_gib.",
                markup=False,
            )


def show_work(target: Console, plan: RunPlan) -> None:
    """Prints the work of each stage, and with throughputs its time."""
    columns = ["stage", "continuations", "passes", "tokens read", "generated, at most", "trained"]
    columns += ["storage, GiB"] + (["units", "hours", "GPU hours"] if plan.estimates else [])
    table = plain_table(*columns)
    for work, estimate in zip_longest(plan.works, plan.estimates):
        counts = (work.requests, work.passes, work.read, work.generated, work.trained)
        cells = [work.stage, *(f"{count:,.0f}" for count in counts), _gib(work.storage)]
        if estimate:
            cells += [str(estimate.units), f"{estimate.seconds / 3600:.2f}"]
            cells.append(f"{estimate.gpu_hours:.2f}")
        table.add_row(*cells)
    forget, retain = plan.facts["forget"], plan.facts["retain"]
    target.print(f"A run on {forget:,} facts to forget and {retain:,} to retain:")
    target.print(table)
    derived = sum(work.derived for work in plan.works)
    if derived:
        steps = sum(work.steps for work in plan.works)
        target.print(f"The audit makes {derived:,.0f} models, in {steps:,.0f} training steps.")
    if not plan.estimates:
        target.print("For times, measure throughputs with --probe, or pass --rates FILE.")
        return
    hours = sum(estimate.seconds for estimate in plan.estimates) / 3600
    gpu_hours = sum(estimate.gpu_hours for estimate in plan.estimates)
    target.print(
        f"In total {hours:.2f} hours, one stage after another, and {gpu_hours:.2f} GPU hours."
    )


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"
