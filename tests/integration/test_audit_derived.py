"""Attacks of `meow audit` that derive models, through Ray on the tiny models of `test_audit`."""

from collections import Counter
from pathlib import Path

import pytest

from meow_ray.stages.audit.stage import SUMMARY_FILE
from tests.integration.test_audit import (  # noqa: F401 - fixtures
    PEOPLE,
    STRANGERS,
    audit,
    inputs,
    models,
    own_cluster,
    rows,
)

pytestmark = pytest.mark.slow

SETTINGS = (
    "audit.attacks=[quantise,prune,relearn]",
    "audit.quantise=[int8,int4,nf4]",
    "audit.prune=[magnitude,wanda,gradient]",
    "audit.sparsities=[0.05,0.5]",
    "audit.relearn.steps=[1,4]",
    "audit.relearn.learning_rate=1e-4",
    "audit.relearn.batch_size=2",
)
VARIANTS = {
    "quantise": ["int8", "int4", "nf4"],
    "prune": [f"{name} {s} %" for name in ("magnitude", "wanda", "gradient") for s in (5, 50)],
    "relearn": [f"{name}, step {step}" for name in ("facts", "unrelated") for step in (1, 4)],
}
SIDES = {
    ("before", "facts"): len(PEOPLE),
    ("before", "twins"): len(STRANGERS),
    ("after", "facts"): len(PEOPLE),
}


def test_derived_models_are_asked_once(
    inputs: list[str],  # noqa: F811
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    done = audit(tmp_path, inputs, *SETTINGS)
    assert done.exit_code == 0, done.output
    found = rows(tmp_path)
    counts = Counter((r["attack"], r["variant"], r["model"], r["group"]) for r in found)
    assert counts == {
        (attack, variant, *side): number
        for attack, variants in VARIANTS.items()
        for variant in variants
        for side, number in SIDES.items()
    }
    missing = {row["variant"] for row in found if row["score"] is None}
    assert missing in (set(), {"nf4"})
    assert {row["reason"] for row in found} == {None, *(["no_gpu"] if missing else [])}
    summary = {row["variant"]: row["reason"] for row in rows(tmp_path, SUMMARY_FILE)}
    assert (summary["nf4"] == "no_gpu") == bool(missing)
    for row in found:
        assert (row["weights"] is None) == (row["score"] is None)
    shown = capfd.readouterr().out
    assert shown.count("nf4 needs a GPU") == 2 * len(missing)
    assert "6 of 6" in shown
    int8 = [row["score"] for row in found if row["variant"] == "int8"]
    assert sum(int8) == pytest.approx(len(PEOPLE), abs=1.0)
    assert not any(town in done.output + shown for towns in PEOPLE.values() for town in towns)

    again = audit(tmp_path, inputs, *SETTINGS, "--force")
    assert again.exit_code == 0, again.output
    assert " of " not in capfd.readouterr().out  # no job runs again, so there is no progress
    assert rows(tmp_path) == found
