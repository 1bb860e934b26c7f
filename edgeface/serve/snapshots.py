"""Keep a snapshot of a gallery in step with its server, and know how old it is while the server is away."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgeface.errors import (
    EdgeFaceError,
    GalleryBusyError,
    GalleryError,
    GalleryReplacedError,
    GalleryServerError,
    OutputError,
    SnapshotTooOldError,
)
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.records import Proof
from edgeface.gallery.snapshot import GallerySnapshot
from edgeface.gallery.store.base import GalleryStore
from edgeface.serve.offline_queue import OfflineQueue, QueuedItem, Reached
from edgeface.serve.settings import SnapshotOptions

_log = logging.getLogger(__name__)

_LOST = (GalleryServerError, GalleryReplacedError)
_LATER = (GalleryBusyError, OutputError)
UNDECIDED = (*_LOST, *_LATER)
"""What says nothing of an item that is sent: it is tried again."""
QUEUE_FILE = "queue.sqlite"
LOOK_SECONDS = 0.5
"""Between two looks at the server, so that what others enrol is known within a second."""
AWAY_SECONDS = 5.0
"""Without an answer of the server after which it is away: nobody waits for it, and enrolments are queued."""
_WRITE_SECONDS = 60.0
"""Between two notes of when the server was last reached."""
_SET_BACK = 2.0
"""Seconds by which a clock may be slewed."""


def describe_age(seconds: float) -> str:
    """Say an age for people.

    Examples
    --------
    >>> describe_age(41.2), describe_age(130), describe_age(9000)
    ('41 s', '2 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _tick() -> float:
    """Return seconds that never go back, with those in which the machine slept where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SnapshotAge:
    """Seconds since a server confirmed a snapshot, whatever is done to the clock.

    While the machine runs, the time since its start counts, which nobody can set back. Over a restart of the machine
    only the clock is left: one that shows an earlier time than when this was last written down makes the age unknown.
    A clock that is set forward makes a snapshot older, never younger.

    Parameters
    ----------
    reached
        What was written down last; None: nothing, and the age is unknown.
    generation
        Of the snapshot, which must not be an earlier one than was written down: it was put back.
    clock, tick, boot
        The clock; seconds since the start of the machine; and an id of that start, or an empty text.

    Examples
    --------
    >>> age = SnapshotAge(None, 7, clock=lambda: 1_800_000_000.0, tick=lambda: 50.0, boot="a")
    >>> age.seconds() is None
    True
    >>> age.confirm(at=20.0)
    >>> age.seconds()
    30.0
    """

    def __init__(
        self,
        reached: Reached | None,
        generation: int,
        *,
        clock: Callable[[], float] = time.time,
        tick: Callable[[], float] = _tick,
        boot: str | None = None,
    ) -> None:
        self._clock, self.tick, self._boot = clock, tick, _boot() if boot is None else boot
        self._since: tuple[float, float] | None = None  # by the clock, and by the time since the start
        if reached is None or generation < reached.generation:
            return
        now = clock()
        if reached.boot and reached.boot == self._boot:
            self._since = reached.wall - reached.age, reached.tick - reached.age
        elif now >= reached.wall - _SET_BACK:
            age = reached.age + max(0.0, now - reached.wall)
            self._since = now - age, tick() - age

    def seconds(self) -> float | None:
        """Return the age; None if it is unknown."""
        if (since := self._since) is None:
            return None
        return max(0.0, self._clock() - since[0], self.tick() - since[1])

    def confirm(self, at: float) -> None:
        """Take note that the server confirms the snapshot, as asked at a time since the machine's start."""
        self._since = self._clock() - (self.tick() - at), at

    def to_write(self, generation: int) -> Reached | None:
        """Return what is to be written down now; None if the age is unknown."""
        age = self.seconds()
        return None if age is None else Reached(generation, self._clock(), age, self._boot, self.tick())


class SnapshotIndex(LiveIndex):
    """An index of a snapshot, which answers nothing once that is too old."""

    def __init__(self, store: GalleryStore, keeper: SnapshotKeeper) -> None:
        self._keeper = keeper
        super().__init__(store)

    @property
    def age(self) -> float | None:
        return self._keeper.seconds()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[LiveIndex]:
        """As `LiveIndex.snapshot`; `SnapshotTooOldError` if the server was not reached for too long."""
        self._keeper.require_fresh()
        with super().snapshot() as index:
            yield index


class SnapshotKeeper:
    """Follows a gallery on a server in a thread of its own, and sends it what was queued while it was away.

    Parameters
    ----------
    name, options
        Of the configuration.
    folder
        For the snapshot and the queue.
    key
        Of the gallery.
    opener
        Opens the gallery on the server, without patience.

    Raises
    ------
    GalleryError
        If the gallery cannot be opened, for whatever reason, and there is no snapshot yet.
    """

    def __init__(
        self, name: str, options: SnapshotOptions, folder: Path, key: bytes, opener: Callable[[], GalleryStore]
    ) -> None:
        self.name, self.options, self._opener = name, options, opener
        self._server: GalleryStore | None = None
        self._whole: tuple[GalleryStore, LiveIndex] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._step, self._written, self._failure = threading.Lock(), 0.0, ""
        self.sending = threading.Lock()  # held while an item is sent, or withdrawn
        with contextlib.ExitStack() as stack:
            self.snapshot = GallerySnapshot(folder, key=key, group=options.group)
            stack.callback(self.snapshot.close)
            self.queue = OfflineQueue(folder / QUEUE_FILE)
            stack.callback(self.queue.close)
            database = self.snapshot.database
            reached = None if database is None else self.queue.reached(database)
            self._age = SnapshotAge(reached, self.snapshot.position()[0])
            stack.callback(self._let_go)
            try:
                self.follow()
            except GalleryError as error:
                if self.snapshot.path is None:
                    raise
                self._erase_forgotten()
                self._tell(error)
            self._open = stack.pop_all()

    # How old it is

    def seconds(self) -> float | None:
        """Return the seconds since the server last confirmed the snapshot; None: they are not known."""
        return self._age.seconds()

    @property
    def away(self) -> bool:
        """Whether the server cannot be reached."""
        age = self.seconds()
        return bool(self._failure) or self._server is None or age is None or age > AWAY_SECONDS

    def require_fresh(self) -> None:
        """Raise `SnapshotTooOldError` if the snapshot is too old to be searched."""
        age, hours = self.seconds(), self.options.max_age_hours
        if age is None:
            raise SnapshotTooOldError(
                f"gallery {self.name}: expected a snapshot of known age, found one whose age is not known, because the "
                "clock was set back, or files were put back; it is searched again once the server was reached",
                expected="a snapshot of known age",
                found="one whose age is not known",
            )
        if age > 3600 * hours:
            raise SnapshotTooOldError(
                f"gallery {self.name}: expected a snapshot of at most {hours:g} hours, found one of {age / 3600:.1f}; "
                "it is searched again once the server was reached",
                expected=f"a snapshot of at most {hours:g} hours",
                found=f"one of {age / 3600:.1f} hours",
            )

    # The server

    @property
    def server(self) -> GalleryStore:
        """The gallery on the server; `GalleryServerError`, at once, while that is away."""
        server = self._server
        if server is None or self.away:
            raise GalleryServerError(f"gallery {self.name}: its server is away; {self._failure or 'try again'}")
        return server

    def whole_index(self) -> LiveIndex:
        """Return an index of all people of the gallery on the server; the first call loads them."""
        server = self.server
        if self._whole is None or self._whole[0] is not server:
            self._whole = server, LiveIndex(server)
        return self._whole[1]

    def follow(self) -> Proof | None:
        """Bring the snapshot up to date once; return the proof of what was erased from it, and raise what it raises."""
        with self._step:
            asked = self._age.tick()
            try:
                if self._server is None or not self._server.is_current():
                    self._let_go()
                    self._server = self._opener()
                done = self.snapshot.follow(self._server, without=self.queue.forgotten(self._server.database))
            except _LOST:  # or it has another key or model: the next look opens it
                self._let_go()
                raise
            self._age.confirm(asked)
            self._erase_forgotten()
            self._write(now=done is not None)
            if done is None:
                return None
            if done.gone:
                proved = "nothing of them remains" if done.proof and not done.proof.remains else "not proved"
                _log.info("gallery %s: %d people left the snapshot: %s", self.name, len(done.gone), proved)
            return done.proof

    def _erase_forgotten(self) -> None:
        """Erase who was to be forgotten while the server was read, or just before this process or one before ended."""
        database = self.snapshot.database
        assert database is not None
        for person_id in self.queue.forgotten(database):
            self.snapshot.erase(person_id, missing_ok=True)

    def prove_erased(self) -> Proof | None:
        """Bring the snapshot up to date after an erasure on the server; it never raises.

        None: it was so already, and the log has the proof.
        """
        try:
            return self.follow()
        except EdgeFaceError as error:
            _log.warning("gallery %s: its snapshot is not yet without who was forgotten: %s", self.name, error)
            return Proof(searched={}, needles=0, remains=("the snapshot: erased when the server is reached again",))

    def _write(self, *, now: bool) -> None:
        tick = self._age.tick()
        if now or tick - self._written > _WRITE_SECONDS:
            reached = self._age.to_write(self.snapshot.position()[0])
            if reached is not None and (database := self.snapshot.database) is not None:
                self.queue.write_reached(reached, database)
            self._written = tick

    def _let_go(self) -> None:
        server, self._server, self._whole = self._server, None, None
        if server is not None:
            server.close()

    # What its thread does

    def start(self, deliver: Callable[[QueuedItem, GalleryStore], None]) -> None:
        """Follow the server until `close`; `deliver` sends an item of the queue, and says in the queue what came of it.

        It raises what `UNDECIDED` has for what is to be tried again.
        """
        self._thread = threading.Thread(target=self._run, args=(deliver,), name=f"snapshot {self.name}", daemon=True)
        self._thread.start()

    def _run(self, deliver: Callable[[QueuedItem, GalleryStore], None]) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.follow()
                self._tell(None)
                self._send(deliver)
            except Exception as error:  # whatever it is: the snapshot grows older, and it is tried again
                self._tell(error)
                with contextlib.suppress(EdgeFaceError):
                    self._write(now=False)

    def _send(self, deliver: Callable[[QueuedItem, GalleryStore], None]) -> None:
        for item in sorted(self.queue.items(), key=lambda each: each.kind == "enrol"):  # erasures first
            if (age := self.seconds()) is None or age > LOOK_SECONDS:  # or many items look like a server that is away
                self.follow()
            server = self._server
            assert server is not None
            try:
                if server.database.outside("SELECT 1 FROM gallery FOR UPDATE SKIP LOCKED") is None:
                    return  # who waited for another's long transaction could not follow meanwhile
                with self.sending:
                    if not self._stop.is_set() and (now := self.queue.find(item.id)) and now.state == "queued":
                        deliver(now, server)
            except _LATER as error:
                _log.info("gallery %s: what is queued waits: %s", self.name, error)
                return
            except _LOST:
                raise
            except Exception:
                _log.exception("gallery %s: what was queued as number %d cannot be sent", self.name, item.id)
                self.queue.conflict(item.id, "internal")

    def _tell(self, error: Exception | None) -> None:
        """Log that the server goes away or comes back, once."""
        said = "" if error is None else str(error)
        if bool(said) != bool(self._failure):
            if error is None:
                _log.warning("gallery %s: the server is back", self.name)
            else:
                _log.warning("gallery %s: %s; people are recognised by its snapshot", self.name, error)
        self._failure = said

    def close(self) -> None:
        """Stop following, and close all; a thread that waits for a server that is away ends by itself."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(AWAY_SECONDS)
            if self._thread.is_alive():
                return
        self._open.close()
