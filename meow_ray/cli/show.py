"""What `meow` prints as tables: ids and figures, and the text of facts only when asked for."""

from itertools import zip_longest
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meow_ray.core import storage
from meow_ray.core.manifest import REJECTS_FILE, Artifact
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.core.stage import State
from meow_ray.errors import MeowError
from meow_ray.planning import memory
from meow_ray.planning.workload import RunPlan
from meow_ray.stages.invert.replies import OTHER_RULES
from meow_ray.stages.invert.rules import RULES
from meow_ray.stages.report.compare import number

BARS = " ▁▂▃▄▅▆▇█"


def summary_of(artifact: Artifact | None, name: str) -> dict[str, Any]:
    """Returns the figures that a stage left in its manifest.

    Raises:
        MeowError: the stage has not run, or its artifact was made elsewhere.
    """
    if artifact is None or artifact.manifest is None:
        raise MeowError(
            f"The stage of {name} has not run with this configuration; `meow status` shows what is there."
        )
    return artifact.manifest.summary


_STYLES = {"cached": "green", "stale": "yellow", "missing": "dim"}


def show_states(console: Console, states: list[tuple[str, State]]) -> None:
    """Prints where stages stand, each with the label of its part of the run."""
    table = Table(
        "stage",
        "state",
        "reason",
        "rows",
        "seconds",
        "uri",
        "fingerprint",
        box=None,
        header_style="bold",
    )
    for label, state in states:
        row = state.as_row()
        row["stage"] = f"{label}{row['stage']}"
        row["fingerprint"] = (row["fingerprint"] or "")[:16]
        table.add_row(
            *("" if value is None else str(value) for value in row.values()),
            style=_STYLES[state.state],
        )
    console.print(table)


def show_candidates(console: Console, artifact: Artifact, summary: dict[str, Any]) -> None:
    """Prints how many facts have their candidates, what was rejected and why, and how far candidates lie apart."""
    enough, facts = summary["facts_with_enough"], summary["facts"]
    console.print(
        f"{summary['candidates']} inverted facts in style {summary['style']}; {enough} of {facts} facts "
        f"({enough / facts:.1%}) have enough, {summary['facts_with_none']} have none."
    )
    if summary["facts_short"]:
        short = ", ".join(f"{fact} {count}" for fact, count in summary["facts_short"].items())
        console.print(f"Too few (the first of them, with what they have): {short}")
    console.print(
        f"Mean distance to the true answer (1 - ROUGE-L F1) {_figure(summary['mean_distance'])}, "
        f"between a fact's candidates {_figure(summary['mean_distinctness'])}."
    )
    if summary["memo_gap"] is not None:
        console.print(
            f"MEMO: true answers are {summary['memo_gap']:+.3f} above the mean of their candidates."
        )
    table = Table("rule", "rejected", "a candidate is rejected if", box=None, header_style="bold")
    for rule, count in summary["rejected_by_rule"].items():
        table.add_row(rule, str(count), _meaning(rule))
    console.print(table)
    console.print(f"Table: {storage.display(artifact.uri)}")


def _meaning(rule: str) -> str:
    return (RULES[rule].__doc__ or "") if rule in RULES else OTHER_RULES[rule]


def rejected_rows(artifact: Artifact, text: bool) -> list[dict[str, Any]]:
    """Returns the rejected candidates, without their text unless `text`."""
    table = artifact.extra(REJECTS_FILE)
    return list((table if text else table.drop_columns(["text"])).to_pylist())


def show_rejected(console: Console, rows: list[dict[str, Any]]) -> None:
    """Prints rejected candidates, one a row."""
    names = [name for name in (rows[0] if rows else ()) if name != "number"]
    table = Table(*names, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(row[name])) for name in names))
    console.print(table if rows else "Nothing was rejected.")


def show_memo(console: Console, artifact: Artifact, summary: dict[str, Any]) -> None:
    """Prints the distribution of MEMO, its extremes, and the gap between truth and candidates."""
    console.print(f"MEMO of {summary['answers']} answers over {summary['windows']} windows", end="")
    console.print(
        f" ({summary['generations']} generations), {summary['too_short']} answers too short for a window."
    )
    table = Table(
        "",
        "answers",
        "mean",
        "std",
        "cv",
        "min",
        "10 %",
        "25 %",
        "median",
        "75 %",
        "90 %",
        "max",
        "0 … 1",
    )
    table.box, table.header_style = None, "bold"
    for label, key in (("true answers", "true_answers"), ("candidates", "candidates")):
        part = summary[key]
        figures = [part["mean"], part["std"], part["cv"], *part["quantiles"].values()]
        table.add_row(
            label, str(part["count"]), *map(_figure, figures), _histogram(part["histogram"])
        )
    console.print(table)
    if summary["gap"] is not None:
        above, facts = summary["facts_true_above_all_candidates"], summary["facts_with_candidates"]
        console.print(
            f"Gap: the true answer is {summary['gap']:+.3f} above the mean of its candidates, "
            f"above all of them for {above} of {facts} facts."
        )
    for label, key in (("Most", "most_memorised"), ("Least", "least_memorised")):
        facts = ", ".join(f"{row['fact_id']} {row['memo']:.3f}" for row in summary[key])
        console.print(f"{label} memorised: {facts or 'none'}")
    console.print(f"Table: {storage.display(artifact.uri)}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _histogram(counts: list[int]) -> str:
    most = max(counts, default=0)
    return "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in counts) if most else ""


def show_plan(console: Console, found: memory.MemoryPlan) -> None:
    """Prints what each way to train takes."""
    names = (
        "",
        "method",
        "ZeRO",
        "offload",
        "model states",
        "activations",
        "buckets",
        "GPU",
        "CPU",
        "fits",
    )
    table = Table(*names[: None if found.gpu_memory else -1], box=None, header_style="bold")
    for row in found.rows:
        sizes = (
            f"{size / memory.GIB:.2f}"
            for size in (row.states, row.activations, row.buckets, row.gpu, row.cpu)
        )
        cells = ["→" if row.configured else "", memory.NAMES[row.method], str(row.zero_stage)]
        cells += ["CPU" if row.offload else "", *sizes]
        if row.fits is not None:
            cells.append("yes" if row.fits else "no")
        table.add_row(*cells, style="bold" if row.configured else None)
    console.print(
        f"{found.model}: {found.parameters / 1e9:.3g} billion parameters, ZeRO workers: {found.workers}, at most "
        f"{found.gpus_per_node} on a node. Figures are GiB, of a worker's GPU and of a node's CPU memory; "
        "→ is configured.\n"
        f"Activations are those of {found.tokens} tokens: a forward pass of pairs all as long as train.max_length. "
        "CUDA itself and fragmentation come on top.",
        markup=False,
    )
    console.print(table)
    console.print(found.least)
    columns = ("engine of", "model", "GPUs", "weights", "KV cache", "longest", "room", "fits")
    table = Table(*columns[: None if found.gpu_memory else -2], box=None, header_style="bold")
    for one in found.engines:
        cells = [
            one.stage,
            one.model,
            str(one.gpus),
            f"{one.weights / memory.GIB:.2f}",
            f"{one.cache / 1024:.1f}",
        ]
        cells.append(f"{one.context:,}")
        if one.room is not None:
            cells += [f"{one.room:,}", "yes" if one.fits else "no"]
        table.add_row(*cells)
    console.print(
        "Engines: GiB of weights and KiB of cache a token, on each GPU; tokens of the longest sequence"
        + (", and those that there is room for at once." if found.gpu_memory else "."),
    )
    console.print(table)
    if found.left_out:
        console.print(found.left_out, markup=False)


def show_work(console: Console, found: RunPlan) -> None:
    """Prints what each stage has to do, and with rates how long it takes."""
    names = [
        "stage",
        "continuations",
        "tokens read",
        "generated, at most",
        "trained",
        "storage, GiB",
    ]
    table = Table(
        *names,
        *(["units", "hours", "GPU hours"] if found.estimates else []),
        box=None,
        header_style="bold",
    )
    for work, times in zip_longest(found.works, found.estimates):
        cells = [
            f"{count:,.0f}" for count in (work.requests, work.read, work.generated, work.trained)
        ]
        cells.append(f"{work.storage / memory.GIB:.2f}")
        if times:
            cells += [str(times.units), f"{times.seconds / 3600:.2f}", f"{times.gpu_hours:.2f}"]
        table.add_row(work.stage, *cells)
    forget, retain = found.facts["forget"], found.facts["retain"]
    console.print(f"A run on {forget:,} facts to forget and {retain:,} to retain:")
    console.print(table)
    if found.estimates:
        seconds, gpu_hours = (
            sum(getattr(e, name) for e in found.estimates) for name in ("seconds", "gpu_hours")
        )
        console.print(
            f"In all {seconds / 3600:.2f} hours, one stage after the other, and {gpu_hours:.2f} GPU hours."
        )
    else:
        console.print("For times, measure here with --probe, or give --rates FILE.")


# --- metrics ------------------------------------------------------------------------------------


def show_metrics(artifact: Artifact) -> None:
    """Prints the table of metrics, before and after and of the reference model, with 95 % intervals."""
    rows = {(r["suite"], r["metric"], r["model"]): r for r in artifact.table.to_pylist()}
    models = [name for name in EVALUATED_MODELS if any(model == name for _, _, model in rows)]
    table = Table("suite", "metric", *models, "examples", box=None, header_style="bold")
    for suite, metric in dict.fromkeys((suite, metric) for suite, metric, _ in rows):
        cells = [rows.get((suite, metric, model)) for model in models]
        count = next(cell["num_examples"] for cell in cells if cell)
        table.add_row(suite, metric, *map(_cell, cells), str(count))
    Console(width=max(100, Console().width)).print(table)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    value = number(row["value"])
    return (
        value if row["low"] is None else f"{value}  [{number(row['low'])}, {number(row['high'])}]"
    )
