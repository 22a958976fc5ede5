"""Per-example logs of TOFU and of open-unlearning."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from meow_ray.core import storage
from meow_ray.errors import MeowError
from meow_ray.stages.evaluate import tofu
from meow_ray.stages.evaluate.tofu import (
    OPTIONS,
    Array,
    Results,
    normalized_probability,
    truth_ratio,
)

_OFFICIAL = {
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors",
    "eval_real_world_wo_options.json": "world_facts",
}


_OPEN_UNLEARNING = {
    "forget": ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "forget_truth_ratio"),
    "retain": ("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    "real_authors": ("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    "world_facts": ("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
}


def read_log(uri: str) -> dict[str, Results]:
    """Reads per-example results: TOFU's `eval_log_aggregated.json`, or open-unlearning's `TOFU_EVAL.json`.

    Raises:
        MeowError: the file cannot be read, is of another kind, lacks what is needed, or holds what is no number.
    """
    name = storage.display(uri)
    try:
        data = json.loads(storage.read_bytes(uri))
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise MeowError(
            f"{name}, line {line}: malformed JSON ({getattr(error, 'msg', 'invalid')})."
        ) from None
    if isinstance(data, dict) and any(key in data for key in _OFFICIAL):
        return {
            suite: _official(data[key], suite, f"{name}, {key}")
            for key, suite in _OFFICIAL.items()
            if key in data
        }
    if isinstance(data, dict):
        found = {
            suite: _open_unlearning(data, keys, name)
            for suite, keys in _OPEN_UNLEARNING.items()
            if any(key in data for key in keys)
        }
        if found:
            return found
    raise MeowError(
        f"{name}: neither an eval_log_aggregated.json of TOFU (it has {', '.join(_OFFICIAL)}) nor a TOFU_EVAL.json of "
        "open-unlearning (it has forget_truth_ratio)."
    )


def _official(log: Any, suite: str, where: str) -> Results:
    loss = _column(log, "avg_gt_loss", where)
    right = _column(log, "avg_paraphrased_loss", where)
    wrong = _column(log, "average_perturb_loss", where)
    recall = _column(log, "rougeL_recall", where)
    for name, column in (
        ("avg_paraphrased_loss", right),
        ("average_perturb_loss", wrong),
        ("rougeL_recall", recall),
    ):
        if column.keys() != loss.keys():
            raise MeowError(
                f"{where}: {name} has other rows than avg_gt_loss ({len(column)} and {len(loss)})."
            )
    order = list(loss)
    own = np.array([_number(loss[i], where, "avg_gt_loss", i) for i in order])
    others = [_numbers(wrong[i], where, "average_perturb_loss", i) for i in order]
    texts = _texts(log.get("generated_text"), order, where)
    return Results(
        truth_ratio(
            np.array([_number(right[i], where, "avg_paraphrased_loss", i) for i in order]), others
        ),
        normalized_probability(own, others) if suite in OPTIONS else np.exp(-own),
        np.array([_number(recall[i], where, "rougeL_recall", i) for i in order]),
        texts,
    )


def _texts(found: Any, order: Sequence[str], where: str) -> tuple[str, ...] | None:
    """Returns the true answers, the third text of a row behind the prompt and the reply; None if there are none."""
    if not found:
        return None
    answers = []
    for i in order:
        row = found.get(i) if isinstance(found, dict) else None
        if (
            not isinstance(row, list)
            or len(row) != 3
            or not all(isinstance(text, str) for text in row)
        ):
            raise MeowError(
                f"{where}: generated_text of row {i} is not a list of prompt, reply and true answer."
            )
        answers.append(row[2])
    return tuple(answers)


def _open_unlearning(data: Mapping[str, Any], keys: tuple[str, str, str], where: str) -> Results:
    def values(key: str, field: str) -> Array | None:
        if key not in data:
            return None
        place = f"{where}, {key}"
        rows = _column(data[key], "value_by_index", place)
        for i, row in rows.items():
            if not isinstance(row, dict) or field not in row:
                raise MeowError(f"{place}: row {i} has no {field}.")
        return np.array([_number(row[field], place, field, i) for i, row in rows.items()])

    ratios = values(keys[2], "score")
    if ratios is None:
        raise MeowError(f"{where}: {keys[2]} is missing.")
    return Results(ratios, values(keys[0], "prob"), values(keys[1], "rougeL_recall"))


def _column(log: Any, name: str, where: str) -> dict[str, Any]:
    column = log.get(name) if isinstance(log, dict) else None
    if not isinstance(column, dict):
        raise MeowError(f"{where}: {name} is missing.")
    if not column:
        raise MeowError(f"{where}: {name} is empty.")
    return column


def _number(value: Any, where: str, name: str, row: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MeowError(f"{where}: {name} of row {row} is {value!r}, not a number.")
    return float(value)


def _numbers(values: Any, where: str, name: str, row: str) -> list[float]:
    if not isinstance(values, list) or not values:
        raise MeowError(f"{where}: {name} of row {row} is not a list of numbers.")
    return [_number(value, where, name, row) for value in values]


def aggregate_logs(log: str, retain_log: str | None) -> dict[str, float]:
    """Reads per-example results and aggregates them as TOFU's official code does.

    Args:
        log: the model's results, a path or URI.
        retain_log: those of the model that never saw the forget set; None leaves out forget quality.

    Raises:
        MeowError: a file cannot be read, has no forget set, or the forget sets differ.
    """
    results = read_log(storage.absolute(log))
    if retain_log is None:
        return tofu.figures(results, None)
    retain_results = read_log(storage.absolute(retain_log))
    for name, suites in ((log, results), (retain_log, retain_results)):
        if "forget" not in suites:
            raise MeowError(f"{name}: it has no forget set, which forget quality compares.")
    forget = results["forget"]
    tofu.check_reference(len(forget), forget.answers, retain_results["forget"], retain_log)
    return tofu.figures(results, retain_results)
