"""Read what a client sends: photos and fields from multipart, JSON with base64, or the body itself, within limits."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgeface.errors import InputError
from edgeface.serve.problems import Problem
from edgeface.untrusted import parse_json

if TYPE_CHECKING:
    from starlette.requests import Request

_FIELD_BYTES, _FIELDS = 64 << 10, 64


@dataclass(frozen=True, slots=True)
class Upload:
    """What a request carries.

    Attributes
    ----------
    photos
        Bytes of image files by the name of their field, in the order sent.
    fields
        All else: of JSON as it is, of multipart and of the query as text.
    """

    photos: tuple[tuple[str, bytes], ...]
    fields: dict[str, Any]

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
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query = dict(request.query_params)
    if kind == "multipart/form-data":
        return await _read_form(request, names, query)
    body = await request.body()
    if kind == "application/json":
        return _read_json(body, names, query)
    if len(names) == 1 and body and (kind.startswith("image/") or kind in ("application/octet-stream", "")):
        return Upload(((names[0], body),), query)
    raise Problem(
        415,
        "media-type",
        "expected multipart/form-data, application/json with base64, or an image file as the body, found "
        f"{kind or 'no Content-Type'}" + ("" if body else " and an empty body"),
    )


async def _read_form(request: Request, names: tuple[str, ...], fields: dict[str, Any]) -> Upload:
    from starlette.exceptions import HTTPException

    photos = []
    try:
        async with request.form(max_files=_FIELDS, max_fields=_FIELDS, max_part_size=_FIELD_BYTES) as form:
            for name, value in form.multi_items():
                if isinstance(value, str):
                    fields[name] = value
                else:
                    photos.append((name, await value.read()))
    except HTTPException as error:
        raise Problem(400, "malformed-body", f"expected multipart/form-data, found: {error.detail}") from error
    return Upload(tuple(photos), fields)


def _read_json(body: bytes, names: tuple[str, ...], fields: dict[str, Any]) -> Upload:
    try:
        given = parse_json(body)
    except (InputError, ValueError, RecursionError) as error:
        raise Problem(400, "malformed-body", f"expected JSON, found: {error}") from error
    if not isinstance(given, dict):
        raise Problem(422, "bad-input", f"expected a JSON object, found {type(given).__name__}")
    photos = []
    for name in names:
        value = given.pop(name, None)
        for each in value if isinstance(value, list) else [] if value is None else [value]:
            photos.append((name, decode_base64(each, name)))
    return Upload(tuple(photos), fields | given)


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
