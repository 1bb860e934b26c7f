"""Addresses of servers whose password cannot be told from the host: refused, and never shown. They need no server."""

from __future__ import annotations

import traceback

import pytest

from edgeface.errors import InputError
from edgeface.gallery.opening import open_gallery
from edgeface.gallery.store.postgres import PostgresStore

pytest.importorskip("psycopg")
SECRET = "s3cretQ"


def open_it(address: str) -> None:
    if address.startswith("postgresql:"):
        open_gallery(address, timeout=1)
    else:
        PostgresStore(address, "people", timeout=1)


@pytest.mark.parametrize(
    "address",
    [
        f"postgresql://me:{SECRET} x@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}%zz@127.0.0.1:1/db",
        f"postgresql://me:p@{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:{SECRET}/x@127.0.0.1:1/db",
        f"postgresql://me@127.0.0.1:1/db?passwrd={SECRET}",
        f"host=127.0.0.1 port=1 password=x {SECRET}",
        f"host=127.0.0.1 port={SECRET}",
    ],
)
def test_an_address_that_cannot_be_read_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(InputError, match=r"expected (the|an) address (of a PostgreSQL server|without)") as caught:
        open_it(address)
    assert SECRET not in str(caught.value)
    told = "".join(line for line in traceback.format_exception_only(caught.value))
    assert SECRET not in told
    assert caught.value.__context__ is None or SECRET not in str(caught.value.__context__)
