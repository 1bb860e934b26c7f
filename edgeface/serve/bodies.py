"""Read what a client sends: photos and fields from multipart, JSON with base64, or the body itself, within limits.

All of it stays in memory: no photo of a request is written to a disk.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeface.errors import InputError
from edgeface.serve.problems import Problem
from edgeface.untrusted import parse_json

if TYPE_CHECKING:
    from starlette.requests import Request

_PARTS, _HEAD_BYTES, _FIELD_BYTES = 128, 4096, 64 << 10
"""Of a multipart body: parts, bytes of a part's headers, bytes of a field that is no file."""
_JSON_VALUES = 40_000
"""Commas and brackets in a JSON body, as 64 embeddings of 512 numbers have; parsed, each may take a hundred bytes."""
_QUICK = 256 << 10
"""Bytes that are parsed on the event loop: in well below a millisecond."""


@dataclass(frozen=True, slots=True)
class Upload:
    """What a request carries.

    Attributes
    ----------
    photos
        Bytes of image files by the name of their field, in the order sent.
    fields
        All else: of JSON as it is, of multipart and of the query as text.
    names
        Of `photos`, the file names that the client gave; empty for those without one. Never a path that is used.
    """

    photos: tuple[tuple[str, bytes], ...]
    fields: dict[str, Any]
    names: tuple[str, ...] = ()

    def photo(self, name: str) -> bytes:
        """Return the only photo of this name; `Problem` if there is none, or several."""
        found = [data for field, data in self.photos if field == name]
        if len(found) != 1:
            raise Problem(
                422,
                "missing-photo" if not found else "too-many-photos",
                f"expected one photo in the field {name!r}, found {len(found)}",
                expected=f"a field {name!r} with an image file (multipart), its base64 (JSON), or the file as the body",
                found=f"{len(found)} of that name",
            )
        return found[0]


async def read_body(request: Request) -> bytes:
    """Return the body as it is; `Problem` if it is compressed."""
    require_plain(request)
    return await request.body()


def require_plain(request: Request) -> None:
    """Raise `Problem` if the body is compressed."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise Problem(415, "content-encoding", f"expected a body that is not compressed, found {encoding!r:.40}")


def media_type(request: Request) -> str:
    """Return the type of a request's body in lower case, without parameters; empty if it names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_upload(request: Request, *names: str) -> Upload:
    """Read a request's body.

    Parameters
    ----------
    request
        Its body is one of: ``multipart/form-data`` with a file a field; ``application/json``, an object with base64 in
        the named fields; or, where one name is expected, an image file as it is.
    names
        Fields that hold photos; in JSON also lists of them.

    Raises
    ------
    Problem, InputError
        If it is something else, malformed, or has too many or too large fields.
    """
    kind, query = media_type(request), dict(request.query_params)
    body = await read_body(request)
    if kind == "multipart/form-data":
        return _read_form(body, request.headers["content-type"], query)
    if kind == "application/json":
        if len(body) <= _QUICK:
            return _read_json(body, names, query)
        return await asyncio.to_thread(_read_json, body, names, query)
    if len(names) == 1 and body and (kind.startswith("image/") or kind in ("application/octet-stream", "")):
        return Upload(((names[0], body),), query, ("",))
    raise Problem(
        415,
        "media-type",
        "expected multipart/form-data, application/json with base64, or an image file as the body, found "
        f"{kind or 'no Content-Type'!r:.80}" + ("" if body else " and an empty body"),
    )


# multipart/form-data (RFC 7578, RFC 2046 section 5.1.1)

_BOUNDARY = re.compile(r";\s*boundary=(?:\"([^\"]+)\"|([^\s;\"]+))", re.I)
_DISPOSITION = re.compile(r"content-disposition\s*:\s*form-data\s*(;.*)", re.I)
_PARAMETER = re.compile(r";\s*(name|filename)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;\"]+))", re.I)


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    filename: str | None
    is_file: bool
    data: bytes


def _read_form(body: bytes, content_type: str, fields: dict[str, Any]) -> Upload:
    photos, names = [], []
    for part in parse_form(body, content_type):
        if part.is_file:
            photos.append((part.name, part.data))
            names.append(part.filename or "")
        elif len(part.data) > _FIELD_BYTES:
            raise _malformed(f"the field {part.name!r:.80} of more than {_FIELD_BYTES} bytes, which is no file")
        else:
            fields[part.name] = _text(part.data)
    return Upload(tuple(photos), fields, tuple(names))


def parse_form(body: bytes, content_type: str) -> Iterator[_Part]:
    """Yield the parts of a multipart body, each a copy of its bytes; `Problem` for one that is malformed.

    The work is a few searches of the body, whatever it holds: it takes no longer for a hostile one.
    """
    found = _BOUNDARY.search(content_type)
    boundary = (found[1] or found[2]).encode("latin-1") if found else b""
    if not 1 <= len(boundary) <= 70:
        raise _malformed("a Content-Type without a boundary of 1 to 70 characters")
    delimiter = b"\r\n--" + boundary
    if body.startswith(delimiter[2:]):
        start = len(delimiter) - 2
    elif (start := body.find(delimiter) + len(delimiter)) < len(delimiter):
        raise _malformed("a body without its boundary")
    for _ in range(_PARTS + 1):
        if body.startswith(b"--", start):
            return
        line_end = body.find(b"\r\n", start, start + 100)
        if line_end < 0 or body[start:line_end].strip(b" \t"):
            raise _malformed("a boundary that does not end its line")
        start = line_end  # a part without headers begins with an empty line
        head_end = body.find(b"\r\n\r\n", start, start + _HEAD_BYTES)
        end = body.find(delimiter, head_end + 2 if head_end >= 0 else start)
        if head_end < 0 or end < 0:
            raise _malformed("a part without the end of its headers, or of itself")
        yield _read_part(body[start + 2 : head_end], body[head_end + 4 : end])
        start = end + len(delimiter)
    raise _malformed(f"more than {_PARTS} parts")


def _read_part(head: bytes, data: bytes) -> _Part:
    named: dict[str, str] = {}
    kind = "text/plain"
    for line in _text(head).split("\r\n"):
        if disposition := _DISPOSITION.fullmatch(line):
            for name, quoted, plain in _PARAMETER.findall(disposition[1]):
                text = re.sub(r"\\([\"\\])", r"\1", quoted) if quoted else plain
                named.setdefault(name.lower(), text.replace("%22", '"'))
        elif line.lower().startswith("content-type:"):
            kind = line.partition(":")[2].partition(";")[0].strip().lower()
    if "name" not in named:
        raise _malformed("a part without Content-Disposition: form-data and a name")
    return _Part(named["name"], named.get("filename"), "filename" in named or kind != "text/plain", data)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("text that is not UTF-8") from None


def _malformed(found: str, expected: str = "multipart/form-data") -> Problem:
    return Problem(400, "malformed-body", f"expected {expected}, found {found}", expected=expected, found=found)


# JSON


def _read_json(body: bytes, names: tuple[str, ...], fields: dict[str, Any]) -> Upload:
    given = parse_object(body)
    photos = []
    for name in names:
        value = given.pop(name, None)
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            photos.append((name, decode_base64(each, name)))
    return Upload(tuple(photos), fields | given, ("",) * len(photos))


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request has for a body; `Problem` for another body."""
    if media_type(request) != "application/json":
        raise Problem(415, "media-type", f"expected application/json, found {media_type(request)!r:.80}")
    return parse_object(await read_body(request))


def parse_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object in UTF-8; `Problem` if it is something else, or would take much more memory than bytes."""
    if sum(map(body.count, (b",", b"[", b"{"))) > _JSON_VALUES:
        raise _malformed(f"more than {_JSON_VALUES} commas and brackets", "JSON of few values")
    try:
        given = parse_json(body.decode("utf-8"))
    except (InputError, ValueError, RecursionError) as error:
        raise _malformed(f"{error!s:.200}", "JSON in UTF-8") from error
    if not isinstance(given, dict):
        raise Problem(422, "bad-input", f"expected a JSON object, found {type(given).__name__}")
    return given


def decode_base64(text: Any, name: str) -> bytes:
    """Return the bytes of an image in base64, also as a data URL; an address or a path is refused."""
    if isinstance(text, str):
        head, comma, _ = text[:100].partition(",")
        if comma and head.startswith("data:") and head.endswith(";base64"):
            text = text[len(head) + 1 :]
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise Problem(
        422,
        "not-base64",
        f"{name}: expected an image file in base64, found something else; addresses and paths are never read",
    )
