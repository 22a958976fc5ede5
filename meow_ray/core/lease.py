"""Leases: of several drivers on one storage root, one does the work of a stage at a time.

Each driver that wants to work on something writes a claim, a small file of its own, and renews it
with a heartbeat. A claim has a ticket, a number above all tickets that it found, and the lowest
living ticket has the lease (Lamport's bakery algorithm, doi 10.1145/361082.361093). This needs no
exclusive writes, which object stores may lack, only that a file can be read once it is written.

A claim is dead if its heartbeat stands still while others watch it by their own clocks, so the
clocks of the machines need not agree. A driver that was suspended for that long finds its claim
deleted, and has lost the lease.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from meow_ray.core import storage
from meow_ray.errors import MeowError

FOLDER = "leases"
"""Folder of the claims below a storage root."""

CLAIM_BYTES = 1024
"""Size of a claim's file. A reader of an object store asks for the size first, and would read a cut
claim if the size changed before it reads."""


def beat_seconds() -> float:
    """Returns the time between two heartbeats: MEOW_LEASE_BEAT, or 10 seconds."""
    return float(os.environ.get("MEOW_LEASE_BEAT", "10"))


def patience_seconds() -> float:
    """Returns how long a heartbeat may stand still before its driver counts as dead."""
    return 12 * beat_seconds()


# --- claims ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """What a driver writes about itself while it holds a lease or waits for one."""

    owner: str
    """Identifies the claim; it is part of the name of its file."""
    host: str
    pid: int
    machine: str
    """Identifies the running system and its processes; empty where that is not known."""
    since: str
    """ISO time in UTC by the clock of the driver, for people only."""
    ticket: int | None = None
    """None while the driver looks for the highest ticket."""
    beat: int = 0
    """Counts the heartbeats."""

    @property
    def turn(self) -> tuple[int, str]:
        """The order of claims. A claim without a ticket may still get a lower one than others."""
        return (self.ticket or 0, self.owner)

    @property
    def holder(self) -> str:
        """The driver in words, for messages."""
        return f"process {self.pid} on {self.host}, since {self.since}"

    @property
    def is_known_dead(self) -> bool:
        """Whether the driver was a process of this machine that has ended."""
        same_machine = bool(self.machine) and self.machine == _machine()
        return same_machine and not Path(f"/proc/{self.pid}").exists()


def _machine() -> str:
    """Returns what identifies this running system and its process numbers, on Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _new_claim() -> Claim:
    return Claim(
        owner=uuid4().hex[:12],
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=_machine(),
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
    )


def _uri(root: str, key: str, owner: str) -> str:
    return storage.join(root, FOLDER, f"{key}.{owner}.json")


def _write(root: str, key: str, claim: Claim) -> None:
    content = json.dumps(asdict(claim)).ljust(CLAIM_BYTES).encode()
    storage.write_bytes(_uri(root, key, claim.owner), content)


def _claims(root: str, key: str = "") -> list[Claim]:
    """Returns the claims on a key, or on all keys."""
    prefix = f"{key}." if key else ""
    names = storage.list_names(storage.join(root, FOLDER))
    uris = [storage.join(root, FOLDER, name) for name in names if name.startswith(prefix)]
    claims = [_read(uri) for uri in uris if storage.display(uri).endswith(".json")]
    return [claim for claim in claims if claim is not None]


def _read(uri: str) -> Claim | None:
    """Returns a claim; None if its driver has deleted it in the meantime."""
    try:
        return Claim(**storage.read_json(uri))
    except MeowError:
        if storage.exists(uri):
            raise
        return None


def _delete(uri: str) -> None:
    """Deletes a claim, which another driver may do at the same time."""
    try:
        storage.remove(uri)
    except MeowError:
        if storage.exists(uri):
            raise


class _Watch:
    """Tells by this machine's clock which claims are alive."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[Any, float]] = {}
        """By owner: ticket and beat at the last look, and for how many seconds they stood still."""
        self._last_look = time.monotonic()

    def alive(self, claims: list[Claim]) -> list[Claim]:
        """Returns the claims that have changed within the patience, or are new."""
        now = time.monotonic()
        # a watch that was suspended itself must not count that time
        passed = min(now - self._last_look, beat_seconds())
        self._last_look = now
        living = []
        for claim in claims:
            state = (claim.ticket, claim.beat)
            seen, still = self._seen.get(claim.owner, (None, 0.0))
            still = still + passed if state == seen else 0.0
            self._seen[claim.owner] = (state, still)
            if still < patience_seconds() and not claim.is_known_dead:
                living.append(claim)
        return living


def check_unused(root: str) -> None:
    """Checks that no driver works below a storage root, and deletes the claims of dead ones.

    This takes as long as the patience if claims are there whose drivers are not known to be dead.

    Raises:
        MeowError: a driver is at work.
    """
    watch = _Watch()
    first = {claim.owner: claim.beat for claim in watch.alive(_claims(root))}
    while True:
        living = watch.alive(_claims(root))
        for claim in living:
            if claim.beat != first.setdefault(claim.owner, claim.beat):
                raise MeowError(
                    f"{storage.display(root)}: a run is in progress ({claim.holder}). "
                    "Wait until it has ended."
                )
        if not living:
            break
        time.sleep(beat_seconds() / 2)
    storage.remove(storage.join(root, FOLDER))


# --- the lease ------------------------------------------------------------------------------------


class Lease:
    """A claim that is kept alive by a heartbeat in a thread of its own."""

    def __init__(self, root: str, key: str) -> None:
        self._root = root
        self._key = key
        self._claim = _new_claim()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep_alive, daemon=True, name="lease")

    def __enter__(self) -> "Lease":
        self._write()
        highest = max((claim.ticket or 0 for claim in _claims(self._root, self._key)), default=0)
        self._claim = replace(self._claim, ticket=highest + 1)
        self._write()
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(MeowError):  # others will see that its heartbeat stands still
            storage.remove(_uri(self._root, self._key, self._claim.owner))

    def others(self) -> list[Claim]:
        """Returns all other claims on the same key."""
        claims = _claims(self._root, self._key)
        return [claim for claim in claims if claim.owner != self._claim.owner]

    def is_before(self, claim: Claim) -> bool:
        """Tells whether it is this driver's turn before that of another claim."""
        return self._claim.turn < claim.turn

    def bury(self, claim: Claim) -> None:
        """Deletes the claim of a dead driver, which thereby learns of it if it is not."""
        _delete(_uri(self._root, self._key, claim.owner))

    @storage.retry_transient
    def is_lost(self) -> bool:
        """Tells whether another driver took this one for dead; reads the claim again."""
        with self._lock:
            self._lost = self._lost or not self._exists()
            return self._lost

    def _write(self) -> None:
        _write(self._root, self._key, self._claim)

    def _exists(self) -> bool:
        return storage.exists(_uri(self._root, self._key, self._claim.owner))

    def _keep_alive(self) -> None:
        """Renews the claim until the lease ends, or is lost. Runs in its own thread."""
        while not self._ended.wait(beat_seconds()):
            with self._lock:
                try:
                    # a claim that others have deleted must not come back
                    if not self._exists():
                        self._lost = True
                        return
                    self._claim = replace(self._claim, beat=self._claim.beat + 1)
                    self._write()
                except MeowError:
                    continue  # the lease is lost only if another driver deletes the claim


OnWait = Callable[[Claim], Any]
"""Called once for each driver that is waited for; it may raise an error instead."""


@contextmanager
def held(
    root: str, key: str, *, is_done: Callable[[], bool], on_wait: OnWait
) -> Iterator[Lease | None]:
    """Waits until this driver has the lease, or another driver has done the work.

    Args:
        root: URI of the storage root.
        key: identifies the work; without dots.
        is_done: tells whether the work has been done, asked before and after each wait.
        on_wait: called once for each driver that is waited for.

    Yields:
        The lease, which is kept alive within the block; None if the work is done.
    """
    watch = _Watch()
    announced: set[str] = set()
    with Lease(root, key) as lease:
        while True:
            claims = lease.others()
            living = watch.alive(claims)
            for claim in claims:
                if claim not in living:
                    lease.bury(claim)
            ahead = [claim for claim in living if not lease.is_before(claim)]
            if is_done():
                yield None
                return
            if not ahead:
                if lease.is_lost():
                    break  # this driver was suspended while it waited
                yield lease
                return
            first = min(ahead, key=lambda claim: claim.turn)
            if first.ticket is None:
                time.sleep(min(0.2, beat_seconds()))  # it will have a ticket in a moment
                continue
            if first.owner not in announced:
                announced.add(first.owner)
                on_wait(first)
            time.sleep(beat_seconds() / 2)
    with held(root, key, is_done=is_done, on_wait=on_wait) as again:
        yield again
