"""Search a gallery that others write to: an index that follows its store, and answers from one generation."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence

from edgeface.errors import ContractError
from edgeface.gallery.index.exact import exact_index
from edgeface.gallery.index.memory import MemoryIndex
from edgeface.gallery.records import Person, TemplateBlock
from edgeface.gallery.store.base import GalleryStore
from edgeface.model.embedding import Embedding, Embeddings, require_same_contract
from edgeface.recognize.index import Hits

_log = logging.getLogger(__name__)

_REMEMBERED = 10_000
"""People whose names and consents are kept between two changes of the gallery."""


def follow(index: MemoryIndex, store: GalleryStore) -> bool:
    """Bring an index in step with the store it was made from, and return whether anything had changed.

    It is filled again if what changed is not known. `ContractError` is raised if they are of different contracts,
    `GalleryError` if the store cannot be read; then the index is as it was.
    """
    require_same_contract(index.contract_id, store.info.contract_id, what="index and gallery")
    with store.reading():
        last = store.last_commit()
        if last[1] and last == (index.generation, index.history):
            return False
        changes = store.changes_since(index.generation, index.history)
        if changes is not None:
            index.apply(changes)
        else:
            _log.info("the index is filled again: what changed since generation %d is not known", index.generation)
            index.reset(store.load())
        return True


class LiveIndex:
    """An `Index` that follows its store: it catches up before every search.

    Parameters
    ----------
    store
        What to follow; it is not closed. Its contract must stay the same: after a rebuild with another model, make a
        new index.
    make
        Makes the index of the store's templates.

    Raises
    ------
    GalleryError
        If the store cannot be read.
    """

    def __init__(self, store: GalleryStore, make: Callable[[TemplateBlock], MemoryIndex] = exact_index) -> None:
        self._store = store
        self._gallery_id = store.info.gallery_id
        self._lock = threading.RLock()
        self._held = 0  # how many blocks hold its generation
        self._people = dict[int, Person]()  # that were read since the last change
        self._index = make(store.load())

    @property
    def contract_id(self) -> str:
        """Of every embedding in it."""
        return self._index.contract_id

    @property
    def gallery_id(self) -> str:
        """Of the gallery that it follows."""
        return self._gallery_id

    @property
    def generation(self) -> int:
        """Of the store when it last caught up."""
        return self._index.generation

    @property
    def age(self) -> float | None:
        """Seconds since what it follows was known to be the gallery; None: it is the gallery itself."""
        return None

    def last_commit(self) -> tuple[int, str]:
        """As `GalleryStore.last_commit`, of the store when it last caught up."""
        return self._index.generation, self._index.history

    def __len__(self) -> int:
        with self.snapshot():
            return len(self._index)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[LiveIndex]:
        """Catch up with the store, and hold what it has now for all that one decision needs.

        Inside the block templates and names are of one generation, whatever others write. Other threads that use
        the same store or this index wait until the block ends; other processes do not.

        Raises
        ------
        ContractError
            If the gallery was rebuilt with another model.
        GalleryError
            If the store cannot be read, or is another gallery now.
        """
        # The store comes first, as it does inside `writing`: two threads never wait for each other.
        with self._store.reading(), self._lock:
            if not self._held:
                if self._store.info.gallery_id != self._gallery_id:
                    raise ContractError(
                        f"index: expected gallery {self._gallery_id}, found {self._store.info.gallery_id}; make a new "
                        "index"
                    )
                followed = follow(self._index, self._store)
                if followed or self._store.database.uncommitted or len(self._people) > _REMEMBERED:
                    self._people.clear()
            self._held += 1
            try:
                with self._index.snapshot():
                    yield self
            finally:
                self._held -= 1
                if not self._held and self._store.database.uncommitted:
                    self._people.clear()  # what was written may yet be undone

    def search(self, probe: Embedding, *, k: int = 1) -> Hits:
        """As `Index.search`, over the templates that the store has now."""
        with self.snapshot():
            return self._index.search(probe, k=k)

    def search_batch(self, probes: Embeddings, *, k: int = 1) -> list[Hits]:
        """As `Index.search_batch`, over the templates that the store has now."""
        with self.snapshot():
            return self._index.search_batch(probes, k=k)

    def compare(self, probe: Embedding, person_ids: Sequence[int]) -> Hits:
        """As `Index.compare`, over the templates that the store has now."""
        with self.snapshot():
            return self._index.compare(probe, person_ids)

    def name_of(self, person_id: int) -> str:
        """As `Index.name_of`, of the people that the store has now."""
        return self.person(person_id).name

    def person(self, person_id: int) -> Person:
        """Return a person of those that the store has now; each is read once a commit."""
        with self.snapshot():
            found = self._people.get(person_id)
            if found is None:
                found = self._people[person_id] = self._store.person(person_id)
            return found

    def block(self) -> TemplateBlock:
        """As `MemoryIndex.block`, of the templates that the store has now."""
        with self.snapshot():
            return self._index.block()
