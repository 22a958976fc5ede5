"""Reads per-example logs of TOFU and of open-unlearning."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate.tofu import (
    OPTIONS,
    Array,
    Results,
    check_same_forget_set,
    normalized_probability,
    official_figures,
    truth_ratio,
)

_OFFICIAL_LOGS = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}
"""Keys of TOFU's `eval_log_aggregated.json`, and the suites that they hold."""

_OPEN_UNLEARNING_KEYS = {
    "forget": ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio"),
    "retain": ("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    "real_authors": ("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    "world_facts": ("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
}
"""Keys of open-unlearning's `TOFU_EVAL.json` per suite: probability, ROUGE, truth ratio."""


def read_log(uri: str) -> dict[str, Results]:
    """Reads per-example results of a model, by suite.

    The file is TOFU's `eval_log_aggregated.json` or open-unlearning's `TOFU_EVAL.json`.

    Raises:
        MeowError: the file cannot be read, is of another kind or incomplete, or holds a value that
            is not a finite number.
    """
    name = storage.display(uri)
    data = _read_json(uri, name)
    if isinstance(data, dict):
        results = _official_results(data, name) or _open_unlearning_results(data, name)
        if results:
            return results
    raise MeowError(
        f"{name}: this is neither an eval_log_aggregated.json of TOFU (which has "
        f"{', '.join(_OFFICIAL_LOGS)}) nor a TOFU_EVAL.json of open-unlearning (which has "
        "forget_truth_ratio). Give one of the two."
    )


def _read_json(uri: str, name: str) -> Any:
    try:
        return json.loads(storage.read_bytes(uri))
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        reason = getattr(error, "msg", "invalid")
        raise MeowError(f"{name}, line {line}: malformed JSON ({reason}).") from None


def aggregate_logs(log: str, retain_log: str | None) -> dict[str, float]:
    """Reads per-example results and aggregates them as TOFU's official code does.

    Args:
        log: the model's results, a path or URI.
        retain_log: results of the retain model; None leaves out forget quality.

    Raises:
        MeowError: a file cannot be read, has no forget set, or the forget sets differ.
    """
    results = read_log(storage.absolute(log))
    if retain_log is None:
        return official_figures(results, None)
    retain_results = read_log(storage.absolute(retain_log))
    for name, suites in ((log, results), (retain_log, retain_results)):
        if "forget" not in suites:
            raise MeowError(
                f"{name}: the file has no results on the forget set, which forget quality "
                "compares. Give results that include it."
            )
    forget = results["forget"]
    check_same_forget_set(len(forget), forget.answers, retain_results["forget"], retain_log)
    return official_figures(results, retain_results)


# --- TOFU -----------------------------------------------------------------------------------------


def _official_results(data: Mapping[str, Any], name: str) -> dict[str, Results]:
    return {
        suite: _official_suite(data[key], suite, f"{name}, {key}")
        for key, suite in _OFFICIAL_LOGS.items()
        if key in data
    }


def _official_suite(log: Any, suite: str, where: str) -> Results:
    loss_by_row = _column(log, "avg_gt_loss", where)
    columns = {
        name: _column(log, name, where)
        for name in ("avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
    }
    for name, column in columns.items():
        if column.keys() != loss_by_row.keys():
            raise MeowError(
                f"{where}: {name} has other rows ({len(column)}) than avg_gt_loss "
                f"({len(loss_by_row)})."
            )
    order = list(loss_by_row)

    def numbers(name: str, column: Mapping[str, Any]) -> Array:
        return np.array([_number(column[row], where, name, row) for row in order])

    loss = numbers("avg_gt_loss", loss_by_row)
    wrong = [
        _numbers(columns["average_perturb_loss"][row], where, "average_perturb_loss", row)
        for row in order
    ]
    answers = _true_answers(log.get("generated_text"), order, where)
    right = numbers("avg_paraphrased_loss", columns["avg_paraphrased_loss"])
    return Results(
        truth_ratio=truth_ratio(right, wrong),
        probability=normalized_probability(loss, wrong) if suite in OPTIONS else np.exp(-loss),
        rougeL_recall=numbers("rougeL_recall", columns["rougeL_recall"]),
        answers=answers,
    )


def _true_answers(texts: Any, order: Sequence[str], where: str) -> tuple[str, ...] | None:
    """Returns the true answers; None if the log has no texts.

    Each row of the log's texts is a list of prompt, reply and true answer.
    """
    if not texts:
        return None
    answers = []
    for row in order:
        entry = texts.get(row) if isinstance(texts, dict) else None
        if not _is_list_of_texts(entry) or len(entry) != 3:
            raise MeowError(
                f"{where}: generated_text of row {row} is not a list of prompt, reply and true "
                "answer."
            )
        answers.append(entry[2])
    return tuple(answers)


def _is_list_of_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


# --- open-unlearning ------------------------------------------------------------------------------


def _open_unlearning_results(data: Mapping[str, Any], name: str) -> dict[str, Results]:
    return {
        suite: _open_unlearning_suite(data, keys, name)
        for suite, keys in _OPEN_UNLEARNING_KEYS.items()
        if any(key in data for key in keys)
    }


def _open_unlearning_suite(
    data: Mapping[str, Any], keys: tuple[str, str, str], where: str
) -> Results:
    def values(key: str, field: str) -> Array | None:
        if key not in data:
            return None
        place = f"{where}, {key}"
        rows = _column(data[key], "value_by_index", place)
        for index, row in rows.items():
            if not isinstance(row, dict) or field not in row:
                raise MeowError(f"{place}: row {index} has no {field}.")
        return np.array([_number(row[field], place, field, index) for index, row in rows.items()])

    probability_key, rouge_key, ratio_key = keys
    ratios = values(ratio_key, "score")
    if ratios is None:
        raise MeowError(f"{where}: {ratio_key} is missing.")
    return Results(
        truth_ratio=ratios,
        probability=values(probability_key, "prob"),
        rougeL_recall=values(rouge_key, "rougeL_recall"),
    )


# --- values of a log ------------------------------------------------------------------------------


def _column(log: Any, name: str, where: str) -> dict[str, Any]:
    column = log.get(name) if isinstance(log, dict) else None
    if not isinstance(column, dict):
        raise MeowError(f"{where}: {name} is missing.")
    if not column:
        raise MeowError(f"{where}: {name} is empty.")
    return column


def _number(value: Any, where: str, name: str, row: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MeowError(f"{where}: {name} of row {row} is not a number ({value!r}).")
    return float(value)


def _numbers(values: Any, where: str, name: str, row: str) -> list[float]:
    if not isinstance(values, list) or not values:
        raise MeowError(f"{where}: {name} of row {row} is not a list of numbers.")
    return [_number(value, where, name, row) for value in values]
