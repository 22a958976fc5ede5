"""The report's counts of inversion, MEMO and selection, from the manifests of those stages."""

from collections.abc import Mapping
from typing import Any

from meow_ray.core.formatting import format_optional
from meow_ray.core.manifest import Artifact, Manifest

MAX_FACTS = 5
"""Number of facts in the lists of the most and the least memorised ones."""

LabelledValue = tuple[str, str]
"""A label and its value, as the page shows them."""


def stage_counts(inputs: Mapping[str, Artifact]) -> list[LabelledValue]:
    """Returns the counts of the three stages; an artifact from outside has none.

    Args:
        inputs: may have `candidates`, `memo` and `selected`.
    """
    rows: list[LabelledValue] = []
    for name, stage_rows in (
        ("candidates", _inversion_rows),
        ("memo", _memo_rows),
        ("selected", _selection_rows),
    ):
        artifact = inputs.get(name)
        if artifact is not None and artifact.manifest is not None:
            rows += stage_rows(artifact.manifest)
    return rows


def _inversion_rows(manifest: Manifest) -> list[LabelledValue]:
    summary = manifest.summary
    rejects = [f"{rule} {count}" for rule, count in summary["rejected_by_rule"].items()]
    return [
        (
            "Facts with enough inverted facts",
            f"{summary['facts_with_enough']} of {summary['facts']}",
        ),
        (
            "Mean distance of inverted answers to the true answer (1 - ROUGE-L)",
            format_optional(summary["mean_distance"]),
        ),
        (
            "Mean distance between two inverted answers of a fact (1 - ROUGE-L)",
            format_optional(summary["mean_distinctness"]),
        ),
        ("Rejected proposals by rule", ", ".join(rejects) or "none"),
    ]


def _memo_rows(manifest: Manifest) -> list[LabelledValue]:
    summary = manifest.summary
    bounds = summary.get("bounds", {})
    bounded_rows = [
        (
            f"{label} with bounds of MEMO only, bounds of the mean over all of them",
            f"{bounds[part]['bounded']}, {format_optional(bounds[part]['mean_low'])} to "
            f"{format_optional(bounds[part]['mean_high'])}",
        )
        for part, label in (("true_answers", "True answers"), ("candidates", "Inverted answers"))
        if bounds and bounds[part]["bounded"]
    ]
    return [
        *bounded_rows,
        ("MEMO of the true answers: mean, cv", _mean_and_cv(summary["true_answers"])),
        ("MEMO of the inverted answers: mean, cv", _mean_and_cv(summary["candidates"])),
        (
            "MEMO of a true answer above the mean of its inverted answers",
            format_optional(summary["gap"]),
        ),
        ("Most memorised facts", _facts_with_memo(summary["most_memorised"])),
        ("Least memorised facts", _facts_with_memo(summary["least_memorised"])),
        (
            "Answers that are too short to be scored",
            f"{summary['too_short']} of {summary['answers']}",
        ),
    ]


def _mean_and_cv(part: Mapping[str, Any]) -> str:
    return f"{format_optional(part['mean'])}, {format_optional(part['cv'])}"


def _facts_with_memo(rows: list[dict[str, Any]]) -> str:
    facts = [f"{row['fact_id'][:8]} {row['memo']:.3f}" for row in rows[:MAX_FACTS]]
    return ", ".join(facts) or "none"


def _selection_rows(manifest: Manifest) -> list[LabelledValue]:
    summary = manifest.summary
    top_k = manifest.ingredients["spec"]["select"]["top_k"]
    return [
        (
            f"Facts with all {top_k} inverted facts selected (top_k)",
            f"{summary['facts_with_top_k']} of {summary['facts']}",
        ),
        ("Facts with fewer, but at least one", str(summary["facts_with_fewer"])),
        ("Facts with none", str(summary["facts_with_none"])),
    ]
