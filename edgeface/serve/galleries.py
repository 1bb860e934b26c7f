"""Hold a gallery open for as long as the service runs, whatever happens to its file meanwhile."""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.errors import ContractError, GalleryError, GalleryReplacedError
from edgeface.files import write_private
from edgeface.gallery.index import LiveIndex
from edgeface.gallery.keys import KEY_VARIABLE
from edgeface.gallery.opening import create_gallery, open_gallery
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.contract import current_id
from edgeface.serve.settings import Gallery
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
    """

    def __init__(
        self, name: str, options: Gallery, opener: Callable[[], GalleryStore], contract: Callable[[], ModelContract]
    ) -> None:
        self.name, self.options, self._opener, self._contract = name, options, opener, contract
        self._lock, self._closed = threading.Lock(), False
        self._opened: tuple[GalleryStore, LiveIndex] | None = self._open()

    def _open(self) -> tuple[GalleryStore, LiveIndex]:
        store = self._opener()
        try:
            return store, LiveIndex(store)
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
        """The gallery, open; take it once for what belongs together."""
        return self._current()[0]

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
        with self._lock:
            self._closed = True
            if self._opened is not None:
                self._opened[0].close()
            self._opened = None


def serve_gallery(
    name: str, options: Gallery, state: Path, contract: Callable[[], ModelContract], *, allow_seeded: bool
) -> ServedGallery:
    """Open a gallery of the configuration; one without a place is made in the state folder if it is not there.

    `contract` returns that of the model that embeds its faces now. Raises what `open_gallery` and `create_gallery` do.
    """
    made = state / "galleries" / f"{name}.gallery"
    place: str | Path = options.place or made
    key = None if options.unencrypted else options.key
    if not options.unencrypted and key is None:
        if options.place is None:
            key = f"file:{_key_file(state / 'keys' / f'{name}.key')}"
        elif KEY_VARIABLE in os.environ:
            key = f"env:{KEY_VARIABLE}"
    if options.place is None and not made.exists():
        made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_gallery(
            made, contract=contract(), key=key, keep_images=options.keep_images, allow_seeded=allow_seeded
        ).close()
    # A server that is away is said to clients at once: who waits for it holds a thread that others need.
    served = ServedGallery(name, options, lambda: open_gallery(place, key=key, patience=0.0), contract)
    try:
        served.index  # noqa: B018 - of this contract, or the service does not start
    except ContractError:
        served.close()
        raise
    return served


def _key_file(path: Path) -> Path:
    """Make a key where there is none."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        write_private(path, f"{secrets.token_hex(32)}\n".encode())
    return path
