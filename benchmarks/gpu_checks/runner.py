"""Runs the checks in order within the time, and keeps what became of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic

from benchmarks.gpu_checks.registry import Check
from benchmarks.gpu_checks.values import Setting
from benchmarks.gpu_checks.worker import MISSING, NO_TIME, Outcome, Worker

NO_GPU = "no GPU"


@dataclass
class Clock:
    """The time that is left for the whole command."""

    minutes: float
    now: Callable[[], float] = monotonic

    def __post_init__(self) -> None:
        self._end = self.now() + 60 * self.minutes

    def left(self) -> float:
        """Returns the seconds that are left."""
        return self._end - self.now()


def limit_of(check: Check, left: float, *, reduced: bool) -> float | None:
    """Returns how many seconds a check may take; None if too few are left to start it.

    The limit of a check is made for GPUs. In the reduced form, only the time of the command counts.
    """
    if left < check.least:
        return None
    return left if reduced else min(check.most, left)


def run_all(
    checks: Sequence[Check],
    setting: Setting,
    clock: Clock,
    worker: Worker,
    is_installed: Callable[[str], bool],
    report: Callable[[Check, Outcome], None],
) -> dict[str, Outcome]:
    """Runs the checks in order; returns what became of each, by name.

    Args:
        checks: the checks.
        setting: where they run.
        clock: the time that is left.
        worker: the process that runs them.
        is_installed: tells whether a package can be imported.
        report: called after each check.
    """
    outcomes: dict[str, Outcome] = {}
    for check in checks:
        outcomes[check.name] = _outcome(check, setting, clock, worker, is_installed)
        report(check, outcomes[check.name])
    return outcomes


def _outcome(
    check: Check,
    setting: Setting,
    clock: Clock,
    worker: Worker,
    is_installed: Callable[[str], bool],
) -> Outcome:
    if check.needs_gpu and setting.reduced:
        return Outcome(NO_GPU, "needs a CUDA device")
    missing = [package for package in check.needs if not is_installed(package)]
    if missing:
        return Outcome(MISSING, ", ".join(missing))
    limit = limit_of(check, clock.left(), reduced=setting.reduced)
    if limit is None:
        left = max(0.0, clock.left())
        return Outcome(NO_TIME, f"{left:.0f} s left, {check.least:.0f} s needed to start")
    if check.alone:
        worker.close()
    try:
        return worker.run(check.run, setting, limit)
    finally:
        if check.alone:
            worker.close()
