"""Reads per-example logs of TOFU and of open-unlearning, and aggregates them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import open_unlearning_logs
from meow_ray.stages.evaluate.log_values import column, number, numbers
from meow_ray.stages.evaluate.tofu import (
    OPTIONS,
    Array,
    ModelLog,
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


def read_log(uri: str) -> ModelLog:
    """Reads per-example results of a model.

    The file is TOFU's `eval_log_aggregated.json`, or open-unlearning's `TOFU_EVAL.json` or
    `MUSE_EVAL.json`.

    Raises:
        MeowError: the file cannot be read, is of another kind or incomplete, or holds a value that
            is not a finite number.
    """
    name = storage.display(uri)
    data = _read_json(uri, name)
    if isinstance(data, dict):
        _check_has_examples(data, name)
        suites = _official_results(data, name) or open_unlearning_logs.read_suites(data, name)
        min_k = open_unlearning_logs.read_min_k(data, name)
        if suites or min_k:
            return ModelLog(suites, min_k)
    raise MeowError(
        f"{name}: this is neither an eval_log_aggregated.json of TOFU (which has "
        f"{', '.join(_OFFICIAL_LOGS)}) nor a TOFU_EVAL.json of open-unlearning (which has "
        "forget_truth_ratio). Give one of the two."
    )


def _check_has_examples(data: Mapping[str, Any], name: str) -> None:
    """Refuses files that the two projects write next to the log, by their names."""
    if open_unlearning_logs.is_summary(data):
        raise MeowError(
            f"{name}: this is a summary of open-unlearning, such as TOFU_SUMMARY.json. It has "
            "means, but no results of single examples. Give the TOFU_EVAL.json of the same folder."
        )
    if "avg_gt_loss" in data:
        raise MeowError(
            f"{name}: this is TOFU's log of one set. Give the eval_log_aggregated.json of the same "
            "folder, which has all sets."
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
    results = _read_tofu_results(log)
    if retain_log is None:
        return official_figures(results, None)
    retain_results = _read_tofu_results(retain_log)
    for name, suites in ((log, results), (retain_log, retain_results)):
        if "forget" not in suites:
            raise MeowError(
                f"{name}: the file has no results on the forget set, which forget quality "
                "compares. Give results that include it."
            )
    forget = results["forget"]
    check_same_forget_set(forget.set_size, forget.answers, retain_results["forget"], retain_log)
    return official_figures(results, retain_results)


def _read_tofu_results(log: str) -> Mapping[str, Results]:
    suites = read_log(storage.absolute(log)).suites
    if not suites:
        raise MeowError(f"{log}: the file has no results on TOFU's sets. Give a TOFU_EVAL.json.")
    return suites


# --- TOFU -----------------------------------------------------------------------------------------


def _official_results(data: Mapping[str, Any], name: str) -> dict[str, Results]:
    return {
        suite: _official_suite(data[key], suite, f"{name}, {key}")
        for key, suite in _OFFICIAL_LOGS.items()
        if key in data
    }


def _official_suite(log: Any, suite: str, where: str) -> Results:
    loss_by_row = column(log, "avg_gt_loss", where)
    columns = {
        name: column(log, name, where)
        for name in ("avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
    }
    for name, values in columns.items():
        if values.keys() != loss_by_row.keys():
            raise MeowError(
                f"{where}: {name} has other rows ({len(values)}) than avg_gt_loss "
                f"({len(loss_by_row)})."
            )
    order = list(loss_by_row)

    def in_order(name: str, values: Mapping[str, Any]) -> Array:
        return np.array([number(values[row], where, name, row) for row in order])

    loss = in_order("avg_gt_loss", loss_by_row)
    wrong = [
        numbers(columns["average_perturb_loss"][row], where, "average_perturb_loss", row)
        for row in order
    ]
    answers = _true_answers(log.get("generated_text"), order, where)
    right = in_order("avg_paraphrased_loss", columns["avg_paraphrased_loss"])
    return Results(
        truth_ratio=truth_ratio(right, wrong),
        probability=normalized_probability(loss, wrong) if suite in OPTIONS else np.exp(-loss),
        rougeL_recall=in_order("rougeL_recall", columns["rougeL_recall"]),
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
