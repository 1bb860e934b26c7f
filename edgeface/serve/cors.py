"""Let pages of named origins call the API from a browser (CORS; Fetch standard, section 3.2); no others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.responses import Response

_METHODS = "GET, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = "x-api-key, authorization, content-type, x-request-id, x-request-timeout"
_ANSWER_HEADERS = "x-request-id, retry-after"
_PREFLIGHT_SECONDS = 600


def preflight(method: str, headers: Mapping[bytes, bytes], origins: Collection[str]) -> Response | None:
    """Answer what a browser asks before it sends a key; None: the request is something else, or of another origin."""
    if method != "OPTIONS" or b"access-control-request-method" not in headers or not _named(headers, origins):
        return None
    allowed = {
        "Access-Control-Allow-Methods": _METHODS,
        "Access-Control-Allow-Headers": _REQUEST_HEADERS,
        "Access-Control-Max-Age": str(_PREFLIGHT_SECONDS),
    }
    return Response(status_code=204, headers=allowed)


def cors_headers(headers: Mapping[bytes, bytes], origins: Collection[str]) -> list[tuple[bytes, bytes]]:
    """Return the headers that every answer has where origins are named; those of another origin allow nothing."""
    if not origins:
        return []
    vary = [(b"vary", b"Origin")]  # a cache must not give the answer for one origin to another
    origin = _named(headers, origins)
    if origin is None:
        return vary
    allowed = [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _ANSWER_HEADERS.encode())]
    return vary + allowed  # without credentials: the key is in a header, never in a cookie


def may_open_socket(headers: Mapping[bytes, bytes], scheme: str, origins: Collection[str]) -> bool:
    """Whether who asks may open a WebSocket: no page, one of this service, or one of a named origin.

    Browsers let every page try, and say only which one it is (RFC 6455, section 10.2). `scheme` is ``ws`` or ``wss``.

    Examples
    --------
    >>> own = {b"host": b"door.local", b"origin": b"https://door.local"}
    >>> may_open_socket(own, "wss", ()), may_open_socket(own, "ws", ()), may_open_socket(own, "ws", ["https://door.local"])
    (True, False, True)
    """
    own = (b"https://" if scheme == "wss" else b"http://") + headers.get(b"host", b"")
    origin = headers.get(b"origin")
    return origin is None or origin.lower() == own.lower() or _named(headers, origins) is not None


def _named(headers: Mapping[bytes, bytes], origins: Collection[str]) -> bytes | None:
    origin = headers.get(b"origin")
    return origin if origin is not None and origin.decode("latin-1") in origins else None
