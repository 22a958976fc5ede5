"""The figures over all facts of a `memo` table."""

import json
from pathlib import Path
from statistics import fmean, pstdev, quantiles
from typing import Any

import pyarrow as pa
import pytest

from meow_ray.core import storage
from meow_ray.core.schema import SCHEMAS, TRUE_ANSWER
from meow_ray.stages.memo.summary import summarize

Scores = dict[str, list[float | None]]
"""MEMO by fact: that of the true answer, then those of candidates 0, 1, …"""

FACTS: Scores = {
    "a": [1.0, 0.5, 0.25],
    "b": [0.5, 0.5, None],
    "c": [0.0, 0.125],
    "d": [0.3, None],
    "e": [None, 0.9],
    "f": [0.75],
}
SCORES_OF_TRUE_ANSWERS = [1.0, 0.5, 0.0, 0.3, 0.75]
SCORES_OF_CANDIDATES = [0.5, 0.25, 0.5, 0.125, 0.9]


def memo_table(scores: Scores, **columns: list[Any]) -> pa.Table:
    """Returns a `memo` table with these scores and columns; its other columns are empty."""
    rows = [
        {
            "fact_id": fact,
            "candidate_id": candidate_id,
            "memo": value,
            "num_windows": 0 if value is None else 3,
        }
        for fact, values in scores.items()
        for candidate_id, value in enumerate(values, start=TRUE_ANSWER)
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMAS["memo"])
    for name, values in columns.items():
        index = table.column_names.index(name)
        table = table.set_column(index, name, pa.array(values, table.schema.field(name).type))
    return table


def expected_distribution(values: list[float]) -> dict[str, Any]:
    twentieths = [min(values), *quantiles(values, n=20, method="inclusive"), max(values)]
    levels = {"0.0": 0, "0.1": 2, "0.25": 5, "0.5": 10, "0.75": 15, "0.9": 18, "1.0": 20}
    return {
        "count": len(values),
        "mean": pytest.approx(fmean(values)),
        "std": pytest.approx(pstdev(values)),
        "cv": pytest.approx(pstdev(values) / fmean(values)),
        "quantiles": {level: pytest.approx(twentieths[i]) for level, i in levels.items()},
        "histogram": [
            sum(i / 20 <= v < (i + 1) / 20 or (i == 19 and v == 1) for v in values)
            for i in range(20)
        ],
    }


def test_a_summary_by_hand():
    summary = summarize(memo_table(FACTS))
    assert (summary["answers"], summary["windows"], summary["too_short"]) == (13, 30, 3)
    assert summary["true_answers"] == expected_distribution(SCORES_OF_TRUE_ANSWERS)
    assert summary["candidates"] == expected_distribution(SCORES_OF_CANDIDATES)
    assert summary["gap"] == pytest.approx(fmean([1.0 - 0.375, 0.5 - 0.5, 0.0 - 0.125]))
    assert summary["facts_with_candidates"] == 3
    assert summary["facts_true_above_all_candidates"] == 1


def test_the_manifest_has_these_keys_in_this_order():
    summary = summarize(memo_table(FACTS))
    assert list(summary) == [
        "answers",
        "windows",
        "too_short",
        "true_answers",
        "candidates",
        "mean_cv_over_windows",
        "gap",
        "facts_true_above_all_candidates",
        "facts_with_candidates",
        "most_memorised",
        "least_memorised",
    ]
    keys_of_a_distribution = ["count", "mean", "std", "cv", "quantiles", "histogram"]
    assert list(summary["true_answers"]) == keys_of_a_distribution


def test_a_histogram_has_a_bar_for_each_twentieth_and_the_last_includes_1():
    values = [0.0, 0.049, 0.05, 0.3, 0.999, 1.0, 1.0]
    summary = summarize(memo_table({str(i): [value] for i, value in enumerate(values)}))
    assert summary["true_answers"]["histogram"] == [2, 1, 0, 0, 0, 0, 1, *[0] * 12, 3]


def test_extremes_are_named_by_id_and_ties_are_in_order():
    scores: Scores = {
        **{f"f{i:02}": [i / 20] for i in range(14)},
        "z": [13 / 20],
        "y": [13 / 20],
        "x": [None],
    }
    summary = summarize(memo_table(scores), num_extremes=3)
    assert [row["fact_id"] for row in summary["most_memorised"]] == ["f13", "y", "z"]
    assert summary["least_memorised"] == [{"fact_id": f"f{i:02}", "memo": i / 20} for i in range(3)]
    assert len(summarize(memo_table(scores))["most_memorised"]) == 10


def test_the_variation_over_windows_is_the_mean_over_true_answers():
    table = memo_table({"a": [1.0, 0.5], "b": [0.5], "c": [0.0]}, cv=[0.5, 9.0, 0.25, None])
    assert summarize(table)["mean_cv_over_windows"] == pytest.approx(0.375)


@pytest.mark.parametrize("scores", [{}, {"a": [None, None]}], ids=["no rows", "all too short"])
def test_a_table_without_scores_has_no_figures(scores: Scores):
    summary = summarize(memo_table(scores))
    empty = {"count": 0, "mean": None, "std": None, "cv": None, "histogram": [0] * 20}
    for part in ("true_answers", "candidates"):
        assert summary[part] == empty | {"quantiles": dict.fromkeys(summary[part]["quantiles"])}
    assert summary["windows"] == 0
    assert summary["gap"] is summary["mean_cv_over_windows"] is None
    assert summary["facts_with_candidates"] == summary["facts_true_above_all_candidates"] == 0
    assert summary["most_memorised"] == summary["least_memorised"] == []


def test_scores_of_0_have_no_relative_deviation():
    summary = summarize(memo_table({"a": [0.0, 0.0], "b": [0.0, 0.0]}))
    assert summary["true_answers"]["mean"] == summary["gap"] == 0.0
    assert summary["true_answers"]["cv"] is None


def test_a_summary_can_be_written_as_json_and_is_the_same_from_files(tmp_path: Path):
    table = memo_table(FACTS)
    files = [str(tmp_path / f"{i}.parquet") for i in range(2)]
    for part, file in zip((table.slice(7), table.slice(0, 7)), files, strict=True):
        storage.write_table(part, file)
    assert json.loads(json.dumps(summarize(files))) == summarize(table)


def with_bounds(scores: Scores, bounded: dict[tuple[str, int], tuple[float, float]]) -> pa.Table:
    """Returns a `memo` table with bounds; answers in `bounded` have these, the others no others."""
    table = memo_table(scores)
    keys = list(zip(table["fact_id"].to_pylist(), table["candidate_id"].to_pylist(), strict=True))
    values = table["memo"].to_pylist()
    pairs = [bounded.get(key, (value, value)) for key, value in zip(keys, values, strict=True)]
    for index, name in enumerate(("memo_low", "memo_high")):
        table = table.append_column(name, pa.array([pair[index] for pair in pairs], pa.float64()))
    return table


def test_figures_over_answers_with_bounds_are_left_out():
    scores: Scores = {"a": [1.0, 0.5, None], "b": [0.5, 0.25, None]}
    table = with_bounds(scores, {("a", 1): (0.1, 0.4)})
    summary = summarize(table, has_bounds=True)
    assert summary["bounds"] == {
        "true_answers": {"bounded": 0, "mean_low": 0.75, "mean_high": 0.75},
        "candidates": {
            "bounded": 1,
            "mean_low": pytest.approx((0.5 + 0.1 + 0.25) / 3),
            "mean_high": pytest.approx((0.5 + 0.4 + 0.25) / 3),
        },
    }
    assert summary["too_short"] == 1
    assert summary["true_answers"] == expected_distribution([1.0, 0.5])
    assert (summary["candidates"]["count"], summary["candidates"]["mean"]) == (0, None)
    assert summary["gap"] is None
    assert summary["facts_with_candidates"] == 0
    assert [row["fact_id"] for row in summary["most_memorised"]] == ["a", "b"]


def test_facts_are_not_ranked_by_true_answers_with_bounds():
    table = with_bounds({"a": [None, 0.5], "b": [0.5, 0.25]}, {("a", -1): (0.0, 1.0)})
    summary = summarize(table, has_bounds=True)
    assert summary["most_memorised"] == summary["least_memorised"] == []
    assert summary["mean_cv_over_windows"] is summary["gap"] is None
    assert summary["candidates"] == expected_distribution([0.5, 0.25])


def test_a_summary_of_a_table_with_bounds_of_no_answer_is_the_usual_one():
    none = {"bounded": 0, "mean_low": None, "mean_high": None}
    summary = summarize(with_bounds(FACTS, {}), has_bounds=True)
    bounds = summary.pop("bounds")
    assert summary == summarize(memo_table(FACTS))
    assert bounds["candidates"]["bounded"] == 0
    assert summarize(with_bounds({}, {}), has_bounds=True)["bounds"] == {
        "true_answers": none,
        "candidates": none,
    }
