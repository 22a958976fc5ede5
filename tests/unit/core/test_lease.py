"""Leases: one driver works at a time, dead ones are replaced, and suspended ones notice it."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from meow_ray.core import lease, storage
from meow_ray.core.lease import Claim, Lease, held
from meow_ray.errors import MeowError

BEAT = 0.25


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEOW_LEASE_BEAT", str(BEAT))


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return str(request.getfixturevalue("s3")(f"leases/{tmp_path.name}"))


def claims(root: str) -> list[str]:
    return storage.list_names(storage.join(root, lease.FOLDER))


def plant(root: str, **values: Any) -> Claim:
    """Writes the claim of a driver elsewhere, which nobody renews."""
    claim = Claim(owner="other", host="node-7", pid=42, machine="", since="noon", ticket=1)
    claim = replace(claim, **values)
    uri = storage.join(root, lease.FOLDER, f"work.{claim.owner}.json")
    storage.write_json(uri, asdict(claim))
    return claim


def in_threads(count: int, target: Callable[[], Any]) -> list[threading.Thread]:
    threads = [threading.Thread(target=target) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def never() -> bool:
    return False


def test_a_lease_leaves_no_file_and_can_be_taken_again(root: str):
    for _ in range(2):
        with held(root, "work", is_done=never, on_wait=pytest.fail) as own:
            assert own is not None
            assert not own.is_lost()
            assert len(claims(root)) == 1
        assert claims(root) == []


def test_a_lease_is_released_after_an_error(root: str):
    with pytest.raises(KeyboardInterrupt), held(root, "work", is_done=never, on_wait=pytest.fail):
        raise KeyboardInterrupt
    assert claims(root) == []


def test_of_many_drivers_one_works_at_a_time(root: str):
    working, most, done = 0, 0, []
    lock = threading.Lock()

    def drive() -> None:
        nonlocal working, most
        with held(root, "work", is_done=never, on_wait=str) as own:
            assert own is not None
            with lock:
                working += 1
                most = max(most, working)
            time.sleep(3 * BEAT)
            with lock:
                working -= 1
            done.append(own)

    for thread in in_threads(4, drive):
        thread.join()
    assert (most, len(done)) == (1, 4)


def test_those_who_wait_use_what_the_first_made(root: str):
    made: list[str] = []
    outcomes: list[bool] = []

    def drive() -> None:
        with held(root, "work", is_done=lambda: bool(made), on_wait=str) as own:
            if own is not None:
                time.sleep(3 * BEAT)
                made.append("result")
            outcomes.append(own is not None)

    for thread in in_threads(3, drive):
        thread.join()
    assert sorted(outcomes) == [False, False, True]
    assert made == ["result"]
    assert claims(root) == []


def test_other_work_is_not_waited_for(root: str):
    with (
        held(root, "one", is_done=never, on_wait=pytest.fail),
        held(root, "two", is_done=never, on_wait=pytest.fail) as own,
    ):
        assert own is not None


def test_a_driver_that_is_waited_for_is_named_once(root: str):
    plant(root)
    named: list[str] = []
    with held(root, "work", is_done=never, on_wait=lambda claim: named.append(claim.holder)):
        pass
    assert named == ["process 42 on node-7, since noon"]


def test_waiting_can_be_refused(root: str):
    plant(root)

    def refuse(claim: Claim) -> None:
        raise MeowError("no")

    with pytest.raises(MeowError), held(root, "work", is_done=never, on_wait=refuse):
        pytest.fail("it must not get the lease")
    assert claims(root) == ["work.other.json"]


def test_one_of_two_who_wait_replaces_a_dead_driver(root: str):
    plant(root, ticket=None)
    held_by: list[Lease | None] = []

    def drive() -> None:
        done = lambda: bool(held_by)  # noqa: E731
        with held(root, "work", is_done=done, on_wait=str) as own:
            if own is not None:
                time.sleep(3 * BEAT)
                held_by.append(own)

    for thread in in_threads(2, drive):
        thread.join()
    assert len(held_by) == 1
    assert claims(root) == []


def test_an_ended_process_of_this_machine_is_not_waited_for(root: str):
    plant(root, machine=lease._machine(), pid=2**22 + 1)  # above Linux's highest process number
    with held(root, "work", is_done=never, on_wait=pytest.fail) as own:
        assert own is not None


def test_a_suspended_driver_notices_that_it_was_replaced(
    root: str, monkeypatch: pytest.MonkeyPatch
):
    suspended = Lease(root, "work")
    monkeypatch.setattr(suspended, "_keep_alive", lambda: None)
    suspended._thread = threading.Thread(target=suspended._keep_alive)
    with suspended:
        assert not suspended.is_lost()
        with held(root, "work", is_done=never, on_wait=str) as own:
            assert own is not None
            assert suspended.is_lost()
            assert not own.is_lost()
        assert claims(root) == []


def test_a_deleted_claim_does_not_come_back(root: str):
    with Lease(root, "work") as own:
        storage.remove(storage.join(root, lease.FOLDER, claims(root)[0]))
        own._thread.join(timeout=10)
        assert own.is_lost()
        assert claims(root) == []


def test_failures_of_the_storage_do_not_lose_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, calls = lease._write, 0

    def write_sometimes(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if 3 <= calls <= 6:
            raise MeowError("the store is busy")
        write(*arguments)

    monkeypatch.setattr(lease, "_write", write_sometimes)
    with Lease(str(tmp_path), "work") as own:
        deadline = time.monotonic() + 60
        while calls < 8:
            assert time.monotonic() < deadline
            time.sleep(BEAT)
        assert not own.is_lost()
    assert claims(str(tmp_path)) == []


def test_time_in_which_the_watch_was_suspended_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    claim = plant(str(tmp_path))
    watch = lease._Watch()
    assert watch.alive([claim]) == [claim]
    later = time.monotonic() + 1000
    monkeypatch.setattr(lease.time, "monotonic", lambda: later)
    assert watch.alive([claim]) == [claim]


def test_work_of_a_living_driver_is_not_deleted(root: str):
    with (
        held(root, "work", is_done=never, on_wait=pytest.fail),
        pytest.raises(MeowError, match=r"a run is in progress \(process \d+ on .*\)\. Wait until"),
    ):
        lease.check_unused(root)


def test_claims_of_dead_drivers_are_deleted(root: str):
    plant(root)
    lease.check_unused(root)
    assert claims(root) == []
    lease.check_unused(root)
