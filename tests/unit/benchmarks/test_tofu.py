"""The TOFU benchmark without its runs: configurations, figures, the file, and what is printed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from benchmarks import tofu, tofu_setting
from benchmarks.tofu_figures import Finished, chosen_rate, read_finished, share, taken
from benchmarks.tofu_methods import METHODS, RATES
from benchmarks.tofu_setting import Setting
from meow_ray.config import Config
from meow_ray.pipeline.pipeline import load_config
from meow_ray.stages.train import objectives

needs_tofu = pytest.mark.usefixtures("tofu_files")
FULL = Setting()
OLD_SETTINGS = {name: FULL.settings()[name] for name in ("retain", "rates", "steps", "template")}
"""Some of the settings of a file that an earlier version wrote."""


@pytest.fixture
def tofu_files(shared_data: Callable[[str], Path]) -> Path:
    return shared_data("tofu/retain_perturbed.jsonl")


def configured(name: str, setting: Setting, folder: Path, seed: int = 0) -> Config:
    path = folder / f"{setting.name}.yaml"
    path.write_text(yaml.safe_dump(setting._configuration(folder)))
    return load_config(path, tofu.overrides_of(name, METHODS[name].rates[0], seed, setting))


# --- configurations -------------------------------------------------------------------------------


@needs_tofu
@pytest.mark.parametrize("split", tofu_setting.STEPS)
@pytest.mark.parametrize("name", METHODS)
def test_each_method_takes_the_same_number_of_steps_or_ends_earlier(
    name: str, split: tofu_setting.Split, tmp_path: Path
):
    config = configured(name, Setting(split), tmp_path)
    objective = objectives.configured(config.train)
    steps = tofu_setting.STEPS[split]
    if objective.until == "never_seen":
        assert objective.max_steps == (200 if "up to 200" in name else steps)
        return
    facts = {"forget01": 40, "forget05": 200}[split]
    per_fact = config.select.top_k if "inverted" in objective.roles else 1
    assert facts * per_fact * config.train.epochs == steps * config.train.batch_size


def test_no_method_has_a_larger_grid_than_another():
    assert {method.rates for method in METHODS.values() if len(method.rates) > 1} == {RATES}


def test_the_retain_data_of_a_method_is_that_of_its_objective():
    retained = {name: method.retain_data for name, method in METHODS.items()}
    assert retained["NPO"] == retained["MEOW"] == retained["meow_floor, no neighbours"] == "none"
    assert retained["AltPO"] == retained["NPO, retain data"] == "given"
    assert retained["meow_floor"] == retained["SimNPO, neighbours"] == "neighbours"
    assert retained["meow_floor, retain data and neighbours"] == "both"


@needs_tofu
def test_the_fast_way_generates_almost_nothing_and_trains_the_same(tmp_path: Path):
    full, fast = (configured("AltPO", Setting(fast=fast), tmp_path) for fast in (False, True))
    assert full.evaluate.attacks == ("prefix", "paraphrase")
    assert (fast.evaluate.attacks, fast.evaluate.memo) == ((), False)
    assert fast.evaluate.max_new_tokens == 1
    for section in ("memorize", "ingest", "invert", "memo", "select", "train", "storage"):
        assert getattr(full, section) == getattr(fast, section)


def test_seed_and_rate_of_a_run_are_set():
    overrides = tofu.overrides_of("NPO", "1.0e-4", 2, FULL)
    assert overrides == [
        "train.objective=npo",
        "train.seed=2",
        "select.seed=2",
        "train.learning_rate=1.0e-4",
        "train.epochs=12",
    ]
    assert tofu.overrides_of("meow_floor", "default", 0, Setting("forget05")) == [
        "train.objective=meow_floor",
        "train.seed=0",
        "select.seed=0",
        "train.max_steps=300",
    ]


# --- figures --------------------------------------------------------------------------------------


def row(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high}


def test_figures_are_taken_with_the_interval_of_utility_and_without_those_not_measured():
    rows = {
        ("tofu", "model_utility"): row(0.3, 0.2, 0.4),
        ("tofu", "forget_quality"): row(0.7),
        ("composite", "composite"): row(0.5),
        ("never_seen", "reference_free_forget_quality"): row(0.6),
    }
    figures = taken(rows, FULL)
    assert figures == {
        "model utility": 0.3,
        "model utility low": 0.2,
        "model utility high": 0.4,
        "forget quality": 0.7,
        "reference-free quality": 0.6,
        "composite": 0.5,
    }
    assert taken(rows, Setting(fast=True)) == {"forget quality": 0.7, "reference-free quality": 0.6}


def test_utility_without_rouge_is_the_harmonic_mean_of_six_parts():
    rows = {
        (suite, metric): row(0.5 if metric == "probability" else 0.25)
        for suite in ("retain", "real_authors", "world_facts")
        for metric in ("probability", "truth_ratio")
    }
    assert taken(rows, FULL)["utility without ROUGE"] == pytest.approx(1 / 3)
    del rows["retain", "probability"]
    assert "utility without ROUGE" not in taken(rows, FULL)


def test_utility_is_a_share_of_the_targets_with_its_interval():
    seeds = [
        {"model utility": 0.3, "model utility low": 0.2, "model utility high": 0.4},
        {"model utility": 0.4, "model utility low": 0.3, "model utility high": 0.5},
    ]
    target = {"model utility": 0.4}
    assert share(seeds, target, FULL) == "0.875 ± 0.177 [0.625, 1.125]"
    assert share([{"model utility": 0.2}], target, FULL) == "0.500"
    assert share([{"forget quality": 0.2}], target, FULL) == "–"
    assert share(seeds, {}, FULL) == "–"


# --- the file and the rule ------------------------------------------------------------------------


def grid(*cells: tuple[float, float]) -> Finished:
    """Returns MEOW's quality and utility at each rate; the target has a utility of 1."""
    figures = [{"forget quality": quality, "model utility": utility} for quality, utility in cells]
    runs = {rate: {"0": cell} for rate, cell in zip(RATES, figures, strict=False)}
    return Finished({"target": {"model utility": 1.0}}, {"MEOW": runs})


def test_the_rule_takes_the_best_quality_at_95_percent_of_the_utility():
    assert chosen_rate(grid((0.1, 1.0), (0.2, 0.95), (0.9, 0.94)), "MEOW", FULL) == RATES[1]
    assert chosen_rate(grid((0.1, 0.5), (0.2, 0.7), (0.9, 0.6)), "MEOW", FULL) == RATES[1]
    assert chosen_rate(grid((0.1, 1.0), (0.2, 0.95)), "MEOW", FULL) is None


def write_file(settings: dict[str, Any], finished: Finished, folder: Path) -> None:
    figures = {"models": finished.models, "runs": finished.runs}
    (folder / "tofu.json").write_text(json.dumps({"settings": settings, "figures": figures}))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tofu_setting, "RESULTS", tmp_path)
    return tmp_path


def test_a_file_with_fewer_settings_counts_and_another_setting_is_refused(results: Path):
    finished = grid((0.1, 1.0))
    write_file(OLD_SETTINGS, finished, results)
    assert read_finished(FULL) == finished
    write_file(OLD_SETTINGS | {"retain": 80, "steps": 5}, finished, results)
    with pytest.raises(ValueError, match=r"measured with other settings \(retain, steps\)"):
        read_finished(FULL)
    assert read_finished(Setting(fast=True)) == Finished({}, {})


def test_each_split_and_way_has_a_file_of_its_own():
    names = {Setting(split, fast).name for split in tofu_setting.STEPS for fast in (False, True)}
    assert names == {"tofu", "tofu_fast", "tofu_forget05", "tofu_forget05_fast"}


def test_known_figures_of_the_target_stay_and_new_ones_are_added():
    finished = grid()
    finished.add_models({"target": {"model utility": 2.0, "composite": 0.1}, "retain model": {}})
    assert finished.models == {
        "target": {"model utility": 1.0, "composite": 0.1},
        "retain model": {},
    }


def test_only_a_refresh_measures_a_run_again_that_lacks_a_figure():
    finished = grid((0.1, 1.0))
    assert tofu._is_wanted(finished, "MEOW", RATES[1], 0, FULL, refresh=False)
    assert not tofu._is_wanted(finished, "MEOW", RATES[0], 0, FULL, refresh=False)
    assert tofu._is_wanted(finished, "MEOW", RATES[0], 0, FULL, refresh=True)


# --- what is printed ------------------------------------------------------------------------------


def printed(*arguments: str) -> str:
    done = CliRunner().invoke(tofu.app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_tables_show_dashes_for_what_old_files_lack(results: Path):
    write_file(OLD_SETTINGS, grid((0.1, 1.0), (0.2, 0.96), (0.9, 0.94)), results)
    lines = printed("table").splitlines()
    row_of_meow = next(line for line in lines if line.startswith("| MEOW "))
    cells = [cell.strip() for cell in row_of_meow.strip("|").split("|")]
    assert cells[:7] == ["MEOW", "none", "1.0e-4", "1", "0.200", "–", "0.960"]
    assert "0.100 / 1.000" in next(line for line in reversed(lines) if line.startswith("| MEOW "))


def test_the_file_in_the_repository_can_be_shown():
    assert "| AltPO " in printed("table")


def test_the_rank_correlation_is_over_runs_with_both_figures(results: Path):
    finished = grid((0.1, 1.0), (0.2, 0.96), (0.9, 0.94))
    write_file(OLD_SETTINGS, finished, results)
    assert printed("agreement") == "0 runs have both figures; a rank correlation needs three.\n"
    for rate, value in zip(RATES, (0.3, 0.2, 0.8), strict=True):
        finished.runs["MEOW"][rate]["0"]["reference-free quality"] = value
    write_file(OLD_SETTINGS, finished, results)
    assert "rank correlation over 3 runs: 0.500" in printed("agreement")


def test_an_unknown_method_is_refused_before_anything_runs(results: Path):
    done = CliRunner().invoke(tofu.app, ["run", "--methods=MEOW;nonsense"])
    assert done.exit_code == 2
    assert "no method 'nonsense'" in done.output
