"""A place where a file may be in, a stream of its bytes from some offset out, or a reason why not."""

from __future__ import annotations

import datetime
import email.utils
import html.parser
import http.client
import http.cookiejar
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from edgeface.version import __version__
from edgeface.zoo.schema import GoogleDriveSource, HttpSource

GOOGLE_DRIVE = "https://drive.google.com/uc?export=download&id={id}"

_RETRYABLE = {408, 425, 429, 500, 502, 503, 504}
_RANGE_NOT_SATISFIABLE = 416
_LARGEST_PAGE = 1 << 20
"""Bytes of a web page that are read to find Google Drive's form or the page's title."""


class SourceFault(Exception):  # noqa: N818 - it never leaves this package
    """One attempt at one source failed.

    Attributes
    ----------
    retry
        Whether the same source may do better next time.
    wait
        Seconds that the server asked to wait before that.
    restart
        Whether what was received so far is useless.
    checksum
        Whether the bytes arrived and are the wrong ones.
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
        super().__init__(reason)
        self.retry, self.wait, self.restart, self.checksum = retry, wait, restart, checksum


@dataclass(frozen=True, slots=True)
class Reply:
    """An open stream.

    Attributes
    ----------
    offset
        Position in the file of the first byte; 0 although more was asked for if the source cannot resume or
        the file has changed.
    total
        Bytes of the whole file; None if the source does not say.
    validator
        What identifies this version of the file to the source; None if it has no such thing.
    """

    stream: IO[bytes]
    offset: int
    total: int | None
    validator: str | None


class Location(Protocol):
    """Somewhere a file may be."""

    def open(self, offset: int, *, validator: str | None, timeout: float) -> Reply:
        """Start reading at `offset`, or at 0 if the file is no longer the one that `validator` identifies.

        Parameters
        ----------
        offset
            Bytes that are there already.
        validator
            From the `Reply` that delivered them.
        timeout
            Seconds without a byte.

        Raises
        ------
        SourceFault
            If the source does not deliver the file.
        """


@dataclass(frozen=True, slots=True)
class FolderLocation:
    """A file in a folder that mirrors the zoo."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def open(self, offset: int, *, validator: str | None, timeout: float) -> Reply:
        """See `Location`."""
        try:
            stream = self.path.open("rb")
        except OSError as error:
            raise SourceFault(error.strerror or str(error)) from error
        status = self.path.stat()
        current = f"{status.st_size}-{status.st_mtime_ns}"
        if validator not in (None, current) or offset > status.st_size:
            offset = 0
        stream.seek(offset)
        return Reply(stream, offset, status.st_size, current)


@dataclass(frozen=True, slots=True)
class WebLocation:
    """A file at an address."""

    url: str

    def __str__(self) -> str:
        return self.url

    def open(self, offset: int, *, validator: str | None, timeout: float) -> Reply:
        """See `Location`."""
        response = _request(_opener(), self.url, offset, validator, timeout)
        if _is_page(response):
            with response:
                raise SourceFault(f"answered with a web page {_title(response)} instead of the file")
        return _reply(response, offset)


@dataclass(frozen=True, slots=True)
class DriveLocation:
    """A file that Google Drive shares; large ones come behind a page that asks to confirm."""

    id: str

    def __str__(self) -> str:
        return f"Google Drive file {self.id}"

    def open(self, offset: int, *, validator: str | None, timeout: float) -> Reply:
        """See `Location`."""
        opener = _opener()
        url = GOOGLE_DRIVE.format(id=urllib.parse.quote(self.id))
        response = _request(opener, url, offset, validator, timeout)
        if _is_page(response):
            with response:
                form = _ConfirmationForm.find(_page(response), base=response.url)
            response = _request(opener, form, offset, validator, timeout)
        if _is_page(response):
            with response:
                raise SourceFault(f"answered with a web page {_title(response)} even after confirming")
        return _reply(response, offset)


def locate(source: HttpSource | GoogleDriveSource) -> Location:
    """Turn a catalog's source into something that can be opened."""
    return WebLocation(source.url) if isinstance(source, HttpSource) else DriveLocation(source.id)


def reading_fault(error: Exception) -> SourceFault:
    """Turn what a stream raises while it is read into a fault."""
    if isinstance(error, TimeoutError):
        return SourceFault("sent nothing for too long", retry=True)
    return SourceFault(f"broke off: {error or type(error).__name__}", retry=True)


READING_ERRORS = (OSError, http.client.HTTPException)
"""What reading a stream may raise: time-outs, resets, TLS failures, a body that ends early."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise SourceFault(f"redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
    opener = urllib.request.build_opener(_NoDowngrade, cookies)
    opener.addheaders = [("User-Agent", f"edgeface/{__version__}"), ("Accept-Encoding", "identity")]
    return opener


def _request(
    opener: urllib.request.OpenerDirector, url: str, offset: int, validator: str | None, timeout: float
) -> http.client.HTTPResponse:
    request = urllib.request.Request(url)
    if offset:
        request.add_header("Range", f"bytes={offset}-")
        if validator is not None:
            request.add_header("If-Range", validator)
    try:
        response: http.client.HTTPResponse = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            raise _status_fault(error) from error
    except urllib.error.URLError as error:
        raise _connection_fault(error.reason) from error
    except (*READING_ERRORS, ValueError) as error:
        raise _connection_fault(error) from error
    return response


def _status_fault(error: urllib.error.HTTPError) -> SourceFault:
    reason = f"answered {error.code} {error.reason}"
    if error.code == _RANGE_NOT_SATISFIABLE:
        return SourceFault(reason, retry=True, restart=True)
    return SourceFault(
        reason, retry=error.code in _RETRYABLE, wait=_retry_after(error.headers.get("Retry-After"))
    )


def _connection_fault(reason: object) -> SourceFault:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return SourceFault(f"has no valid certificate: {reason.verify_message}")
    if isinstance(reason, socket.gaierror):
        return SourceFault("host name not found", retry=reason.errno == socket.EAI_AGAIN)
    if isinstance(reason, TimeoutError):
        return SourceFault("did not answer in time", retry=True)
    return SourceFault(f"cannot be reached: {reason}", retry=isinstance(reason, READING_ERRORS))


def _retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header: a number or a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.timezone.utc)
    return max(0.0, (moment - datetime.datetime.now(datetime.timezone.utc)).total_seconds())


def _reply(response: http.client.HTTPResponse, asked: int) -> Reply:
    """Read off the headers where the body starts and how long the file is."""
    headers = response.headers
    etag = headers.get("ETag")
    # a weak ETag must not be used in If-Range (RFC 9110, 13.1.5)
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
        if match is None or int(match[1]) != asked:
            response.close()
            found = headers.get("Content-Range")
            raise SourceFault(
                f"was asked for bytes from {asked}, answered {found!r}", retry=True, restart=True
            )
        return Reply(response, asked, None if match[2] == "*" else int(match[2]), validator)
    length = headers.get("Content-Length")
    return Reply(response, 0, int(length) if length and length.isdigit() else None, validator)


def _is_page(response: http.client.HTTPResponse) -> bool:
    return response.headers.get_content_type() == "text/html"


def _page(response: http.client.HTTPResponse) -> str:
    try:
        return response.read(_LARGEST_PAGE).decode("utf-8", errors="replace")
    except READING_ERRORS as error:
        raise reading_fault(error) from error


def _title(response: http.client.HTTPResponse) -> str:
    return _quoted_title(_page(response))


def _quoted_title(page: str) -> str:
    match = re.search(r"<title[^>]*>(.*?)</title>", page, re.IGNORECASE | re.DOTALL)
    return repr(" ".join(match[1].split())[:80]) if match else "without a title"


class _ConfirmationForm(html.parser.HTMLParser):
    """Finds the form (or, on older pages, the link) by which Google Drive hands a large file over."""

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
            raise SourceFault(f"answered with a web page {_quoted_title(page)} that offers no download")
        address = urllib.parse.urljoin(base, form.action)
        query = urllib.parse.urlencode(form.fields)
        return address + ("&" if "?" in address else "?") + query if query else address
