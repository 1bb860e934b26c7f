"""Addresses of servers whose password cannot be told from the host: refused, and never shown. They need no server."""

from __future__ import annotations

import contextlib
import traceback
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeface.errors import InputError
from edgeface.gallery.address import split_address
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
        f"postgresql://me@127.0.0.1:1/db?gallery=a&pass%77ord={SECRET}",
        f"postgresql://me@127.0.0.1:1/db?%73slpassword={SECRET}&gallery=a",
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


@given(
    name=st.from_regex(r"[a-z][a-z0-9_]{0,49}", fullmatch=True),
    fields=st.lists(st.sampled_from(["sslmode=verify-full", "passfile=%2Fa%2Fb", "connect_timeout=3"]), unique=True),
    at=st.integers(0, 3),
)
def test_the_gallery_is_taken_out_of_an_address_wherever_it_stands(name: str, fields: list[str], at: int) -> None:
    query = "&".join([*fields[:at], f"gallery={name}", *fields[at:]])
    rest = f"?{'&'.join(fields)}" if fields else ""
    assert split_address(f"postgresql://me@db/people?{query}") == (f"postgresql://me@db/people{rest}", name)
    assert split_address(f"postgresql://me@db/people{rest}") == (f"postgresql://me@db/people{rest}", "default")


@given(text=st.text(max_size=60))
def test_any_text_is_an_address_without_a_password_or_refused(text: str) -> None:
    with contextlib.suppress(InputError, ValueError):  # ValueError: of urlsplit, for what libpq refuses later
        url, _ = split_address(f"postgresql://{text}")
        assert "gallery=" not in url.partition("?")[2].split("&")
        assert urllib.parse.urlsplit(url).password is None


def test_an_address_names_one_gallery() -> None:
    with pytest.raises(InputError, match="one gallery="):
        split_address("postgresql://me@db/people?gallery=a&gallery=b")
