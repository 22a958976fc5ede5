"""Reads the per-example logs of open-unlearning: `TOFU_EVAL.json`, and Min-K % of any benchmark.

Two kinds of truth ratios are in circulation under one key: wrong / true, which is TOFU's ratio R,
and true / (true + wrong), which the aggregator `prob_mean` writes. Both become R here.
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from meow_ray.errors import MeowError
from meow_ray.stages.evaluate.log_values import column, is_number, number
from meow_ray.stages.evaluate.tofu import Array, MinKResult, Results

EPSILON = 1e-10
"""What open-unlearning adds to denominators."""

MIN_K = "mia_min_k"
"""The key of the attack by Min-K %."""

MIN_SHARES = 30
"""The least number of scores that are taken for shares by their spread."""
MAX_SPREAD_OF_SHARES = 0.3
"""The largest standard deviation of the logarithm of scores that are taken for shares.

On the forget sets of TOFU's published logs it is 0.20 to 0.25 for shares. For ratios it is 0.54 to
0.64, and 0.39 to 0.57 for those that are not above 1.
"""

Kind = Literal["ratio", "share"]
"""A score is wrong / true, or true / (true + wrong)."""

_LOGGER = logging.getLogger(__name__)


class _Keys(NamedTuple):
    """The keys of a suite."""

    probability: str
    rouge: str
    truth_ratio: str
    right: str
    """The losses of the right answers that the truth ratio compares."""
    wrong: str
    """The losses of the wrong answers."""


_SUITES = {
    "forget": _Keys(
        "forget_Q_A_Prob",
        "forget_Q_A_ROUGE",
        "forget_truth_ratio",
        "forget_Q_A_PARA_Prob",
        "forget_Q_A_PERT_Prob",
    ),
    "retain": _Keys(
        "retain_Q_A_Prob",
        "retain_Q_A_ROUGE",
        "retain_Truth_Ratio",
        "retain_Q_A_PARA_Prob",
        "retain_Q_A_PERT_Prob",
    ),
    "real_authors": _Keys(
        "ra_Q_A_Prob_normalised",
        "ra_Q_A_ROUGE",
        "ra_Truth_Ratio",
        "ra_Q_A_Prob",
        "ra_Q_A_PERT_Prob",
    ),
    "world_facts": _Keys(
        "wf_Q_A_Prob_normalised",
        "wf_Q_A_ROUGE",
        "wf_Truth_Ratio",
        "wf_Q_A_Prob",
        "wf_Q_A_PERT_Prob",
    ),
}


def is_summary(data: Mapping[str, Any]) -> bool:
    """Tells whether a file has only means, as `TOFU_SUMMARY.json` and `MUSE_SUMMARY.json` have."""
    return bool(data) and all(value is None or is_number(value) for value in data.values())


def read_suites(data: Mapping[str, Any], name: str) -> dict[str, Results]:
    """Returns the results of each of TOFU's sets that a log has.

    Raises:
        MeowError: a set has no truth ratios, a value is not a number, or it cannot be told what the
            truth ratios are.
    """
    return {
        suite: _read_suite(data, suite, keys, name)
        for suite, keys in _SUITES.items()
        if any(key in data for key in (keys.probability, keys.rouge, keys.truth_ratio))
    }


def read_min_k(data: Mapping[str, Any], name: str) -> MinKResult | None:
    """Returns the result of membership inference by Min-K %; None if the log has none."""
    log = data.get(MIN_K)
    if not isinstance(log, dict):
        return None
    area = log.get("auc", log.get("agg_value"))
    if not is_number(area) or not 0 <= area <= 1:
        raise MeowError(f"{name}, {MIN_K}: auc is not a number between 0 and 1 ({area!r}).")
    return MinKResult(
        auc=float(area),
        num_forget=_number_of_rows(log.get("forget")),
        num_holdout=_number_of_rows(log.get("holdout")),
    )


def _number_of_rows(log: Any) -> int | None:
    rows = log.get("value_by_index") if isinstance(log, dict) else None
    return len(rows) if isinstance(rows, dict) else None


def _read_suite(data: Mapping[str, Any], suite: str, keys: _Keys, name: str) -> Results:
    ratios = _truth_ratios(data, suite, keys, name)
    counts = [_number_of_rows(data.get(key)) or 0 for key in keys]
    return Results(
        truth_ratio=ratios,
        probability=_values(data, keys.probability, "prob", name),
        rougeL_recall=_values(data, keys.rouge, "rougeL_recall", name),
        num_rows=max(counts),
    )


def _values(data: Mapping[str, Any], key: str, field: str, name: str) -> Array | None:
    """Returns a field of all rows that have one; None if the log lacks the key.

    open-unlearning writes None for an example that it could not measure, and its means leave it
    out.
    """
    if key not in data:
        return None
    where = f"{name}, {key}"
    values = []
    for index, row in column(data[key], "value_by_index", where).items():
        if row is None:
            continue
        if not isinstance(row, dict) or field not in row:
            raise MeowError(f"{where}: row {index} has no {field}.")
        if row[field] is not None:
            values.append(number(row[field], where, field, index))
    if not values:
        raise MeowError(f"{where}: no row has a {field}.")
    return np.array(values)


# --- truth ratios ---------------------------------------------------------------------------------


def _truth_ratios(data: Mapping[str, Any], suite: str, keys: _Keys, name: str) -> Array:
    """Returns the ratio R = P(wrong) / P(true) of each example."""
    where = f"{name}, {keys.truth_ratio}"
    scores = _values(data, keys.truth_ratio, "score", name)
    if scores is None:
        raise MeowError(f"{name}: {keys.truth_ratio} is missing.")
    probabilities = _probabilities(data, keys, name)
    if probabilities is not None and len(probabilities[0]) == len(scores):
        return _ratios_by_probabilities(scores, *probabilities, where, keys)
    kind = _kind_by_mean(scores, data[keys.truth_ratio].get("agg_value"), suite, where, keys)
    if kind == "ratio":
        return scores
    with np.errstate(divide="ignore"):
        return np.asarray((1 - scores) / scores)


def _ratios_by_probabilities(
    scores: Array, right: Array, wrong: Array, where: str, keys: _Keys
) -> Array:
    """Returns the ratios of scores, whose kind the probabilities in the same log tell."""
    ratios = wrong / (right + EPSILON)
    if np.allclose(scores, ratios, rtol=1e-3):
        return scores
    if np.allclose(scores, right / (right + wrong + EPSILON), rtol=1e-3):
        return np.asarray(ratios)
    raise MeowError(
        f"{where}: the scores do not follow from the losses in {keys.right} and {keys.wrong}. "
        "Give the log of one evaluation, as open-unlearning wrote it."
    )


def _probabilities(data: Mapping[str, Any], keys: _Keys, name: str) -> tuple[Array, Array] | None:
    """Returns P(right) and P(wrong) of each example that has losses, in order.

    P(wrong) is the geometric mean over the wrong answers. None if the log has no losses.
    """
    if keys.right not in data or keys.wrong not in data:
        return None
    right_by_index = column(data[keys.right], "value_by_index", f"{name}, {keys.right}")
    wrong_by_index = column(data[keys.wrong], "value_by_index", f"{name}, {keys.wrong}")
    losses = [
        (_mean_loss(right), _mean_loss(wrong_by_index.get(index)))
        for index, right in right_by_index.items()
    ]
    known = [(right, wrong) for right, wrong in losses if right is not None and wrong is not None]
    right_losses, wrong_losses = np.array(known).reshape(-1, 2).T
    return np.exp(-right_losses), np.exp(-wrong_losses)


def _mean_loss(row: Any) -> float | None:
    """Returns the loss of a row, the mean over its answers; None if it has none."""
    losses = row.get("avg_loss") if isinstance(row, dict) else None
    if not isinstance(losses, list):
        losses = [losses]
    return float(np.mean(losses)) if losses and all(map(is_number, losses)) else None


def _kind_by_mean(scores: Array, mean: Any, suite: str, where: str, keys: _Keys) -> Kind:
    """Tells the kind of scores from the aggregate of the log.

    Ratios are aggregated by the mean of min(R, 1/R) or of max(0, 1 - R), shares by their mean. A
    share is never above 1. If no score is above 1, min(R, 1/R) has the same mean as shares. Then
    scores with a small spread are taken for shares, and others are refused.
    """
    if (scores > 1).any():
        return "ratio"
    is_mean_of_scores = _close(mean, scores.mean())
    is_mean_of_rests = _close(mean, 1 - scores.mean())
    if is_mean_of_rests and not is_mean_of_scores:
        return "ratio"
    # open-unlearning takes min(R, 1/R) on the forget set alone
    could_be_ratios = suite == "forget" and not _spread_like_shares(scores)
    if is_mean_of_scores and not is_mean_of_rests and not could_be_ratios:
        _LOGGER.warning(
            "%s: the scores are read as true / (true + wrong), because none is above 1, their mean "
            "is agg_value, and they are as much alike as such shares are.",
            where,
        )
        return "share"
    raise MeowError(
        f"{where}: it cannot be told whether the scores are wrong / true or true / (true + wrong), "
        f"because none is above 1 and agg_value does not decide. Give the whole log, with "
        f"{keys.right} and {keys.wrong}, whose losses tell."
    )


def _spread_like_shares(scores: Array) -> bool:
    if len(scores) < MIN_SHARES or (scores <= 0).any():
        return False
    return bool(np.log(scores).std() <= MAX_SPREAD_OF_SHARES)


def _close(value: Any, mean: float) -> bool:
    return is_number(value) and math.isclose(value, mean, rel_tol=1e-4, abs_tol=1e-6)
