"""What PostgreSQL or the network says when it fails in, the error of edgeface that says what to do out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from edgeface.errors import (
    EdgeFaceError,
    ExtraNotInstalledError,
    GalleryBusyError,
    GalleryDamagedError,
    GalleryError,
    GalleryServerError,
    InputError,
    OutputError,
)

__all__ = ["driver", "server_errors"]

_BUSY = ("55P03", "40001", "40P01", "57014")
"""lock_not_available, serialization_failure, deadlock_detected, query_canceled (PostgreSQL manual, appendix A)."""
_UNWRITABLE = {
    "53100": "the server's disk is full; free some space there",
    "25006": "the server is read-only (a standby?); connect to the primary",
    "42501": "this user may not; grant it the right",
}
_DAMAGED = ("XX001", "XX002")
_AWAY_CLASSES = ("08", "57P", "53", "25P03")
"""25P03: the server ended the connection because a block stood still for too long."""


def driver() -> Any:
    """The module psycopg.

    Raises
    ------
    ExtraNotInstalledError
        If it is not installed.
    """
    try:
        import psycopg
    except ImportError as error:
        raise ExtraNotInstalledError("postgres", needed_for="a gallery on a PostgreSQL server") from error
    return psycopg


@contextlib.contextmanager
def server_errors(where: str, *, doubt: str = "") -> Iterator[None]:
    """Turn what psycopg raises into one clear error.

    Parameters
    ----------
    where
        Server and gallery, without the password.
    doubt
        What is said if the connection is lost: whether the work was done.
    """
    psycopg = driver()
    try:
        yield
    except psycopg.Error as error:
        raise _translate(psycopg, where, error, doubt or "nothing was changed; try again") from error


def _translate(psycopg: Any, where: str, error: Any, doubt: str) -> EdgeFaceError:
    said = " ".join(str(error).split()) or type(error).__name__
    code = getattr(error, "sqlstate", None) or ""
    if code in _BUSY:
        return GalleryBusyError(
            f"{where}: somebody else writes to this gallery and did not finish in time; nothing was changed here; try "
            f"again, or wait longer (timeout): {said}"
        )
    if code in _UNWRITABLE:
        return OutputError(
            f"{where}: cannot be written: {said}; nothing that was stored is lost; {_UNWRITABLE[code]}"
        )
    if code in _DAMAGED:
        return GalleryDamagedError(
            f"{where}: the server found damaged data: {said}; restore it from a backup"
        )
    if code.startswith(_AWAY_CLASSES) or (not code and isinstance(error, psycopg.OperationalError)):
        return GalleryServerError(f"{where}: the server cannot be reached or went away: {said}; {doubt}")
    if isinstance(error, psycopg.ProgrammingError) and not code:
        return InputError(f"{where}: expected the address of a PostgreSQL server, found: {said}")
    return GalleryError(f"{where}: the server refused: {said}")
