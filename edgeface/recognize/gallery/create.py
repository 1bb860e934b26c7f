"""What a gallery is bound to in, a file with nobody in it out, whole or not at all."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from edgeface.errors import OutputError
from edgeface.files import output_errors, staging_folder
from edgeface.recognize.gallery.codec import Header
from edgeface.recognize.gallery.database import mark_header
from edgeface.recognize.gallery.faults import sqlite_errors
from edgeface.recognize.gallery.schema import PAGE_SIZE, create_tables
from edgeface.recognize.gallery.vault import Vault

__all__ = ["create_database"]


def create_database(path: Path, header: Header, vault: Vault) -> None:
    """Make a gallery with nobody in it, whole or not at all.

    Raises
    ------
    OutputError
        If something is there already, or the folder cannot be written to.
    """
    if path.exists():
        raise OutputError(f"{path}: expected no file there yet, found one; choose another name")
    with staging_folder(path.parent) as staging, sqlite_errors(path):
        staged = staging / path.name
        connection = sqlite3.connect(staged, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN IMMEDIATE")
            create_tables(connection)
            text = header.encode()
            connection.execute(
                "INSERT INTO gallery (one, header, header_mark, generation, next_id) VALUES (1, ?, ?, 1, 1)",
                (text, mark_header(text, vault)),
            )
            connection.commit()
        finally:
            connection.close()
        with output_errors(path):
            _link(staged, path)
            _sync_folder(path.parent)


def _link(staged: Path, path: Path) -> None:
    """Give a finished file its name, and never take the name from another."""
    try:
        os.link(staged, path)
    except FileExistsError:
        raise OutputError(f"{path}: expected no file there yet, found one; choose another name") from None
    except OSError:  # a file system without hard links, such as that of a USB stick
        staged.replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
