"""Open a file at one of its sources, from some offset on: a folder, a Python package, a web server, Google Drive."""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import html.parser
import importlib.metadata
import re
import socket
import ssl
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from edgeface.errors import InputError
from edgeface.text import hide_secrets
from edgeface.untrusted import open_regular
from edgeface.version import __version__
from edgeface.zoo.schema import GoogleDriveSource, HttpSource, PythonPackageSource

if TYPE_CHECKING:
    import httpx

CHUNK = 1 << 20
GOOGLE_DRIVE = "https://drive.google.com/uc?export=download&id={id}"

_RETRYABLE = {408, 425, 429, 500, 502, 503, 504}
_RANGE_NOT_SATISFIABLE = 416
_LARGEST_PAGE = 1 << 20
"""Bytes of a web page that are read to find Google Drive's form or the page's title."""


class SourceFault(Exception):  # noqa: N818 - it never leaves this package
    """One attempt at one source failed.

    `retry` says whether the same source may deliver next time, `wait` the seconds that the server asked to wait before
    that, `restart` whether what was received so far is useless, `checksum` whether the wrong bytes arrived.
    """

    def __init__(
        self,
        reason: str,
        *,
        retry: bool = False,
        wait: float | None = None,
        restart: bool = False,
        checksum: bool = False,
    ) -> None:
        super().__init__(hide_secrets(reason))
        self.retry, self.wait, self.restart, self.checksum = retry, wait, restart, checksum


@dataclass(frozen=True, slots=True)
class Reply:
    """An open file: its bytes from `offset` on.

    `offset` is 0 although more was asked for if the source cannot resume or the file has changed. `total` is the size
    of the whole file, and `validator` identifies this version of it; None if the source does not say.
    """

    chunks: Iterator[bytes]  # raises SourceFault if the source breaks off
    offset: int
    total: int | None
    validator: str | None


@dataclass(frozen=True, slots=True)
class FolderLocation:
    """A file in a folder that mirrors the zoo."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @contextlib.contextmanager
    def open(self, offset: int, *, validator: str | None, timeout: float) -> Iterator[Reply]:
        """See `WebLocation.open`; a file needs no time-out, and nothing cheap identifies its version."""
        try:
            status, stream = self.path.stat(), open_regular(self.path)
        except (OSError, InputError) as error:
            raise SourceFault(getattr(error, "strerror", None) or str(error)) from error
        if validator is not None or offset > status.st_size:
            offset = 0
        with stream:
            stream.seek(offset)
            yield Reply(self._chunks(stream), offset, status.st_size, None)

    @staticmethod
    def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
        try:
            while chunk := stream.read(CHUNK):
                yield chunk
        except OSError as error:
            raise SourceFault(f"broke off: {error}", retry=True) from error


@dataclass(frozen=True, slots=True)
class PackageLocation:
    """A file of a Python distribution that may be installed."""

    source: PythonPackageSource

    def __str__(self) -> str:
        return str(self.source)

    def find(self) -> Path | None:
        """Return the installed file, or None; nothing of the package is imported."""
        try:
            distribution = importlib.metadata.distribution(self.source.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None
        path = Path(str(distribution.locate_file(self.source.path)))
        return path if path.is_file() else None

    @contextlib.contextmanager
    def open(self, offset: int, *, validator: str | None, timeout: float) -> Iterator[Reply]:
        """See `WebLocation.open`."""
        if (path := self.find()) is None:
            raise SourceFault(f"is not installed; install it with: pip install {self.source.distribution}")
        with FolderLocation(path).open(offset, validator=validator, timeout=timeout) as reply:
            yield reply


@dataclass(frozen=True, slots=True)
class WebLocation:
    """A file at an address; with `confirms`, a page may come first that asks to confirm (Google Drive)."""

    url: str
    name: str = ""
    confirms: bool = False

    def __str__(self) -> str:
        return self.name or self.url

    @contextlib.contextmanager
    def open(self, offset: int, *, validator: str | None, timeout: float) -> Iterator[Reply]:
        """Start reading at `offset`, or at 0 if the file is no longer the one that `validator` identifies.

        `validator` is that of the `Reply` which delivered the bytes before `offset`; `timeout` is in seconds without a
        byte. Raises SourceFault if the source does not deliver the file.
        """
        headers = {}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if validator is not None:
                headers["If-Range"] = validator
        with _client(timeout) as client, contextlib.ExitStack() as opened:
            response = opened.enter_context(client.stream("GET", self.url, headers=headers))
            _check_status(response)
            if self.confirms and _is_page(response):
                form = _ConfirmationForm.find(_page(response), base=str(response.url))
                response = opened.enter_context(client.stream("GET", form, headers=headers))
                _check_status(response)
            if _is_page(response):
                when = "even after confirming" if self.confirms else "instead of the file"
                raise SourceFault(f"answered with a web page {_title(_page(response))} {when}")
            yield _reply(response, offset)


def locate(source: HttpSource | GoogleDriveSource | PythonPackageSource) -> WebLocation | PackageLocation:
    """Return where a catalog's source can be opened."""
    if isinstance(source, PythonPackageSource):
        return PackageLocation(source)
    if isinstance(source, HttpSource):
        return WebLocation(source.url)
    return WebLocation(GOOGLE_DRIVE.format(id=urllib.parse.quote(source.id)), str(source), confirms=True)


@contextlib.contextmanager
def _client(timeout: float) -> Iterator[httpx.Client]:
    """Yield an HTTP client, and turn what goes wrong with it inside the block into a `SourceFault`."""
    import httpx  # here, because it takes a tenth of a second that only a download needs

    headers = {"User-Agent": f"edgeface/{__version__}", "Accept-Encoding": "identity"}
    try:
        with httpx.Client(
            verify=ssl.create_default_context(),  # the system's certificates, and SSL_CERT_FILE
            follow_redirects=True,
            timeout=timeout,
            headers=headers,
            event_hooks={"response": [_refuse_downgrade]},
        ) as client:
            yield client
    except httpx.ConnectTimeout as error:
        raise SourceFault("did not answer in time", retry=True) from error
    except httpx.TimeoutException as error:
        raise SourceFault("sent nothing for too long", retry=True) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _connection_fault(error) from error


def _connection_fault(error: Exception) -> SourceFault:
    import httpx

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return SourceFault(f"has no valid certificate: {cause.verify_message}")
        if isinstance(cause, socket.gaierror):
            return SourceFault("host name not found", retry=cause.errno == socket.EAI_AGAIN)
        cause = cause.__cause__ or cause.__context__
    passing = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    reason = "its address is malformed" if isinstance(error, httpx.InvalidURL) else error  # which tells a part of it
    return SourceFault(f"cannot be reached: {reason}", retry=passing)


def _refuse_downgrade(response: httpx.Response) -> None:
    """Refuse a redirect from https to http."""
    if response.has_redirect_location and response.url.scheme == "https":
        address = response.url.join(response.headers["Location"])
        if address.scheme != "https":
            raise SourceFault(f"redirects from https to {address}")


def _check_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    code = response.status_code
    reason = f"answered {code} {response.reason_phrase}"
    if code == _RANGE_NOT_SATISFIABLE:
        raise SourceFault(reason, retry=True, restart=True)
    wait = _retry_after(response.headers.get("Retry-After"))
    raise SourceFault(reason, retry=code in _RETRYABLE, wait=wait)


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, (date - datetime.datetime.now(datetime.timezone.utc)).total_seconds())


def _reply(response: httpx.Response, asked: int) -> Reply:
    """Read from the headers where the body starts and how long the file is."""
    headers = response.headers
    etag = headers.get("ETag")
    # a weak ETag must not be used in If-Range (RFC 9110, 13.1.5)
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if response.status_code == 206:
        found = headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", found)
        if match is None or int(match[1]) != asked:
            raise SourceFault(f"was asked for bytes from {asked}, answered {found!r}", retry=True, restart=True)
        offset, total = asked, None if match[2] == "*" else int(match[2])
    else:
        length = headers.get("Content-Length", "")
        offset, total = 0, int(length) if length.isdigit() else None
    return Reply(_chunks(response, offset, total), offset, total, validator)


def _chunks(response: httpx.Response, received: int, total: int | None) -> Iterator[bytes]:
    import httpx

    try:
        for chunk in response.iter_raw():
            received += len(chunk)
            yield chunk
    except httpx.TimeoutException:
        raise
    except httpx.TransportError as error:
        whole = "" if total is None else f" of {total:,}"
        raise SourceFault(f"broke off after {received:,}{whole} bytes", retry=True) from error


def _is_page(response: httpx.Response) -> bool:
    content_type: str = response.headers.get("Content-Type", "")
    return content_type.partition(";")[0].strip().lower() == "text/html"


def _page(response: httpx.Response) -> str:
    return next(response.iter_raw(_LARGEST_PAGE), b"").decode("utf-8", errors="replace")


def _title(page: str) -> str:
    match = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    return repr(" ".join(match[1].split())[:80]) if match else "without a title"


class _ConfirmationForm(html.parser.HTMLParser):
    """Finds the form (or, on older pages, the link) behind which Google Drive keeps a large file."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the form's address and its hidden fields."""
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and "download" in values.get("action", "") + values.get("id", ""):
            self.action = values.get("action")
        elif tag == "a" and "confirm=" in values.get("href", "") and self.action is None:
            self.action = values["href"]
        elif tag == "input" and self.action is not None and "name" in values:
            self.fields[values["name"]] = values.get("value", "")

    @classmethod
    def find(cls, page: str, *, base: str) -> str:
        """Return the address that the page's form leads to."""
        form = cls()
        form.feed(page)
        if not form.action:
            raise SourceFault(f"answered with a web page {_title(page)} that offers no download")
        address = urllib.parse.urljoin(base, form.action)
        query = urllib.parse.urlencode(form.fields)
        return address + ("&" if "?" in address else "?") + query if query else address
