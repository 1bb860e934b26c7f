"""Text from outside: make it printable, and keep passwords and keys out of messages."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import unicodedata
import urllib.parse

_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufffc\U0001d159\U000e0100-\U000e01ef]"
)
_JOINERS = "\u200c\u200d"
_ENDS_A_JOIN = re.compile(
    "[\u0621-\u0625\u0627\u0629\u062f-\u0632\u0648\u0671-\u0677\u0688-\u0699\u06c0\u06c3-\u06cb\u06cd\u06cf\u06d2\u06d3\u06d5\u06ee\u06ef]"
)
"""Arabic letters that never join the next one (Joining_Type R or U): a joiner after one of them is not seen."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/{1,2}(?:[^\n]{0,200}@)?\S*")
_SECRET_WORD = re.compile(
    r"(user(name)?|login|pass(w(or)?d)?|pwd|token|key|api_?key|secret|auth|sig(nature)?)", re.IGNORECASE
)
_HARMLESS = re.compile(r"(ch|channel|stream|subtype|cam(era)?)=\d{1,4}", re.IGNORECASE)
_HIDDEN = "***"
_PASSWORD_FIELD = re.compile(r"(?<!\S)((?:ssl)?password\s*=\s*)(?:'(?:\\.|[^'\\\n])*'|[^\s:]+)")


def is_invisible(text: str, at: int) -> bool:
    """Return whether the character at `at` shows nothing, or changes the order in which others are shown.

    Controls, formats, line separators, surrogates, characters of private use, variation selectors, fillers and blanks
    that are no spaces do. A zero-width joiner or
    non-joiner does not where it changes the shape of letters: after a virama, or between Arabic letters that join
    (Unicode Standard Annex 31, section 2.3).
    """
    character = text[at]
    if character in _JOINERS:
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        if before and unicodedata.combining(before) == 9:
            return False
        joins = before and after and {unicodedata.bidirectional(before), unicodedata.bidirectional(after)} == {"AL"}
        return not joins or bool(_ENDS_A_JOIN.match(before))
    category = unicodedata.category(character)
    return category in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp") or bool(_INVISIBLE.match(character))


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape what a terminal would obey or not show: controls, bidi controls, invisible and undecodable characters.

    `keep` are characters to leave, such as the line ends of a text of several lines.

    Examples
    --------
    >>> print(printable("\x1b[31mAda\u202e.jpg"))
    \x1b[31mAda\u202e.jpg
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character in keep or not is_invisible(text, at) else _escaped(character)
        for at, character in enumerate(text)
    )


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte of a file name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def spreadsheet_cell(value: object) -> object:
    """Return a cell of a CSV that no spreadsheet takes for a formula: text like one gets a quote in front.

    Examples
    --------
    >>> spreadsheet_cell("=1+1"), spreadsheet_cell(-1.5)
    ("'=1+1", -1.5)
    """
    if not isinstance(value, str):
        return value
    text = printable(value, keep="\n")
    return f"'{text}" if text.lstrip()[:1] in set("=+-@|%\uff1d\uff0b\uff0d\uff20") else text


def without_secrets(address: str) -> str:
    """Return an address without user, password, query and fragment, and without what may be a secret in its path.

    Where a password has characters that an address may not have there (``@ / ? #``), only an IP address that follows
    the last ``@`` is shown of the rest.

    Examples
    --------
    >>> without_secrets("rtsp://admin:pass@10.0.0.7:554/live?token=1")
    'rtsp://10.0.0.7:554/live'
    >>> without_secrets("rtsp://admin:p@ss/w?rd@10.0.0.7/live")
    'rtsp://***@10.0.0.7'
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+:/{1,2})(.*)", address, re.DOTALL)
    if found is None:
        return address
    scheme, rest = found[1], found[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path = re.split(r"[?#]", rest[len(authority) :], maxsplit=1)[0]
    user, _, host = authority.rpartition("@")
    unclear = "@" in rest[len(authority) :] and (user or ":" in host)  # a password may go on after / ? or #
    if unclear or not re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]*\]|[^:\s]*)(:\d*)?", host):
        return f"{scheme}{_HIDDEN}{_address_after(rest)}"
    if scheme.lower().startswith("rtmp"):  # its path ends with the stream's key
        return f"{scheme}{host}"
    return f"{scheme}{host}{_open_part(path)}"


def _address_after(rest: str) -> str:
    host = re.match(r"\[?([0-9A-Fa-f:.]+?)\]?(:\d+)?([/?#\s]|$)", rest.rpartition("@")[2])
    try:
        return f"@{ipaddress.ip_address(host[1])}{host[2] or ''}" if host and "@" in rest else ""
    except ValueError:
        return ""


def _open_part(path: str) -> str:
    """Return a path up to the first part that may hold a secret."""
    parts = path.split("/")
    for at, part in enumerate(parts):
        told = urllib.parse.unquote(part)
        if re.search(r"[=:;]", told) or _SECRET_WORD.fullmatch(told):
            harmless = [field for field in re.split("[&;]", told) if _HARMLESS.fullmatch(field)]
            return "/".join([*parts[:at], "&".join(harmless) or _HIDDEN])
    return path


def encoded_user(address: str) -> str:
    """Percent-encode user and password of an address where they have ``/ ? #``, which would end its host.

    Examples
    --------
    >>> encoded_user("rtsp://admin:p/w@camera:554/live")
    'rtsp://admin:p%2Fw@camera:554/live'
    """
    scheme, mark, rest = address.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    is_host = re.fullmatch(r"(\[[^\]]*\]|[^:@]*)(:\d*)?", authority)
    if "@" not in rest[len(authority) :] or is_host:
        return address
    user, _, host = rest.rpartition("@")
    return f"{scheme}{mark}{urllib.parse.quote(user, safe=':%!$&()*+,;=')}@{host}"


def hide_secrets(text: str) -> str:
    """Replace each address of a text that has a user, a query or a fragment by `without_secrets` of it.

    The password of PostgreSQL's other form of address, ``host=db password=...``, is replaced too.

    Examples
    --------
    >>> hide_secrets("host=db password=lovelace dbname=people: expected a gallery")
    'host=db password=*** dbname=people: expected a gallery'
    >>> hide_secrets("http://ada:lovelace@host/a.xml: no such file")
    'http://host/a.xml: no such file'
    """
    text = _PASSWORD_FIELD.sub(rf"\1{_HIDDEN}", text)
    return _ADDRESS.sub(_hide, text) if ":/" in text else text


def _hide(found: re.Match[str]) -> str:
    address = found[0].rstrip("'\":;,.)]>")
    if not re.search(r"[@?#=]", address):
        return found[0]
    return without_secrets(address) + found[0][len(address) :]


def name_of_key(where: str) -> str:
    """Return a file, variable or program that should hold a key; not if it may be the key itself.

    Examples
    --------
    >>> name_of_key("EDGEFACE_GALLERY_KEY"), name_of_key("0123456789abcdef" * 4)
    ('EDGEFACE_GALLERY_KEY', '*** (64 characters, not shown: it may be the key itself)')
    """
    runs = re.findall(r"[A-Za-z0-9+=]{16,}", where)
    if any(re.search(r"\d", run) or re.fullmatch(r"[A-Fa-f]+", run) for run in runs):
        return f"{_HIDDEN} ({len(where)} characters, not shown: it may be the key itself)"
    return where


def is_loopback(host: str) -> bool:
    """Return whether a host, by its name or address, is this machine's loopback, where nobody else reads along.

    Examples
    --------
    >>> is_loopback("localhost"), is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("192.0.2.1")
    (True, True, True, False)
    """
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
