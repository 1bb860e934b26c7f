"""Open and create galleries, wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.errors import InputError
from edgeface.gallery.keys import read_key

if TYPE_CHECKING:
    from edgeface.gallery.store.base import GalleryStore
    from edgeface.model.contract import ModelContract


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
        The file, or the server's address: ``postgresql://user@host/database``.
    name
        Of the gallery on a server; None: `place` is a file.
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
    if name is None:
        from edgeface.gallery.store.sqlite import SqliteStore

        path = _path(place)
        return SqliteStore(path, key=_bytes(key, path), contract_id=contract_id, timeout=timeout)
    from edgeface.gallery.store.postgres import PostgresStore

    return PostgresStore(str(place), name, key=_bytes(key, None), contract_id=contract_id, timeout=timeout)


def create_gallery(
    place: str | Path,
    *,
    contract: ModelContract,
    key: bytes | str | None,
    name: str | None = None,
    keep_images: bool = False,
    allow_seeded: bool = False,
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
    allow_seeded
        Accept the contract of a model of random weights, which recognises no one.

    Raises
    ------
    ContractError
        If the model's weights are seeded.
    OutputError
        If there is one already, or it cannot be written.
    GalleryKeyError
        If there is no key at the named place.
    """
    contract.refuse_seeded(source=contract.name, allow_seeded=allow_seeded)
    contract_id, dim, model = contract.contract_id, contract.embedding_dim, contract.name
    if name is None:
        from edgeface.gallery.store.sqlite import SqliteStore

        path = _path(place)
        return SqliteStore.create(
            path, contract_id=contract_id, dim=dim, key=_bytes(key, path), model=model, keep_images=keep_images
        )
    from edgeface.gallery.store.postgres import PostgresStore

    return PostgresStore.create(
        str(place), name, contract_id=contract_id, dim=dim, key=_bytes(key, None), model=model, keep_images=keep_images
    )


def _path(place: str | Path) -> Path:
    if str(place).startswith(("postgresql:", "postgres:")):
        raise InputError("gallery: expected the name of a gallery on the server, found none; give name=")
    return Path(place)


def _bytes(key: bytes | str | None, beside: Path | None) -> bytes | None:
    return read_key(key, beside=beside) if isinstance(key, str) else key
