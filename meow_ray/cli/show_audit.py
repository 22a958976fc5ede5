"""What `meow audit` prints: the summary of the attacks, and how many facts have which verdict."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from meow_ray.cli.show import plain_table
from meow_ray.core import storage
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import Artifact
from meow_ray.stages.audit.reasons import explained
from meow_ray.stages.audit.stage import SUMMARY_FILE
from meow_ray.stages.audit.verdicts import VERDICTS

SHARES = ("before", "after", "never_taught")


def show_audit(target: Console, artifact: Artifact) -> None:
    """Prints one row per attack and variant, one row per tier, and where the tables are."""
    table = plain_table(
        "attack", "variant", "tier", "facts", "controls", "before", "after", "never taught",
        "excess", "margin", "false alarms", "verdict", "reason",
    )  # fmt: skip
    for row in artifact.extra(SUMMARY_FILE).to_pylist():
        table.add_row(
            row["attack"],
            row["variant"],
            row["tier"],
            str(row["num_facts"]),
            str(row["num_controls"]),
            *(_number(row[name]) for name in SHARES),
            _excess(row),
            _number(row["margin"]),
            _number(row["false_alarms"]),
            row["verdict"],
            explained(row["reason"]),
        )
    target.print(table)
    assert artifact.manifest is not None
    target.print(_verdict_table(artifact.manifest.summary["verdicts"]))
    judge = artifact.manifest.summary.get("judge")
    if judge:
        target.print(_judge_line(judge), markup=False)
    target.print(f"Audit:  {storage.display(artifact.uri)}")


def _verdict_table(by_tier: Mapping[str, Mapping[str, int]]) -> Any:
    table = plain_table("facts by tier", *VERDICTS)
    for tier, counts in by_tier.items():
        table.add_row(tier, *(str(counts.get(verdict, 0)) for verdict in VERDICTS))
    return table


def _judge_line(judge: Mapping[str, Any]) -> str:
    """Returns the judge, the replies without a verdict, and the shares that give facts away."""
    shares = "".join(f", {side} {_number(share)}" for side, share in judge["gives_away"].items())
    return (
        f"Judge:  {judge['model']}, {judge['missing']} of {judge['replies']} replies without a "
        f"verdict; share that gives a fact away: {shares.removeprefix(', ') or 'none'}"
    )


def _excess(row: Mapping[str, Any]) -> str:
    excess = _number(row["excess"])
    if row["excess_low"] is None:
        return excess
    return f"{excess}  [{_number(row['excess_low'])}, {_number(row['excess_high'])}]"


def _number(value: float | None) -> str:
    return "–" if value is None else format_number(value)
