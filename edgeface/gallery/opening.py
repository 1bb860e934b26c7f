"""Open and create galleries, wherever they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeface.gallery.address import is_on_server, split_address
from edgeface.gallery.keys import read_key

if TYPE_CHECKING:
    from edgeface.gallery.store.base import GalleryStore
    from edgeface.model.contract import ModelContract


def open_gallery(
    place: str | Path,
    *,
    key: bytes | str | None = None,
    contract_id: str | None = None,
    timeout: float = 30.0,
    patience: float = 10.0,
) -> GalleryStore:
    """Open a gallery: a file, or one on a PostgreSQL server.

    Parameters
    ----------
    place
        The file, or ``postgresql://USER@HOST/DATABASE?gallery=NAME``; see `edgeface.gallery.address`.
    key
        The 32 bytes it was created with, or where they are kept, as `read_key` takes it: ``file:PATH``, ``env:NAME``
        or ``command:WORDS``. None: it is not encrypted.
    contract_id
        Expected contract; None: any.
    timeout
        Seconds to wait for another process that writes.
    patience
        Seconds to wait for a PostgreSQL server that is away, now and whenever it went away.

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
    secret = read_key(key, beside=place) if isinstance(key, str) else key
    if is_on_server(place):
        from edgeface.gallery.store.postgres import PostgresStore

        url, name = split_address(str(place))
        return PostgresStore(url, name, key=secret, contract_id=contract_id, timeout=timeout, patience=patience)
    from edgeface.gallery.store.sqlite import SqliteStore

    return SqliteStore(Path(place), key=secret, contract_id=contract_id, timeout=timeout)


def create_gallery(
    place: str | Path,
    *,
    contract: ModelContract,
    key: bytes | str | None,
    keep_images: bool = False,
    allow_seeded: bool = False,
) -> GalleryStore:
    """Create a gallery without people, and open it.

    Parameters
    ----------
    place
        As for `open_gallery`.
    contract
        Of the model whose embeddings it will hold.
    key
        As for `open_gallery`. None: anyone who can read the file, or the tables, can read names and embeddings; this
        is why there is no default.
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
    secret = read_key(key, beside=place) if isinstance(key, str) else key
    contract_id, dim, model = contract.contract_id, contract.embedding_dim, contract.name
    if is_on_server(place):
        from edgeface.gallery.store.postgres import PostgresStore

        return PostgresStore.create(
            *split_address(str(place)),
            contract_id=contract_id,
            dim=dim,
            key=secret,
            model=model,
            keep_images=keep_images,
        )
    from edgeface.gallery.store.sqlite import SqliteStore

    return SqliteStore.create(
        Path(place), contract_id=contract_id, dim=dim, key=secret, model=model, keep_images=keep_images
    )
