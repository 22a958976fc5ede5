"""Tables that `meow` prints: ids and figures, and the text of facts only when asked for."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from meow_ray.core import storage
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import REJECTS_FILE, Artifact
from meow_ray.core.schema import EVALUATED_MODELS
from meow_ray.core.stage import State
from meow_ray.errors import MeowError
from meow_ray.stages.invert.replies import OTHER_RULES
from meow_ray.stages.invert.rules import RULES
from meow_ray.stages.neighbours.reasons import REASONS

BARS = " ▁▂▃▄▅▆▇█"
STATE_STYLES = {"cached": "green", "stale": "yellow", "missing": "dim"}
PIPE_WIDTH = 240
"""Columns of a table that goes to a pipe: wide enough that nothing is wrapped."""


def console() -> Console:
    """Returns a console for the terminal, or a wide one for a pipe."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(width=PIPE_WIDTH, highlight=False)


def plain_table(*columns: str) -> Table:
    """Returns an empty table without a frame."""
    return Table(*columns, box=None, header_style="bold")


def summary_of(artifact: Artifact | None, name: str) -> dict[str, Any]:
    """Returns the figures in the manifest of an artifact, a copy that may be changed.

    Raises:
        MeowError: the stage has not run, or its artifact was made elsewhere.
    """
    if artifact is None or artifact.manifest is None:
        raise MeowError(
            f"meow show {name}: the stage has not run with this configuration. "
            "`meow status` shows which stages have."
        )
    return dict(artifact.manifest.summary)


def show_states(target: Console, states: list[tuple[str, State]]) -> None:
    """Prints one row per stage: its state against the cache, why, and where the artifact is.

    Args:
        target: the console.
        states: states, each with the label of its round.
    """
    table = plain_table("stage", "state", "reason", "rows", "seconds", "uri", "fingerprint")
    for label, state in states:
        row = state.as_row()
        row["stage"] = f"{label}{row['stage']}"
        row["fingerprint"] = (row["fingerprint"] or "")[:16]
        cells = ("" if value is None else str(value) for value in row.values())
        table.add_row(*cells, style=STATE_STYLES[state.state])
    target.print(table)


# --- candidates -----------------------------------------------------------------------------------


def show_candidates(target: Console, artifact: Artifact, summary: dict[str, Any]) -> None:
    """Prints the counts of inverted facts, why proposals were rejected, and mean distances."""
    enough = summary["facts_with_enough"]
    facts = summary["facts"]
    target.print(
        f"{summary['candidates']} inverted facts in style {summary['style']}. {enough} of {facts} "
        f"facts ({enough / facts:.1%}) have enough, {summary['facts_with_none']} have none."
    )
    if summary["facts_short"]:
        short = ", ".join(f"{fact} {count}" for fact, count in summary["facts_short"].items())
        target.print(f"Facts with too few (the first 20, each with its number): {short}")
    target.print(
        f"Mean distance (1 - ROUGE-L F1): {_figure(summary['mean_distance'])} to the true answer, "
        f"{_figure(summary['mean_distinctness'])} between the candidates of a fact."
    )
    if summary["memo_gap"] is not None:
        gap = f"{summary['memo_gap']:+.3f}"
        target.print(f"MEMO of the true answers is {gap} above the mean of their candidates.")
    table = plain_table("rule", "rejected", "a candidate is rejected if")
    for rule, count in summary["rejected_by_rule"].items():
        table.add_row(rule, str(count), _meaning(rule))
    target.print(table)
    target.print(f"Table: {storage.display(artifact.uri)}")


def _meaning(rule: str) -> str:
    return (RULES[rule].__doc__ or "") if rule in RULES else OTHER_RULES[rule]


def rejected_rows(artifact: Artifact, text: bool) -> list[dict[str, Any]]:
    """Returns the rejected candidates; their text only if `text` is set."""
    table = artifact.extra(REJECTS_FILE)
    return list((table if text else table.drop_columns(["text"])).to_pylist())


def show_rejected(target: Console, rows: list[dict[str, Any]]) -> None:
    """Prints one row per rejected candidate."""
    if not rows:
        target.print("No candidate was rejected.")
        return
    names = [name for name in rows[0] if name != "number"]
    table = plain_table(*names)
    for row in rows:
        table.add_row(*(Text(str(row[name])) for name in names))
    target.print(table)


# --- neighbours and twins -------------------------------------------------------------------------


def show_pairs(target: Console, artifact: Artifact, summary: dict[str, Any]) -> None:
    """Prints the counts of neighbours or twins, and why pairs were rejected."""
    counts = {name: value for name, value in summary.items() if isinstance(value, int)}
    target.print(", ".join(f"{name.replace('_', ' ')} {n}" for name, n in counts.items()))
    table = plain_table("reason", "rejected", "a pair is rejected if")
    for reason, count in summary["rejected_by_reason"].items():
        table.add_row(reason, str(count), REASONS[reason])
    target.print(table)
    target.print(f"Table: {storage.display(artifact.uri)}")


# --- MEMO -----------------------------------------------------------------------------------------


def show_memo(target: Console, artifact: Artifact, summary: dict[str, Any]) -> None:
    """Prints the distribution of MEMO, its extremes, and the gap between truth and candidates."""
    target.print(
        f"MEMO of {summary['answers']} answers over {summary['windows']} windows "
        f"({summary['generations']} generations). "
        f"{summary['too_short']} answers are too short for a window."
    )
    for part, label in (("true_answers", "True answers"), ("candidates", "Candidates")):
        bounds = summary.get("bounds", {}).get(part)
        if bounds and bounds["bounded"]:
            target.print(
                f"{label} with only bounds of MEMO (memo.exact=selection): {bounds['bounded']}. "
                f"The mean of all {label.lower()} is between {bounds['mean_low']:.3f} and "
                f"{bounds['mean_high']:.3f}. Other figures of them are left out."
            )
    quantiles = ("min", "10 %", "25 %", "median", "75 %", "90 %", "max")
    table = plain_table("", "answers", "mean", "std", "cv", *quantiles, "0 … 1")
    for label, key in (("true answers", "true_answers"), ("candidates", "candidates")):
        part = summary[key]
        figures = [part["mean"], part["std"], part["cv"], *part["quantiles"].values()]
        histogram = _histogram(part["histogram"])
        table.add_row(label, str(part["count"]), *map(_figure, figures), histogram)
    target.print(table)
    if summary["gap"] is not None:
        above = summary["facts_true_above_all_candidates"]
        target.print(
            f"Gap: MEMO of the true answer is {summary['gap']:+.3f} above the mean of its "
            f"candidates, and above all of them for {above} of "
            f"{summary['facts_with_candidates']} facts."
        )
    for label, key in (("Most", "most_memorised"), ("Least", "least_memorised")):
        facts = ", ".join(f"{row['fact_id']} {row['memo']:.3f}" for row in summary[key])
        target.print(f"{label} memorised: {facts or 'none'}")
    target.print(f"Table: {storage.display(artifact.uri)}")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _histogram(counts: list[int]) -> str:
    """Returns a bar per count, as high as its share of the largest, rounded up."""
    largest = max(counts, default=0)
    if not largest:
        return ""
    highest_bar = len(BARS) - 1
    return "".join(BARS[-(-count * highest_bar // largest)] for count in counts)


# --- metrics --------------------------------------------------------------------------------------


def show_metrics(artifact: Artifact) -> None:
    """Prints the metrics of each evaluated model with their 95 % intervals."""
    by_key = {
        (row["suite"], row["metric"], row["model"]): row for row in artifact.table.to_pylist()
    }
    evaluated = {model for _, _, model in by_key}
    models = [name for name in EVALUATED_MODELS if name in evaluated]
    table = plain_table("suite", "metric", *models, "examples")
    for suite, metric in dict.fromkeys((suite, metric) for suite, metric, _ in by_key):
        rows = [by_key.get((suite, metric, model)) for model in models]
        count = next(row["num_examples"] for row in rows if row)
        table.add_row(suite, metric, *map(_metric_cell, rows), str(count))
    Console(width=max(100, Console().width)).print(table)


def _metric_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    value = format_number(row["value"])
    if row["low"] is None:
        return value
    return f"{value}  [{format_number(row['low'])}, {format_number(row['high'])}]"
