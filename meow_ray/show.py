"""What `meow show` prints of a finished stage, from its manifest alone: ids and figures, never the text of facts."""

from typing import Any

from rich.console import Console
from rich.table import Table

from meow_ray import storage
from meow_ray.errors import MeowError
from meow_ray.stage import Artifact

BARS = " ▁▂▃▄▅▆▇█"


def summary_of(artifact: Artifact | None, stage: str) -> dict[str, Any]:
    """Returns the figures that a stage left in its manifest.

    Raises:
        MeowError: the stage has not run, or its artefact was made elsewhere.
    """
    if artifact is None or artifact.manifest is None:
        raise MeowError(f"Stage {stage} has not run with this configuration; `meow status` shows what is there.")
    return artifact.manifest.summary


def show_memo(console: Console, artifact: Artifact, summary: dict[str, Any]) -> None:
    """Prints the distribution of MEMO, its extremes, and the gap between truth and candidates."""
    console.print(f"MEMO of {summary['answers']} answers over {summary['windows']} windows", end="")
    console.print(f" ({summary['generations']} generations), {summary['too_short']} answers too short for a window.")
    table = Table("", "answers", "mean", "std", "cv", "min", "10 %", "25 %", "median", "75 %", "90 %", "max", "0 … 1")
    table.box, table.header_style = None, "bold"
    for label, key in (("true answers", "true_answers"), ("candidates", "candidates")):
        part = summary[key]
        figures = [part["mean"], part["std"], part["cv"], *part["quantiles"].values()]
        table.add_row(label, str(part["count"]), *map(_figure, figures), _histogram(part["histogram"]))
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
