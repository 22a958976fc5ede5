"""The trajectory of a chain of requests: how abilities change from the first model on.

Each request unlearns the model that the request before it left. TRACE (arXiv 2310.06762)
judges such a chain by the mean change of a group of figures, such as those of general ability, from
the first model R_0 to the model after request t: mean(R_t - R_0).
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from tabulate import tabulate

from meow_ray.core import manifest, storage
from meow_ray.core.formatting import format_number
from meow_ray.core.manifest import Artifact
from meow_ray.errors import MeowError
from meow_ray.stages.report import compare

FIRST = "first model"
"""The name of the model before all requests."""
KEPT_SUITES = ("retain", "real_authors", "world_facts", "lm_eval")
"""The suites whose figures should not change, of which `GENERAL` consists by default."""
GENERAL = "general ability"
"""The group that is measured if none is named."""

Key = tuple[str, str]
"""Suite and metric."""


class Trajectory(NamedTuple):
    """The figures of each model of a chain."""

    values: Mapping[Key, Mapping[str, float]]
    """By suite and metric, the value of each model by its name, in order; the first is `FIRST`."""
    groups: Mapping[str, Sequence[Key]]
    """The figures whose changes are averaged, by the name of the group."""

    def change(self, group: str, name: str) -> float:
        """Returns the mean change of a group from the first model to one after it."""
        return fmean(self.values[key][name] - self.values[key][FIRST] for key in self.groups[group])


def trajectory(runs: Sequence[tuple[str, str]], groups: Mapping[str, Sequence[str]]) -> Trajectory:
    """Returns the figures of the first model and of the model after each request.

    Args:
        runs: name and storage root of each evaluated run, in the order of the requests.
        groups: the figures of each group as `SUITE` or `SUITE/METRIC`; without groups, `GENERAL`.

    Raises:
        MeowError: the runs are no chain, a run was not evaluated, or a group has no figure that
            all models have.
    """
    _check_names(runs)
    _check_chain(runs)
    before = compare.metrics_of(runs[0][1], "before")
    after = [(name, compare.metrics_of(root, "after")) for name, root in runs]
    values = _values(before, after)
    names = [FIRST, *(name for name, _ in runs)]
    shared = [key for key, cells in values.items() if list(cells) == names]
    kept = [suite for suite in KEPT_SUITES if _named_by(suite, shared)]
    wanted = groups or {GENERAL: kept}
    members = {group: _members(group, figures, shared) for group, figures in wanted.items()}
    return Trajectory(values, members)


def _check_names(runs: Sequence[tuple[str, str]]) -> None:
    """Refuses two runs of one name, which would share a column."""
    names = [FIRST, *(name for name, _ in runs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MeowError(
            f"{twice[0]}: two models would have this name. Name the runs, as in NAME=ROOT."
        )


def _check_chain(runs: Sequence[tuple[str, str]]) -> None:
    """Refuses runs of which one did not unlearn the model that the run before it left."""
    earlier: list[object] = []
    for number, (name, root) in enumerate(runs):
        requests = _requests(name, root)
        goes_on = len(requests) > len(earlier) and requests[: len(earlier)] == earlier
        if number and not goes_on:
            raise MeowError(
                f"{name}: its target is not the model of {runs[number - 1][0]}. Give the runs in "
                "the order of their requests, each with the model of the run before it as its "
                "target."
            )
        earlier = requests


def _requests(name: str, root: str) -> list[object]:
    """Returns the requests that led to the model of a run, as its manifest lists them."""
    model = manifest.latest(storage.absolute(root), "model")
    if model is None or model.manifest is None:
        raise MeowError(f"{name}: {root} has no model. Give the storage root of a whole run.")
    requests: list[object] = model.manifest.summary.get("chain", [])
    return requests


def _values(before: Artifact, after: Sequence[tuple[str, Artifact]]) -> dict[Key, dict[str, float]]:
    """Returns the figures that the first model has, of all models."""
    of_first = compare.metrics_by_run([(FIRST, before)], "before")
    of_others = compare.metrics_by_run(after, "after")
    return {
        key: {name: cell.value for name, cell in {**cells, **of_others.get(key, {})}.items()}
        for key, cells in of_first.items()
    }


def _members(group: str, figures: Sequence[str], shared: Sequence[Key]) -> list[Key]:
    """Returns the figures of a group.

    Args:
        group: the name of the group.
        figures: its figures, as `SUITE` or `SUITE/METRIC`.
        shared: the figures that all models have.

    Raises:
        MeowError: none of them has one of the names.
    """
    found = {name: _named_by(name, shared) for name in figures}
    missing = [name for name, keys in found.items() if not keys]
    if missing or not found:
        suites = ", ".join(dict.fromkeys(suite for suite, _ in shared))
        raise MeowError(
            f"The group {group}: no figure {', '.join(missing)} is measured for all models. Choose "
            f"suites ({suites}) or SUITE/METRIC."
        )
    return [key for keys in found.values() for key in keys]


def _named_by(name: str, keys: Sequence[Key]) -> list[Key]:
    """Returns the figures that `SUITE` or `SUITE/METRIC` names."""
    suite, _, metric = name.partition("/")
    return [key for key in keys if key[0] == suite and metric in ("", key[1])]


# --- output ---------------------------------------------------------------------------------------


def format_table(found: Trajectory) -> str:
    """Returns the text that `meow trajectory` prints: the figures, then the changes of groups."""
    names = list(dict.fromkeys(name for cells in found.values.values() for name in cells))
    rows = [
        [*key, *(format_number(cells[name]) if name in cells else "–" for name in names)]
        for key, cells in found.values.items()
    ]
    changes = [
        [group, len(keys), *(f"{found.change(group, name):+.3f}" for name in names[1:])]
        for group, keys in found.groups.items()
    ]
    figures = tabulate(rows, ["suite", "metric", *names], tablefmt="github", disable_numparse=True)
    summary = tabulate(
        changes, ["mean change of", "figures", *names[1:]], tablefmt="github", disable_numparse=True
    )
    return f"{figures}\n\n{summary}"
