"""The one address of a gallery: a path, or ``postgresql://USER@HOST[:PORT]/DATABASE[?gallery=NAME]``.

Every place that takes a gallery takes this one text. On a server a database holds any number of galleries; without
``gallery=`` it is the one named ``default``. The other parameters are libpq's (``sslmode=verify-full``,
``passfile=FILE``, ``host=/run/postgresql``). An address has no password, because addresses are shown, logged and listed
with the processes: libpq takes it from PGPASSWORD, or from the file that ``passfile=`` or PGPASSFILE names, by default
``~/.pgpass``.
"""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path

from edgeface.errors import InputError

_FORM = "postgresql://HOST/DATABASE with ?gallery=NAME"
_DEFAULT_NAME = "default"


def is_on_server(place: str | Path) -> bool:
    """Return whether an address is that of a server; `InputError` if it is neither that nor a path.

    Examples
    --------
    >>> is_on_server("postgresql://kiosk@db/people"), is_on_server("people.gallery")
    (True, False)
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", str(place))
    if found is None or Path(place).exists():
        return False
    if found[1] not in ("postgresql", "postgres"):
        raise InputError(f"gallery: expected a path, or {_FORM}, found an address of {found[1]}")
    if isinstance(place, Path):  # which has lost one of the slashes
        raise InputError(f"gallery: expected the address of a server, {_FORM}, as text, found a Path")
    return True


def split_address(address: str) -> tuple[str, str]:
    """Return the address of a server as libpq takes it, and the gallery's name; `InputError` for one with a password.

    Examples
    --------
    >>> split_address("postgresql://kiosk@db/people?sslmode=verify-full&gallery=entrance")
    ('postgresql://kiosk@db/people?sslmode=verify-full', 'entrance')
    """
    base, _, query = address.partition("?")
    fields = [field.partition("=") for field in query.split("&") if field]
    keys = {urllib.parse.unquote(key).strip().lower() for key, _, _ in fields}  # libpq takes pass%77ord= for password=
    names = [urllib.parse.unquote(value) for key, _, value in fields if key == "gallery"]
    rest = "&".join("".join(field) for field in fields if field[0] != "gallery")
    try:
        password = urllib.parse.urlsplit(address).password
    except ValueError:  # no address at all, which libpq says
        password = None
    if password is not None or keys & {"password", "sslpassword"}:
        raise InputError(
            "gallery: expected an address without a password, found one with it, which other users of this machine can "
            "see; remove it, and set PGPASSWORD, write it to ~/.pgpass (chmod 600), or name such a file: ?passfile=FILE"
        )
    if len(names) > 1:
        raise InputError(f"gallery: expected one gallery= in the address, found {len(names)}")
    return f"{base}?{rest}" if rest else base, names[0] if names else _DEFAULT_NAME
