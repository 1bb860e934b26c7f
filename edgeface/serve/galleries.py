"""Hold a gallery open for as long as the service runs, whatever happens to its file meanwhile."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.errors import ContractError, GalleryError, GalleryKeyError, GalleryReplacedError, GalleryServerError
from edgeface.files import write_private
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.keys import KEY_VARIABLE, read_key
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.records import GalleryInfo
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.contract import current_id
from edgeface.serve.offline_queue import OfflineQueue
from edgeface.serve.settings import Gallery
from edgeface.serve.snapshots import QUEUE_FILE, SnapshotIndex, SnapshotKeeper
from edgeface.vision.quality import QualityGate

if TYPE_CHECKING:
    from edgeface.model.contract import ModelContract

_log = logging.getLogger(__name__)


class ServedGallery:
    """A gallery, its search index, and what decides in it.

    A gallery that was removed, replaced, restored from a copy, given another key or rebuilt with another model is
    opened again by the next request that needs it; until that succeeds each of them is refused. What has no name any
    more is never read.

    Parameters
    ----------
    name, options
        Of the configuration.
    opener
        Opens the gallery; it raises what `open_gallery` does.
    contract
        Returns that of the model that embeds its faces now, which a later version of the model may change.
    keeper
        What follows the gallery on its server, where `opener` opens a snapshot of it; None: there is no snapshot.
    """

    def __init__(
        self,
        name: str,
        options: Gallery,
        opener: Callable[[], GalleryStore],
        contract: Callable[[], ModelContract],
        keeper: SnapshotKeeper | None = None,
    ) -> None:
        self.name, self.options, self._opener, self._contract = name, options, opener, contract
        self.keeper = keeper
        self._lock, self._closed = threading.Lock(), False
        self._opened: tuple[GalleryStore, LiveIndex] | None = self._open()

    def _open(self) -> tuple[GalleryStore, LiveIndex]:
        store = self._opener()
        try:
            return store, LiveIndex(store) if self.keeper is None else SnapshotIndex(store, self.keeper)
        except BaseException:
            store.close()
            raise

    def _current(self) -> tuple[GalleryStore, LiveIndex]:
        opened = self._opened
        if opened is not None and opened[0].is_current():
            return opened
        with self._lock:
            if self._closed:
                raise GalleryReplacedError(f"the gallery {self.name} is closed: the service stops, or was reconfigured")
            if self._opened is not None and not self._opened[0].is_current():
                _log.warning("gallery %s: it was replaced or changed by another process; opening it again", self.name)
                self._opened[0].close()
                self._opened = None
            if self._opened is None:
                self._opened = self._reopen()
            return self._opened

    def _reopen(self) -> tuple[GalleryStore, LiveIndex]:
        try:
            return self._open()
        except GalleryError as error:
            if type(error) is not GalleryError:
                raise
            raise GalleryReplacedError(f"gallery {self.name}: {error}") from error

    @property
    def store(self) -> GalleryStore:
        """The gallery, open; take it once for what belongs together.

        With a snapshot it is the one on the server: `GalleryServerError` is raised at once while that is away.
        """
        return self._current()[0] if self.keeper is None else self.keeper.server

    @property
    def searched(self) -> GalleryStore:
        """The gallery in which people are identified: its snapshot, if there is one; only to be read."""
        return self._current()[0]

    @property
    def readable(self) -> GalleryStore:
        """The gallery to read people of: the one on the server, or its snapshot while that is away."""
        return self.searched if self.keeper is None or self.keeper.away else self.keeper.server

    @property
    def info(self) -> GalleryInfo:
        """What the gallery is bound to."""
        return self.searched.info

    @property
    def snapshot_age(self) -> float | None:
        """Seconds since the server confirmed the snapshot; None: there is none, or they are not known."""
        return None if self.keeper is None else self.keeper.seconds()

    @property
    def whole_index(self) -> LiveIndex:
        """An index of all people of the gallery, to look for a face before it is enrolled."""
        return self.index if self.keeper is None else self.keeper.whole_index()

    @property
    def index(self) -> LiveIndex:
        """The index that follows it; `ContractError` if the gallery is of another model than the one that answers."""
        store, index = self._current()
        info, contract = store.info, self._contract()
        if current_id(info.contract_id) != current_id(contract.contract_id):
            raise ContractError(
                f"gallery {self.name}: expected one of contract {contract.contract_id} ({contract.name}), found one of "
                f"contract {info.contract_id} ({info.model}); load that model again, or bring the gallery to this one: "
                "edgeface gallery rebuild"
            )
        return index

    @property
    def gate(self) -> QualityGate | None:
        """What its faces must pass."""
        return QualityGate() if self.options.gate else None

    def close(self) -> None:
        """Close the gallery; whoever still uses it is waited for."""
        if self.keeper is not None:
            self.keeper.close()
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened[0].close()
            self._opened = None


def recorded_detectors(galleries: Mapping[str, Gallery], model: str, state: Path) -> set[str]:
    """Return the detectors that a model's galleries were made with, as far as they are there and say so."""
    found = set[str]()
    for name, options in galleries.items():
        if options.model != model:
            continue
        place, key = _place_of(name, options, state)
        if options.place is None and not Path(place).exists():
            continue
        try:
            with open_gallery(place, key=key, patience=0.0) as store:
                found.update(store.detectors())
        except GalleryServerError:
            if options.snapshot is None:
                raise
            _log.warning("gallery %s: its server is away, and does not say by which detector faces were found", name)
    return found


def _place_of(name: str, options: Gallery, state: Path) -> tuple[str | Path, str | None]:
    """Return where a gallery is, and where its key is."""
    place: str | Path = options.place or state / "galleries" / f"{name}.gallery"
    key = None if options.unencrypted else options.key
    if not options.unencrypted and key is None:
        if options.place is None:
            key = f"file:{_key_file(state / 'keys' / f'{name}.key')}"
        elif KEY_VARIABLE in os.environ:
            key = f"env:{KEY_VARIABLE}"
    return place, key


def serve_gallery(
    name: str, options: Gallery, state: Path, contract: Callable[[], ModelContract], *, allow_seeded: bool
) -> ServedGallery:
    """Open a gallery of the configuration; one without a place is made in the state folder if it is not there.

    `contract` returns that of the model that embeds its faces now. Raises what `open_gallery` and `create_gallery` do.
    """
    place, key = _place_of(name, options, state)
    if options.place is None and not Path(place).exists():
        Path(place).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_gallery(
            place, contract=contract(), key=key, keep_images=options.keep_images, allow_seeded=allow_seeded
        ).close()

    def opener() -> GalleryStore:
        # A server that is away is said to clients at once: who waits for it holds a thread that others need.
        return open_gallery(place, key=key, patience=0.0)

    folder = state / "snapshots" / name
    if options.snapshot is None:
        _require_sent(name, folder / QUEUE_FILE)
        served = ServedGallery(name, options, opener, contract)
    else:
        served = _serve_snapshot(name, options, folder, key, opener, contract)
    try:
        served.index  # noqa: B018 - of this contract, or the service does not start
    except ContractError:
        served.close()
        raise
    return served


def _require_sent(name: str, path: Path) -> None:
    """Refuse to serve a gallery without its snapshot while that one's queue waits: an erasure would be lost."""
    if not path.exists():
        return
    with contextlib.closing(OfflineQueue(path)) as queue:
        counts = queue.count()
    if waiting := counts["queued"] + counts["conflict"]:
        raise GalleryError(
            f"{path}: expected a queue with nothing that waits, because the gallery {name} has no snapshot any more, "
            f"found {waiting} enrolments or erasures; give it galleries.{name}.snapshot until they are sent or "
            "withdrawn, or remove the file"
        )


def _serve_snapshot(
    name: str,
    options: Gallery,
    folder: Path,
    key: str | None,
    opener: Callable[[], GalleryStore],
    contract: Callable[[], ModelContract],
) -> ServedGallery:
    if key is None or options.snapshot is None:
        raise GalleryKeyError(
            f"gallery {name}: expected a key, because its snapshot lies on this machine's disk, found none; set "
            f"galleries.{name}.key, or {KEY_VARIABLE}"
        )
    secret = read_key(key, beside=folder)
    keeper = SnapshotKeeper(name, options.snapshot, folder, secret, opener)

    def open_snapshot() -> GalleryStore:
        path = keeper.snapshot.path
        if path is None:
            raise GalleryReplacedError(f"gallery {name}: its snapshot was removed; it is made again from the server")
        return open_gallery(path, key=secret)

    try:
        return ServedGallery(name, options, open_snapshot, contract, keeper)
    except BaseException:
        keeper.close()
        raise


def _key_file(path: Path) -> Path:
    """Make a key where there is none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        write_private(path, f"{secrets.token_hex(32)}\n".encode())
    return path
