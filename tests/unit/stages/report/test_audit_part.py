"""The audit on the page of a run."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from meow_ray.config import Report
from meow_ray.core.manifest import MAIN, Artifact
from meow_ray.core.schema import AUDIT_SUMMARY_SCHEMA, REPLIES_SCHEMA, SCHEMAS, VERDICTS_SCHEMA
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.audit.stage import REPLIES_FILE, SUMMARY_FILE, VERDICTS_FILE
from meow_ray.stages.report.page import render
from tests.unit.stages.report.test_page import PLANTED, Page, artifacts, publish

SHARES = ("before", "after", "never_taught", "excess", "excess_low", "excess_high", "margin")
MEASURED = dict(zip(SHARES, (1.0, 0.25, 0.05, 0.2, 0.1, 0.35, 0.125), strict=True))
SUMMARY = [
    {"attack": "direct", "variant": "", "tier": "black box", "num_facts": 40, "num_controls": 120}
    | MEASURED
    | {"false_alarms": 0.05, "verdict": "partly", "reason": "beyond the margin"},
    {"attack": "quantise", "variant": "nf4", "tier": "static weights", "num_facts": 0}
    | {"num_controls": 3, "verdict": "inconclusive", "reason": "no_gpu"},
]


def verdict(fact_id: str, tier: str, verdict: str, share: float | None = 0.4) -> dict[str, object]:
    return {"fact_id": fact_id, "tier": tier, "verdict": verdict, "attack": "direct"} | {
        "variant": "",
        "share_of_before": share,
        "reason": "a reason",
    }


VERDICTS = [
    verdict("a", "black box", "forgotten"),
    verdict("a", "static weights", "partly"),
    verdict("b", "black box", "partly"),
    verdict("b", "static weights", "remembered", 0.9),
    verdict("c", "black box", "forgotten"),
    verdict("c", "static weights", "inconclusive", None),
]


def audited(folder: Path) -> dict[str, Artifact]:
    """Returns the inputs of the page of a run with an audit."""
    replies = [{"reply": "r", "prompt": PLANTED, "text": PLANTED}]
    tables = {
        MAIN: SCHEMAS["audit"].empty_table(),
        SUMMARY_FILE: pa.Table.from_pylist(SUMMARY, schema=AUDIT_SUMMARY_SCHEMA),
        VERDICTS_FILE: pa.Table.from_pylist(VERDICTS, schema=VERDICTS_SCHEMA),
        REPLIES_FILE: pa.Table.from_pylist(replies, schema=REPLIES_SCHEMA),
    }
    return artifacts(folder) | {"audit": publish(folder, "audit", "audit", {}, tables)}


def test_verdicts_are_counted_by_tier(tmp_path: Path):
    page = Page(render(Report(), audited(tmp_path)))
    assert page.tables["verdicts"] == [
        ["The attacker has", "Forgotten", "Partly", "Remembered", "Inconclusive"],
        ["black box", "2", "1", "0", "0"],
        ["static weights", "0", "1", "1", "1"],
    ]


def test_attacks_have_their_excess_with_its_interval(tmp_path: Path):
    rows = Page(render(Report(), audited(tmp_path))).tables["attacks"][1:]
    assert rows[0][:6] == ["direct", "–", "black box", "40", "120", "1.000"]
    assert rows[0][6:] == [
        "0.250",
        "0.050",
        "0.200 (0.100 to 0.350)",
        "0.125",
        "partly",
        "beyond the margin",
    ]
    assert rows[1][:5] == ["quantise", "nf4", "static weights", "0", "3"]
    assert rows[1][5:10] == ["–"] * 5
    assert rows[1][10:] == ["inconclusive", "no_gpu: the attack needs a GPU"]


def test_facts_that_are_not_forgotten_have_their_worst_verdict(tmp_path: Path):
    rows = Page(render(Report(), audited(tmp_path))).tables["not-forgotten"][1:]
    assert rows == [
        ["b", "remembered", "static weights", "direct", "–", "0.900"],
        ["a", "partly", "static weights", "direct", "–", "0.400"],
    ]


def test_replies_are_never_shown(tmp_path: Path):
    assert PLANTED not in render(Report(), audited(tmp_path))


def test_a_run_without_audit_has_no_section(tmp_path: Path):
    without = artifacts(tmp_path / "without")
    assert "attacks" not in Page(render(Report(), without)).tables
    # a table from outside has neither summary nor verdicts
    table = SCHEMAS["audit"].empty_table()
    given = without | {"audit": Artifact("audit", "", "d", value=table)}
    assert "attacks" not in Page(render(Report(), given)).tables
    bare = audited(tmp_path / "bare")
    bare["audit"] = replace(bare["audit"], files=(MAIN,))
    assert "attacks" not in Page(render(Report(), bare)).tables


def test_the_report_reads_the_audit_only_if_it_runs():
    for is_on in (True, False):
        pipeline = Pipeline(load_config(None, [f"pipeline.audit={is_on}".lower()]))
        report = next(stage for stage in pipeline.stages if stage.name == "report")
        assert callable(report.inputs)
        assert ("audit" in report.inputs(pipeline.config)) is is_on
