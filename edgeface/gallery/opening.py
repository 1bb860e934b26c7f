"""Open and create galleries, wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeface.errors import InputError
from edgeface.gallery.keys import read_key

if TYPE_CHECKING:
    from edgeface.gallery.store.base import GalleryStore
    from edgeface.model.contract import ModelContract

__all__ = ["create_gallery", "open_gallery"]

_SCHEMES = ("postgresql://", "postgres://")


def open_gallery(
    place: str | Path,
    *,
    name: str | None = None,
    key: bytes | str | None = None,
    contract_id: str | None = None,
    timeout: float = 30.0,
) -> GalleryStore:
    """Open a gallery: a file, or one on a PostgreSQL server.

    Parameters
    ----------
    place
        The file, or ``postgresql://user@host/database``.
    name
        Of the gallery on that server.
    key
        The 32 bytes it was created with, or where they are kept, as `read_key` takes it: ``file:PATH``, ``env:NAME``
        or ``command:WORDS``. None: it is not encrypted.
    contract_id
        Expected contract; None: any.
    timeout
        Seconds to wait for another process that writes.

    Raises
    ------
    GalleryError, ContractError
        If it cannot be opened; the class and the message say why.

    Examples
    --------
    >>> with open_gallery("people.gallery", key="file:/run/secrets/key") as store:  # doctest: +SKIP
    ...     [person.name for person in store.people()]
    ['Ada Lovelace', 'Grace Hopper']
    """
    kind, where = _store_of(place, name)
    store: GalleryStore = kind(*where, key=_read(key, where), contract_id=contract_id, timeout=timeout)
    return store


def create_gallery(
    place: str | Path,
    *,
    contract: ModelContract,
    key: bytes | str | None,
    name: str | None = None,
    keep_images: bool = False,
) -> GalleryStore:
    """Create a gallery without people, and open it.

    Parameters
    ----------
    place, name
        As for `open_gallery`.
    contract
        Of the model whose embeddings it will hold.
    key
        As for `open_gallery`. None: anyone who can read the file can read names and embeddings; this is why there is
        no default.
    keep_images
        Whether it keeps the part of each photo that shows the face, which a rebuild with another model needs.

    Raises
    ------
    OutputError
        If there is one already, or it cannot be written.
    GalleryKeyError
        If there is no key at the named place.
    """
    kind, where = _store_of(place, name)
    store: GalleryStore = kind.create(
        *where,
        contract_id=contract.contract_id,
        dim=contract.embedding_dim,
        model=contract.name,
        key=_read(key, where),
        keep_images=keep_images,
    )
    return store


def _store_of(place: str | Path, name: str | None) -> tuple[Any, tuple[Any, ...]]:
    """Choose the store, and what names the gallery in it."""
    if isinstance(place, str) and place.startswith(_SCHEMES):
        from edgeface.gallery.store.postgres import PostgresStore

        if name is None:
            raise InputError("gallery: expected the name of a gallery on the server, found none; give name=")
        return PostgresStore, (place, name)
    if name is not None:
        raise InputError(f"{place}: expected no name, because a file holds one gallery; leave name out")
    from edgeface.gallery.store.sqlite import SqliteStore

    return SqliteStore, (Path(place),)


def _read(key: bytes | str | None, where: tuple[Any, ...]) -> bytes | None:
    if not isinstance(key, str):
        return key
    return read_key(key, beside=where[0] if isinstance(where[0], Path) else None)
