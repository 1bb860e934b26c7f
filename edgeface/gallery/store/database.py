"""Transactions on a gallery's tables, wherever they are: one writer at a time, one key, one contract."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from typing import Any

from edgeface.cipher import Cipher, make_cipher
from edgeface.errors import (
    ContractError,
    GalleryDamagedError,
    GalleryError,
    GalleryKeyError,
    GalleryReplacedError,
    OutputError,
)
from edgeface.gallery.codec import GalleryHeader
from edgeface.gallery.records import is_detector_name, now
from edgeface.model.contract import current_id

_log = logging.getLogger(__name__)
_DIGEST = 16
_KNOWN_COMMITS = 10_000
"""How many commits an index can be behind and still follow; their ids take some 60 bytes each."""


def _plain_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()


def mark_header(text: str, cipher: Cipher) -> bytes:
    """Return what proves a header: a digest that anyone can check, and one that needs the key."""
    return _plain_digest(text) + cipher.mark(text.encode())


def new_header(
    *, contract_id: str, dim: int, key: bytes | None, model: str, keep_images: bool
) -> tuple[GalleryHeader, Cipher]:
    """Make the header and the cipher of a new gallery."""
    if dim < 1 or not contract_id:
        raise GalleryError(f"gallery: expected a contract_id and a positive dimension, found {contract_id!r} and {dim}")
    gallery_id = uuid.uuid4().hex
    cipher = make_cipher(key, gallery_id)
    header = GalleryHeader(
        gallery_id=gallery_id,
        contract_id=contract_id,
        dim=dim,
        metric="cosine",
        model=model,
        created=now().isoformat(),
        key_id=cipher.key_id,
        keeps_images=keep_images,
    )
    return header, cipher


def record_commit(connection: Any, history: str = "") -> None:
    """Give the generation that is being committed an id: a random one, unless it is given.

    A copy of the gallery that is put back reaches the same generations again, with other people: only the ids tell
    them apart.
    """
    connection.execute("INSERT INTO commits SELECT generation, ? FROM gallery", (history or uuid.uuid4().hex,))
    connection.execute(
        "DELETE FROM commits WHERE generation <= (SELECT generation FROM gallery) - ?", (_KNOWN_COMMITS,)
    )


LAST_COMMIT = (
    "SELECT generation, (SELECT history FROM commits AS c WHERE c.generation = g.generation) FROM gallery AS g"
)
_MOST_NAMED = 4


def schema_differences(found: AbstractSet[tuple[str, ...]], expected: AbstractSet[tuple[str, ...]]) -> list[str]:
    """Say in what the parts of a schema differ from a gallery's: each is its kind, its name, and what makes it."""
    here, wanted = ({part[:2] for part in parts} for parts in (found, expected))
    told = []
    for kind, name in sorted({part[:2] for part in found ^ expected}, reverse=True):  # views and triggers first
        how = "no" if (kind, name) not in here else "another" if (kind, name) in wanted else "a foreign"
        told.append(f"{how} {kind} {name!r:.60}")
    return told


def require_no_differences(where: str, differences: Sequence[str]) -> None:
    """Raise `GalleryDamagedError` if `schema_differences` found any."""
    if differences:
        more = len(differences) - _MOST_NAMED
        raise GalleryDamagedError(
            path=where,
            expected="the tables of a gallery and nothing else",
            found=", ".join(differences[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else ""),
            remedy="another program changed it, and nothing of it was run; restore it from a copy or an export",
        )


class Database(ABC):
    """One connection to a gallery's tables, in SQL that SQLite and PostgreSQL share.

    `where` names the gallery in messages, without a password. `header` and `cipher`, what the gallery is bound to and
    what its rows are sealed with, change with `adopt`. `timeout` is in seconds.
    """

    header: GalleryHeader
    cipher: Cipher
    version: int

    def __init__(self, where: str, *, timeout: float) -> None:
        self.where, self.timeout, self._pid = where, timeout, os.getpid()
        self._lock = threading.RLock()
        self._depth, self._owner, self._wrote = 0, 0, False
        self._connection: Any = None
        self._superseded = False  # by another key or model

    # What depends on where the tables are

    @abstractmethod
    def _errors(self, *, committing: bool = False) -> AbstractContextManager[None]:
        """Turn what the driver raises into errors of edgeface."""

    @abstractmethod
    def _begin(self, *, write: bool) -> Any:
        """Begin a transaction on the connection; one that writes has the gallery for itself."""

    @abstractmethod
    def foreign_parts(self) -> list[str]:
        """Say in what the schema differs from a gallery's, inside a transaction; empty if in nothing."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Undo the transaction, if one is still open."""

    def _announce(self, connection: Any) -> None:
        """Let others hear of the commit that follows, where there is a way."""
        return

    def require_place(self) -> None:
        """Raise `GalleryReplacedError` if what is open is not what others find where the gallery is."""
        return

    def is_current(self) -> bool:
        """Return whether what is open is still the gallery, as far as is known without reading it."""
        try:
            self.require_place()
        except GalleryReplacedError:
            return False
        return self._connection is not None and not self._superseded

    # Opening

    def _bind(self, text: str, mark: object, *, key: bytes | None, contract_id: str | None) -> None:
        """Check the stored header against its mark, the key and the contract, and take it."""
        where = self.where
        if not isinstance(mark, bytes) or mark[:_DIGEST] != _plain_digest(text):
            raise GalleryDamagedError(f"{where}: its header is damaged; restore the gallery from a copy")
        header = GalleryHeader.decode(text)
        if header.key_id and key is None:
            raise GalleryKeyError(f"{where}: this gallery is encrypted and no key was given; give it with --key")
        if key is not None and not header.key_id:
            raise GalleryKeyError(
                f"{where}: a key was given, but this gallery is not encrypted; leave the key out, or check the path"
            )
        cipher = make_cipher(key, header.gallery_id)
        if cipher.key_id != header.key_id:
            raise GalleryKeyError(
                f"{where}: expected the key {header.key_id}, found another one, {cipher.key_id}; after an interrupted "
                "rekey, try the key before or after it"
            )
        if mark != mark_header(text, cipher):
            raise GalleryDamagedError(f"{where}: its header was forged; restore the gallery from a copy")
        if contract_id is not None and current_id(contract_id) != current_id(header.contract_id):
            raise ContractError(
                f"{where}: expected a gallery of contract {contract_id}, found one of contract {header.contract_id}"
                f"{f' ({header.model})' if header.model else ''}; use that model, or convert the gallery to this one: "
                "edgeface gallery rebuild"
            )
        self.header, self.cipher = header, cipher

    # Transactions

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is inside `reading` or `writing`."""
        return self._depth > 0 and self._owner == threading.get_ident()

    @property
    def uncommitted(self) -> bool:
        """Whether the open block has changed something, which may yet be undone."""
        return self._depth > 0 and self._wrote

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Yield a connection that sees one state of the gallery, whatever others write meanwhile."""
        with self._lock, self._nested() if self._depth else self._outermost(write=False) as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """Yield a connection for one transaction without other writers; a block within a block is undone alone."""
        with self._lock:
            if not self._depth:
                with self._outermost(write=True) as connection:
                    yield connection
                return
            wrote = self._wrote
            with self._nested() as connection:
                connection.execute("SAVEPOINT inner_block")
                try:
                    yield connection
                except BaseException:
                    self._wrote = wrote
                    if connection.in_transaction:
                        connection.execute("ROLLBACK TO inner_block")
                        connection.execute("RELEASE inner_block")
                    raise
                connection.execute("RELEASE inner_block")

    @contextlib.contextmanager
    def _nested(self) -> Iterator[Any]:
        with self._errors():
            connection = self._usable()
            self._depth += 1
            try:
                yield connection
            finally:
                self._depth -= 1

    @contextlib.contextmanager
    def _outermost(self, *, write: bool) -> Iterator[Any]:
        self._usable()
        try:
            with self._errors():
                connection = self._begin(write=write)
                self._depth, self._owner, self._wrote = 1, threading.get_ident(), False
                self.require_place()
                self._require_header(connection)
                yield connection
                if self._wrote:
                    self.require_place()
                    connection.execute("UPDATE gallery SET generation = generation + 1")
                    record_commit(connection)
                    self._announce(connection)
            with self._errors(committing=self._wrote):
                connection.execute("COMMIT")
        finally:
            self._depth = 0
            self._roll_back()

    def _require_header(self, connection: Any) -> None:
        row = connection.execute("SELECT header FROM gallery").fetchone()
        if row is None or row[0] != self.header.encode():
            self._superseded = True
            raise GalleryReplacedError(
                f"{self.where}: another process changed the key or the model of this gallery; open it again"
            )

    def _usable(self) -> Any:
        if self._connection is None:
            raise GalleryReplacedError(f"{self.where}: this gallery is closed; open it again")
        if self._pid != os.getpid():
            raise GalleryError(
                f"{self.where}: opened before this process was forked; open it again in the child process"
            )
        if self._depth and not self._connection.in_transaction:
            raise OutputError(f"{self.where}: the transaction was rolled back after an earlier failure")
        return self._connection

    @contextlib.contextmanager
    def after_commit(self, in_force: str) -> Iterator[None]:
        """Say what is in force where the work that follows a commit fails; the commit stands, whatever the driver says.

        The erasure that the commit has ordered (`unscrubbed`) is finished by the next opening.
        """
        try:
            yield
        except (GalleryError, OutputError, OSError) as error:
            known = error if isinstance(error, (GalleryError, OutputError)) else OutputError(str(error))
            remedy = f"{known.remedy}, then " if known.remedy else ""
            raise type(known)(
                f"{self.where}: {in_force}, but the old bytes are not yet overwritten: {known.found or known}; "
                f"{remedy}run 'edgeface gallery check' or open the gallery again, which completes the erasure"
            ) from error
        except BaseException:  # an interrupt, or no memory
            _log.warning("%s: %s; the next opening completes the erasure", self.where, in_force)
            raise

    def outside(self, statement: str) -> Any:
        """Run a statement that must not be in a transaction, such as VACUUM; return its first row, if it has rows."""
        with self._lock, self._errors():
            if self._depth:
                raise GalleryError("gallery: cannot be called inside writing()")
            cursor = self._usable().execute(statement)
            return cursor.fetchone() if cursor.description else None

    # Inside a transaction

    def wrote(self) -> int:
        """Declare that the block changes something; return the generation that the commit will have."""
        self._wrote = True
        return self.state("generation") + 1

    def state(self, column: str) -> int:
        """Return a number of the gallery's only row."""
        row = self._usable().execute(f"SELECT {column} FROM gallery").fetchone()
        if row is None or not isinstance(row[0], int):
            raise GalleryDamagedError(f"{self.where}: expected a number in {column}, found {row!r:.40}")
        return row[0]

    def last_commit(self) -> tuple[int, str]:
        """Return number and id of the last commit; no id if edgeface 0.1 made it, in a process that still runs."""
        row = self._usable().execute(LAST_COMMIT).fetchone()
        if row is None or not isinstance(row[0], int):
            raise GalleryDamagedError(f"{self.where}: expected the number of the last commit, found {row!r:.40}")
        return row[0], str(row[1] or "")

    def history_at(self, generation: int) -> str:
        """Return the id of an earlier commit; empty if it is not known."""
        row = self._usable().execute("SELECT history FROM commits WHERE generation = ?", (generation,)).fetchone()
        return "" if row is None else str(row[0])

    def is_known(self, generation: int, history: str) -> bool:
        """Return whether it is known what changed since a commit, which may be one of a lost history."""
        recent = self.state("known_since") <= generation <= self.state("generation")
        return recent and bool(history) and history == self.history_at(generation)

    def oldest_known(self) -> int:
        """Return the generation from which on it is known what changed."""
        (oldest,) = self._usable().execute("SELECT coalesce(min(generation), 0) FROM commits").fetchone()
        return max(int(oldest), self.state("known_since"))

    def take_ids(self, count: int) -> range:
        """Return numbers that were never given before."""
        first = self.state("next_id")
        self._usable().execute("UPDATE gallery SET next_id = next_id + ?", (count,))
        return range(first, first + count)

    def detectors(self) -> tuple[str, ...]:
        """Return the names of the detectors that found the templates' faces, sorted, as far as they are known."""
        row = self._usable().execute("SELECT substr(detectors, 1, 400) FROM gallery").fetchone()
        names = str(row[0]).split() if row else []
        if not all(map(is_detector_name, names)):
            raise GalleryDamagedError(f"{self.where}: expected names of detectors, found {names!r:.80}")
        return tuple(names)

    def note_detectors(self, names: Iterable[str]) -> None:
        """Add to the names of the detectors; in a block that writes."""
        known = set(self.detectors())
        if new := known.union(filter(None, names)) - known:
            self._usable().execute("UPDATE gallery SET detectors = ?", (" ".join(sorted(known | new)),))

    def replace_header(self, header: GalleryHeader, cipher: Cipher) -> None:
        """Bind the gallery to something else; the caller calls `adopt` after the commit."""
        text = header.encode()
        self._usable().execute("UPDATE gallery SET header = ?, header_mark = ?", (text, mark_header(text, cipher)))

    def adopt(self, header: GalleryHeader, cipher: Cipher) -> None:
        """Go on with what `replace_header` wrote, now that it is committed."""
        self.header, self.cipher = header, cipher

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        with self._lock, self._errors():
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
            self._connection = None
