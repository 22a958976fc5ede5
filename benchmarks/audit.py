"""Audits methods on TOFU with SmolLM2-135M, and checks the calibration of the audit.

Run `python -m benchmarks.audit run`, and `python -m benchmarks.audit table` for the tables.

The setting is that of `benchmarks.tofu` on forget01; each method takes the learning rate that
`benchmarks.tofu` chose for it. The never-taught control of a method is the retain model. Two models
that no method has touched check the calibration:

- the target, which knows the facts: at least 95 % of them should be remembered;
- the retain model, which was never taught them, with twins as the control: at most 5 % of the facts
  may be partly or remembered on any tier.

`run` resumes where it stopped: finished audits are in the file, and the models and audits below
`--root` are cached.
"""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from tabulate import tabulate

from benchmarks.common import run_script, write
from benchmarks.host import RESULTS
from benchmarks.tofu import DEFAULT_ROOT, overrides_of
from benchmarks.tofu_figures import chosen_rate, read_finished
from benchmarks.tofu_methods import METHODS, OWN_RATE
from benchmarks.tofu_setting import Setting
from meow_ray.config import Audit
from meow_ray.config.auditing import ATTACKS
from meow_ray.core import storage
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import Artifact
from meow_ray.pipeline.graph import STAGES_TO_AUDIT
from meow_ray.pipeline.pipeline import Pipeline, load_config
from meow_ray.stages.audit.estimators import clopper_pearson
from meow_ray.stages.audit.verdicts import VERDICTS, AuditRow, Judgement, judge

app = typer.Typer(
    help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False
)

SETTING = Setting()
TARGET, RETAIN_MODEL = "target", "retain model"
AUDITED = ("MEOW", "meow_floor", "NPO", "GradDiff", "IDK", "AltPO", TARGET, RETAIN_MODEL)
"""The methods, and the two models that check the calibration."""
Root = Annotated[Path, typer.Option(help="Folder of data and storage root, as `benchmarks.tofu`.")]
Output = Annotated[Path, typer.Option(help="File with the figures.")]
DEFAULT_OUTPUT = RESULTS / "audit.json"
ALL = ";".join(AUDITED)


@app.command()
def run(
    root: Root = DEFAULT_ROOT,
    output: Output = DEFAULT_OUTPUT,
    models: Annotated[str, typer.Option(help="What is audited, separated by semicolons.")] = ALL,
    attacks: Annotated[str, typer.Option(help="Attacks, separated by commas.")] = ",".join(ATTACKS),
    minutes: Annotated[float, typer.Option(help="Start no audit after this time.")] = 1e9,
) -> None:
    """Audits the methods and the two models; skips those that are in the file."""
    names = [name.strip() for name in models.split(";")]
    unknown = [name for name in names if name not in AUDITED]
    if unknown:
        raise typer.BadParameter(f"no model {unknown[0]!r}. Choose from {', '.join(AUDITED)}.")
    settings = {"attacks": attacks.split(","), **SETTING.settings()}
    finished = read(output, settings)
    config = SETTING.write_config(root)
    deadline = time.monotonic() + 60 * minutes
    for name in names:
        if name not in finished and time.monotonic() < deadline:
            print(name, flush=True)
            finished[name] = _audited(config, name, settings["attacks"])
            write("audit", settings, finished, output)


@app.command()
def table(output: Output = DEFAULT_OUTPUT) -> None:
    """Prints the excess of each attack, the verdicts by tier, and the calibration."""
    finished = read(output)
    for title, heads, rows in (
        ("Excess over never taught, with its 95 % interval:", *excess_table(finished)),
        ("Facts by verdict:", *verdict_table(finished)),
        ("Calibration:", *calibration_table(finished)),
    ):
        print(f"{title}\n\n{tabulate(rows, heads, tablefmt='github', disable_numparse=True)}\n")


# --- runs -----------------------------------------------------------------------------------------


def _audited(config: Path, name: str, attacks: Sequence[str]) -> dict[str, Any]:
    """Makes a model unless it is cached, audits it, and returns its figures."""
    overrides = [f"audit.attacks=[{','.join(attacks)}]"]
    if name in METHODS:
        overrides += method_overrides(name)
        run_script("meow.py", "--config", str(config), "--until", "train", *overrides)
    given = {"model": _model(config, name, overrides)}
    if name == RETAIN_MODEL:
        # its control must be other facts than its own
        overrides.append("evaluate.retain_model=null")
    inputs = [f"--input={artifact}={uri}" for artifact, uri in given.items()]
    run_script("audit.py", "--config", str(config), *inputs, *overrides)
    settings = load_config(config, [*overrides, "pipeline.audit=true"])
    audit = Pipeline(settings, given, stages=STAGES_TO_AUDIT).artifact("audit")
    assert audit is not None
    assert audit.manifest is not None
    return figures_of(audit, settings.audit) | {"minutes": audit.manifest.seconds / 60}


def method_overrides(name: str) -> list[str]:
    """Returns the overrides of a method on seed 0, at its learning rate."""
    rate: str | None = OWN_RATE
    if METHODS[name].rates != (OWN_RATE,):
        rate = _rate_of(name)
    if rate is None:
        raise typer.BadParameter(
            f"{name} has no learning rate yet. Run `python -m benchmarks.tofu run` first."
        )
    return overrides_of(name, rate, 0, SETTING)


def _rate_of(name: str) -> str | None:
    """Returns the learning rate that `benchmarks.tofu` chose, in bfloat16 if not in float32."""
    for setting in (SETTING, replace(SETTING, dtype="bfloat16")):
        rate = chosen_rate(read_finished(setting), name, setting)
        if rate is not None:
            return rate
    return None


def _model(config: Path, name: str, overrides: Sequence[str]) -> str:
    """Returns the folder of the model that is audited."""
    settings = load_config(config, overrides)
    if name == RETAIN_MODEL:
        assert settings.evaluate.retain_model is not None
        return settings.evaluate.retain_model
    found = Pipeline(settings).artifact("target" if name == TARGET else "model")
    assert found is not None
    return storage.display(found.uri)


# --- figures --------------------------------------------------------------------------------------


def figures_of(audit: Artifact, spec: Audit) -> dict[str, Any]:
    """Returns what the table shows of an audit, judged by its rows."""
    columns = audit.table.select(list(AuditRow._fields)).to_pylist()
    return judged(judge([AuditRow(**row) for row in columns], spec))


def judged(judgement: Judgement) -> dict[str, Any]:
    """Returns the summary, the verdicts by tier, and the share of facts that are flagged."""
    by_tier: dict[str, Counter[str]] = {}
    for row in judgement.verdicts:
        by_tier.setdefault(row["tier"], Counter())[row["verdict"]] += 1
    return {
        "summary": judgement.summary,
        "verdicts": {
            tier: {verdict: counts[verdict] for verdict in VERDICTS}
            for tier, counts in by_tier.items()
        },
        "flagged": judgement.flagged(),
    }


def read(output: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the figures of all finished audits.

    Raises:
        ValueError: they were measured with other settings.
    """
    if not output.exists():
        return {}
    document = json.loads(output.read_text())
    if settings is not None and document["settings"] != settings:
        raise ValueError(f"{output}: measured with other settings. Move the file away.")
    figures: dict[str, Any] = document["figures"]
    return figures


# --- tables ---------------------------------------------------------------------------------------

Table = tuple[Sequence[str], list[list[str]]]
"""Heads and rows."""


def excess_table(finished: Mapping[str, Any]) -> Table:
    """Returns one row per attack and variant, with the excess of each model and its verdict."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for name, figures in finished.items():
        for row in figures["summary"]:
            cells.setdefault((row["attack"], row["variant"]), {})[name] = _excess(row)
    rows = [
        [*probe, *(by_name.get(name, "–") for name in finished)] for probe, by_name in cells.items()
    ]
    return ("attack", "variant", *finished), rows


def verdict_table(finished: Mapping[str, Any]) -> Table:
    """Returns one row per model and tier, with the number of facts by verdict."""
    rows = [
        [name, tier, *(str(counts[verdict]) for verdict in VERDICTS)]
        for name, figures in finished.items()
        for tier, counts in figures["verdicts"].items()
    ]
    return ("model", "tier", *VERDICTS), rows


def calibration_table(finished: Mapping[str, Any]) -> Table:
    """Returns what the two models without unlearning should show, and what they show."""
    rows = []
    if RETAIN_MODEL in finished:
        for tier, share in finished[RETAIN_MODEL]["flagged"].items():
            place = "any tier" if tier == "any" else tier
            number = _num_facts(finished[RETAIN_MODEL])
            interval = _with_interval(round(share * number), number)
            rows.append(["never taught: flagged", place, interval, "at most 5 %"])
    if TARGET in finished:
        for tier, counts in finished[TARGET]["verdicts"].items():
            interval = _with_interval(counts["remembered"], sum(counts.values()))
            rows.append(["target: remembered", tier, interval, "at least 95 %"])
    return ("figure", "tier", "share", "aim"), rows


def _num_facts(judged: Mapping[str, Any]) -> int:
    """Returns the number of facts that were judged; each tier has all of them."""
    return max((sum(counts.values()) for counts in judged["verdicts"].values()), default=0)


def _with_interval(number: int, total: int) -> str:
    """Returns a share with its exact 95 % interval."""
    low, high = clopper_pearson(number, total)
    return f"{number / total:.1%} [{low:.1%}, {high:.1%}]"


def _excess(row: Mapping[str, Any]) -> str:
    if row["excess"] is None:
        return str(row["verdict"])
    value, low, high = (
        format_number(row[name]) for name in ("excess", "excess_low", "excess_high")
    )
    return f"{value} [{low}, {high}] {row['verdict']}"


if __name__ == "__main__":
    app()
