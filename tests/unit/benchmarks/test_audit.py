"""The benchmark of the audit without its runs: the file, and what is printed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import audit
from meow_ray.config import Audit
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.audit.verdicts import AuditRow, judge

N = 40


def rows(after: float) -> list[AuditRow]:
    return [
        AuditRow(attack, "", "black box", model, "facts", f"f{at}", 1, score)
        for attack in ("direct", "cloze")
        for model, score in (("before", 1.0), ("after", after), ("retain_model", 0.0))
        for at in range(N)
    ]


def figures(after: float) -> dict[str, object]:
    return audit.judged(judge(rows(after), Audit(bootstrap_resamples=50)))


def test_tables_have_the_excess_the_verdicts_and_the_calibration(tmp_path: Path):
    finished = {"NPO": figures(0.0), audit.TARGET: figures(1.0), audit.RETAIN_MODEL: figures(0.0)}
    output = tmp_path / "audit.json"
    output.write_text(json.dumps({"settings": {}, "figures": finished}))
    result = CliRunner().invoke(audit.app, ["table", "--output", str(output)])
    assert result.exception is None
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.output.split("\n")]
    forgotten = "0.000 [0.000, 0.000] forgotten"
    assert ["direct", "", forgotten, "1.000 [1.000, 1.000] remembered", forgotten] in cells
    assert ["NPO", "black box", "40", "0", "0", "0"] in cells
    assert ["target", "black box", "0", "0", "40", "0"] in cells
    assert ["never taught: flagged", "any tier", "0.0% [0.0%, 8.8%]", "at most 5 %"] in cells
    assert ["target: remembered", "black box", "100.0% [91.2%, 100.0%]", "at least 95 %"] in cells


def test_figures_of_other_settings_are_refused(tmp_path: Path):
    output = tmp_path / "audit.json"
    assert audit.read(output, {"attacks": ["direct"]}) == {}
    output.write_text(json.dumps({"settings": {"attacks": ["direct"]}, "figures": {"NPO": {}}}))
    assert audit.read(output, {"attacks": ["direct"]}) == {"NPO": {}}
    with pytest.raises(ValueError, match="other settings"):
        audit.read(output, {"attacks": ["cloze"]})


@pytest.mark.parametrize("name", [name for name in audit.AUDITED if name in audit.METHODS])
def test_each_method_has_a_learning_rate(name: str):
    overrides = audit.method_overrides(name)
    assert load_config(None, [*overrides, "audit.attacks=[direct,cloze]"]).audit.attacks == (
        "direct",
        "cloze",
    )


def test_unknown_models_are_named():
    result = CliRunner().invoke(audit.app, ["run", "--models", "XYZ"])
    assert result.exit_code == 2
    assert "no model 'XYZ'" in result.output
