"""Answer errors: what each error is over HTTP, and how each of the APIs words it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from edgeface.errors import (
    ContractError,
    DeadlineExceeded,
    DeviceError,
    EdgeFaceError,
    EngineClosed,
    EnrolmentRefused,
    ExtraNotInstalledError,
    FaceError,
    GalleryBusyError,
    GalleryDamagedError,
    GalleryError,
    GalleryKeyError,
    GalleryReplacedError,
    GalleryServerError,
    ImageError,
    InferenceError,
    InputError,
    MissingError,
    NegativeResult,
    NotSupportedError,
    OutputError,
    Overloaded,
    SnapshotTooOldError,
)


class Problem(EdgeFaceError):  # noqa: N818 - it is an answer, as RFC 9457 names it
    """What a request is answered with instead of a result.

    Attributes
    ----------
    status, code
        HTTP status, and a word that programs can rely on, e.g. ``no-face``.
    retry_after
        Seconds after which to try again; None: trying again is of no use.
    errors
        What was found, as JSON objects, e.g. the people who are alike.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        expected: str | None = None,
        found: str | None = None,
        remedy: str | None = None,
        retry_after: float | None = None,
        errors: Iterable[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(detail, expected=expected, found=found, remedy=remedy)
        self.status, self.code, self.retry_after, self.errors = status, code, retry_after, tuple(errors)

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that belong to it."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def to_dict(self) -> dict[str, Any]:
        """Return it as RFC 9457 wants it, with ``code``, ``expected``, ``found`` and ``remedy`` beside."""
        known = {"expected": self.expected, "found": self.found, "remedy": self.remedy, "errors": list(self.errors)}
        return {
            "type": f"urn:edgeface:problem:{self.code}",
            "title": self.code.replace("-", " "),
            "status": self.status,
            "code": self.code,
            "detail": str(self),
        } | {key: value for key, value in known.items() if value not in (None, [])}


class NotFound(Problem):
    """There is no such person, template, gallery, model or job."""

    def __init__(self, what: str, found: object, *, remedy: str | None = None) -> None:
        super().__init__(
            404,
            f"no-such-{what}",
            f"there is no {what} {found!r}",
            expected=f"a {what}",
            found=repr(found),
            remedy=remedy,
        )


_STATUS: tuple[tuple[type[EdgeFaceError], int, str], ...] = (
    (Overloaded, 503, "overloaded"),
    (DeadlineExceeded, 504, "deadline-exceeded"),
    (EngineClosed, 503, "closing"),
    (InferenceError, 503, "device-failed"),
    (NegativeResult, 409, "refused"),
    (FaceError, 422, "no-face"),
    (ImageError, 422, "bad-image"),
    (GalleryBusyError, 503, "gallery-busy"),
    (SnapshotTooOldError, 503, "gallery-snapshot-old"),
    (GalleryServerError, 503, "gallery-server-away"),
    (GalleryDamagedError, 503, "gallery-damaged"),
    (GalleryKeyError, 503, "gallery-key"),
    (GalleryReplacedError, 503, "gallery-replaced"),
    (GalleryError, 409, "gallery"),
    (ContractError, 409, "other-contract"),
    (OutputError, 507, "cannot-write"),
    (InputError, 422, "bad-input"),
    (ExtraNotInstalledError, 501, "not-installed"),
    (NotSupportedError, 501, "not-supported"),
    (DeviceError, 503, "device-missing"),
    (MissingError, 409, "missing"),
)
"""The first class that fits decides. 409: the request is well formed and does not fit what is there."""

KINDS = {code: kind for kind, _, code in _STATUS}
"""What a client of the service raises for a problem's code."""

_RETRY = {503: 1.0}
_LOG = "the log of the service says more, under this request's id"
_OPERATORS: dict[str, str] = {
    "gallery-busy": "another process writes to the gallery; nothing was changed; try again",
    "gallery-server-away": f"the gallery's server cannot be reached; look whether it was stored, and repeat; {_LOG}",
    "gallery-damaged": f"the gallery is damaged; {_LOG}",
    "gallery-key": f"the gallery cannot be opened with the service's key; {_LOG}",
    "gallery-replaced": f"the gallery was removed, replaced or changed, and is opened again once it is there; {_LOG}",
    "cannot-write": f"it could not be written, for want of space or of the right to; {_LOG}",
    "internal": f"an internal failure; {_LOG}",
}
"""What concerns who runs the service: what clients are told of it. The log has the error itself."""
_FOLDERS = re.compile(r"(?<![\w.:/])(?:/[^\s/:;,'\"]+)+/(?=[^\s/])|PostgreSQL \S+ \S+: ")


def problem_of(error: BaseException) -> Problem:
    """Return what an exception is over HTTP; what edgeface did not raise on purpose tells nothing of itself."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, EnrolmentRefused):
        status = 422 if error.reason == "no-usable-photo" else 409
        return Problem(status, error.reason, _options(str(error)), errors=error.details)
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            if code in _OPERATORS:
                return Problem(status, code, _OPERATORS[code], retry_after=_RETRY.get(status))
            parts = {name: getattr(error, name) for name in ("expected", "found", "remedy")}
            shown: dict[str, Any] = {name: part and _without_places(part) for name, part in parts.items()}
            return Problem(status, code, _without_places(str(error)), retry_after=_RETRY.get(status), **shown)
    return Problem(500, "internal", _OPERATORS["internal"])


def is_operators(problem: Problem) -> bool:
    """Return whether the client is told less than the log is to have."""
    return problem.code in _OPERATORS or problem.code == "device-failed"


def _without_places(text: str) -> str:
    """Leave out folders and servers: where the service keeps what it has is nothing to clients."""
    return _FOLDERS.sub("", text)


def _options(text: str) -> str:
    """Name the options of the command line as they are over HTTP."""
    for option in ("force", "largest"):
        text = text.replace(f"--{option}", f"{option}=true")
    return text
