"""Connect to the service that EDGEFACE_SERVER names, and ask it; imports next to nothing.

``unix:/path`` is a service's `listen.socket`; else it is an address, which is plain HTTP on this machine only, unless
EDGEFACE_SERVER_INSECURE is 1. EDGEFACE_SERVER_KEY is a key of the service.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from edgeface.errors import EdgeFaceError, FaceError, ImageError, InputError, MissingError, RequestError
from edgeface.serve.problems import KINDS
from edgeface.text import is_loopback

SERVER, KEY, INSECURE = "EDGEFACE_SERVER", "EDGEFACE_SERVER_KEY", "EDGEFACE_SERVER_INSECURE"
_SECONDS = 30.0
_PREFIX = "/api/edgeface/v1"
INSTEAD = f"unset {SERVER} to use a model of this process"
_LARGEST = 256 << 20
"""Bytes of a photo, or of an answer, that are read into memory; the service takes and gives fewer."""
_KINDS: dict[str, type[EdgeFaceError]] = {**KINDS, "too-large": ImageError, "too-many-faces": FaceError}
_BUSY = ("overloaded", "too-often")
"""Problems that pass by themselves."""


class _UnixConnection(http.client.HTTPConnection):
    """Speaks HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@contextlib.contextmanager
def connected() -> Iterator[http.client.HTTPConnection]:
    """Yield a connection to the service; what fails of it in the block is an error that names the service."""
    address = os.environ[SERVER]
    try:
        url = urllib.parse.urlsplit(address)
        port = url.port
    except ValueError:  # a port that is no number, an address that is none
        url, port = urllib.parse.urlsplit(""), None
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if url.scheme == "http" and not is_loopback(url.hostname or "") and os.environ.get(INSECURE) != "1":
        raise InputError(
            path=SERVER,
            expected="TLS (https), a Unix socket, or this machine",
            found=f"plain HTTP to {url.hostname}",
            remedy=f"the key and the photos could be read on the way; to send them all the same set {INSECURE}=1",
        )
    if url.scheme == "unix":
        connection: http.client.HTTPConnection = _UnixConnection(url.path)
    elif url.scheme in kinds and url.hostname and url.path in ("", "/"):
        connection = kinds[url.scheme](url.hostname, port, timeout=_SECONDS)
    else:
        raise InputError(path=SERVER, expected="unix:/path, http://host:port or https://host:port", found=address)
    try:
        yield connection
    except EdgeFaceError:  # of which some are errors of the operating system too
        raise
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        other = isinstance(error, KeyError | TypeError | AttributeError)
        found = (
            "an answer of another program"
            if other
            else getattr(error, "strerror", None) or str(error) or type(error).__name__
        )
        raise MissingError(
            path=SERVER,
            expected=f"a service of edgeface at {address}",
            found=found,
            remedy=f"start it with 'edgeface serve', or {INSTEAD}",
        ) from error
    finally:
        connection.close()


def target(*parts: str, **query: Any) -> str:
    """Return the target of a request; what is None is not asked for."""
    path = "/".join(urllib.parse.quote(each, safe="") for each in parts)
    asked = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
    return f"{_PREFIX}/{path}" + (f"?{asked}" if asked else "")


def ask(
    connection: http.client.HTTPConnection,
    method: str,
    target: str,
    photos: Mapping[str, tuple[Path, bytes]] | None = None,
) -> dict[str, Any]:
    """Return the service's answer; raise its problem as the error that the command would have raised itself.

    Where the service is busy, ask again when it says, for half a minute.
    """
    if (key := os.environ.get(KEY, "")) and not (key.isascii() and key.isprintable()):
        raise InputError(path=KEY, expected="a key, as 'edgeface serve keys add' prints it", found="something else")
    headers = {"x-api-key": key} if key else {}
    body, end = b"", time.monotonic() + _SECONDS
    if photos is not None:
        boundary = os.urandom(16).hex()
        headers["content-type"] = f"multipart/form-data; boundary={boundary}"
        parts = (
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="photo"\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for name, (_, data) in photos.items()
        )
        body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    while True:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # too large: it is answered before it is read
            connection.request(method, target, body, headers)
        with connection.getresponse() as response:
            status, content, pause = response.status, response.read(_LARGEST), response.getheader("retry-after")
        try:
            answer = json.loads(content, parse_constant=_refuse_number)
        except (ValueError, RecursionError) as error:
            raise TypeError("no JSON") from error
        if status == http.client.OK:
            return dict(answer)
        if answer["code"] not in _BUSY or time.monotonic() + float(pause or _SECONDS) > end:
            raise _error_of(status, answer, photos or {})
        time.sleep(float(pause or 0))


def _refuse_number(name: str) -> NoReturn:
    """Refuse NaN and infinities, which no service of edgeface gives."""
    raise ValueError(name)


def _error_of(status: int, problem: Mapping[str, Any], photos: Mapping[str, tuple[Path, bytes]]) -> EdgeFaceError:
    """Return the service's problem as the command words it: photos by their paths, keys by the variable."""
    detail = str(problem["detail"])
    if status in (401, 403):
        return InputError(f"{KEY}: {detail}")
    if status == http.client.NOT_FOUND:
        return InputError(f"{detail}; {problem.get('remedy') or 'name another'}, or {INSTEAD}")
    for name, (path, _) in photos.items():
        for said in (name, name.replace("_", " ")):
            detail = f"{path}{detail.removeprefix(said)}" if detail.startswith(f"{said}: ") else detail
    parts = {name: problem.get(name) for name in ("expected", "found", "remedy")}
    kind = _KINDS.get(problem["code"], InputError if status < 500 else RequestError)
    return kind(detail, **parts)


def read_photo(path: Path) -> bytes:
    """Return the bytes of a photo's file; raise ImageError as a model of this process would."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file() and path.stat().st_size <= _LARGEST:
            return path.read_bytes()
    from edgeface.vision.image import require_photo

    require_photo(path)
    raise ImageError(path=path, expected=f"a photo of at most {_LARGEST:,} bytes", found="a larger file")
