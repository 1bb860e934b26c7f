"""Define the errors that edgeface raises on purpose, each with the exit code of the command line.

The tree:

    EdgeFaceError                    4  an internal failure
    ├── RequestError                 4  a running engine did not answer a request
    │   ├── InferenceError              the device failed during the inference
    │   ├── DeadlineExceeded            no answer by the deadline; a TimeoutError too
    │   ├── Overloaded                  the queue was full, and the policy is not to wait
    │   └── EngineClosed                the engine is closed, or belongs to the parent process
    ├── NegativeResult               1  the answer is no: a check failed, a match was refused
    │   └── EnrolmentRefused            the face is another person's, or no photo is good enough
    ├── InputError                   2  wrong use or bad input
    │   ├── ModelFormatError            a model file is damaged or of another format
    │   ├── ConversionError             a model was read but cannot become a correct IR
    │   ├── ContractError               an IR, array or embedding does not fit a contract
    │   ├── CatalogError                a model_zoo.yml or model.yml is malformed
    │   ├── ChecksumError               bytes differ from what was published or recorded
    │   ├── ArchiveError                an archive is unsafe or damaged
    │   ├── ImageError                  a photo is truncated, damaged, too large or no image
    │   ├── FaceError                   no face was found, or it cannot be aligned
    │   ├── GalleryError                the gallery does not exist, or cannot do this
    │   │   ├── GalleryKeyError         the gallery's key is wrong, missing or malformed
    │   │   ├── GalleryDamagedError     the gallery's bytes are not those that were written
    │   │   ├── GalleryBusyError        another process holds the gallery's lock; a TimeoutError too
    │   │   ├── GalleryReplacedError    the gallery changed below an open store: open it again
    │   │   └── GalleryServerError      the gallery's server cannot be reached; a ConnectionError too
    │   └── OutputError                 the output cannot be written
    └── MissingError                 3  something needed is missing
        ├── ModelNotFoundError          no such model in the zoo, or not downloaded
        ├── DownloadError               no source delivered the file
        ├── ExtraNotInstalledError      an optional dependency is not installed
        ├── DeviceError                 an inference device is absent or unusable
        └── NotSupportedError           edgeface cannot do this yet

Every message says what was expected, what was found and what to do next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgeface.text import hide_secrets

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ArchiveError",
    "CatalogError",
    "ChecksumError",
    "ContractError",
    "ConversionError",
    "DeadlineExceeded",
    "DeviceError",
    "DownloadError",
    "EdgeFaceError",
    "EngineClosed",
    "EnrolmentRefused",
    "ExtraNotInstalledError",
    "FaceError",
    "GalleryBusyError",
    "GalleryDamagedError",
    "GalleryError",
    "GalleryKeyError",
    "GalleryReplacedError",
    "GalleryServerError",
    "ImageError",
    "InferenceError",
    "InputError",
    "MissingError",
    "ModelFormatError",
    "ModelNotFoundError",
    "NegativeResult",
    "NotSupportedError",
    "OutputError",
    "Overloaded",
    "RequestError",
    "SnapshotTooOldError",
]


class EdgeFaceError(Exception):
    """Base of every error that edgeface raises on purpose.

    Give either a whole sentence, or the parts, from which the text is composed:
    ``path: expected ..., found ...; remedy``. Passwords in addresses are left out of the text.

    Attributes
    ----------
    expected, found, remedy : str or None
        What was needed, what was found instead, and what to do next.
    path : path-like or None
        The file or folder that the error is about.

    Examples
    --------
    >>> error = InputError(path="a.jpg", expected="a face", found="none", remedy="use a larger photo")
    >>> str(error)
    'a.jpg: expected a face, found none; use a larger photo'
    >>> error.remedy
    'use a larger photo'
    """

    exit_code: ClassVar[int] = 4

    def __init__(
        self,
        message: str = "",
        *,
        path: str | PathLike[str] | None = None,
        expected: str | None = None,
        found: str | None = None,
        remedy: str | None = None,
    ) -> None:
        self.path, self.expected, self.found, self.remedy = path, expected, found, remedy
        if not message:
            fact = ", ".join(
                f"{word} {part}" for word, part in (("expected", expected), ("found", found)) if part is not None
            )
            message = "; ".join(part for part in (fact, remedy) if part)
            message = f"{path}: {message}" if path is not None else message
        super().__init__(hide_secrets(message))

    def with_path(self, path: str | PathLike[str]) -> Self:
        """Return the same error with a path, which precedes its text."""
        return type(self)(f"{path}: {self}", path=path, expected=self.expected, found=self.found, remedy=self.remedy)


class NegativeResult(EdgeFaceError):  # noqa: N818 - the program worked; its answer is no
    """The work was done and the answer is no, e.g. a check failed."""

    exit_code = 1


class EnrolmentRefused(NegativeResult):
    """No one was enrolled: the face belongs to another enrolled person, or no photo is good enough.

    Attributes
    ----------
    reason
        A word for programs: ``lookalike``, ``several-people`` or ``no-usable-photo``.
    details
        JSON objects: the people who are alike, one of each group of photos, or why each photo is not usable.
    """

    def __init__(
        self,
        message: str = "",
        *,
        reason: str = "no-usable-photo",
        details: Iterable[Mapping[str, object]] = (),
        **parts: Any,
    ) -> None:
        super().__init__(message, **parts)
        self.reason, self.details = reason, tuple(map(dict, details))


class RequestError(EdgeFaceError):
    """A running engine did not answer a request."""


class InferenceError(RequestError):
    """The device failed during this request's inference."""


class DeadlineExceeded(RequestError, TimeoutError):  # noqa: N818 - names what happened, as gRPC does
    """There was no answer by the request's deadline."""


class Overloaded(RequestError):  # noqa: N818 - demand exceeds capacity; the engine itself is healthy
    """The queue was full: this request was rejected, or a newer one took its place."""


class EngineClosed(RequestError):  # noqa: N818 - a state, not a fault
    """The engine was closed, or belongs to the parent of this forked process."""


class InputError(EdgeFaceError):
    """Wrong use or bad input."""

    exit_code = 2


class ModelFormatError(InputError):
    """A model file is truncated, damaged, or not of the format its name promises."""


class ConversionError(InputError):
    """A model was read, but cannot be converted into a correct IR."""


class ContractError(InputError):
    """An IR, an array or an embedding does not fit the contract it is used with."""


class CatalogError(InputError):
    """A model_zoo.yml or Open Model Zoo model.yml is malformed."""


class ChecksumError(InputError):
    """A file's bytes differ from what was published or recorded for it."""


class ArchiveError(InputError):
    """An archive is damaged, too large, or would write outside its folder."""


class ImageError(InputError):
    """A photo is truncated, damaged, too large, or no image."""


class FaceError(InputError):
    """No face was found where one was expected, or its box or landmarks cannot be aligned."""


class GalleryError(InputError):
    """The gallery does not exist, has no such person, or cannot do what is asked."""


class GalleryKeyError(GalleryError):
    """The key is not the one that the gallery was encrypted with, is missing, or is malformed."""


class GalleryDamagedError(GalleryError):
    """Bytes of a gallery were changed or moved after they were written."""


class GalleryBusyError(GalleryError, TimeoutError):
    """Another process kept the gallery locked for longer than the time-out."""


class GalleryReplacedError(GalleryError):
    """What is open is not the gallery that is there: it was removed, replaced, rebuilt, rekeyed or closed meanwhile."""


class GalleryServerError(GalleryError, ConnectionError):
    """The gallery's server cannot be reached, or the connection to it was lost."""


class SnapshotTooOldError(GalleryServerError):
    """A gallery's server has been away for longer than a snapshot of it may be searched."""


class OutputError(InputError):
    """The output cannot be written: no space, no permission, or a path that is no folder."""


class MissingError(EdgeFaceError):
    """Something needed is missing: a model, a device, a package."""

    exit_code = 3


class ModelNotFoundError(MissingError):
    """No model of this name in the zoo, or it is not downloaded."""


class DownloadError(MissingError):
    """No source delivered the file."""


def install_line(extra: str) -> str:
    """Return the command that adds an optional extra to this installation: a clone, an archive or a release."""
    import shlex

    return f"pip install {'-e ' if _clone() else ''}{shlex.quote(package_with(extra))}"


def package_with(extra: str) -> str:
    """Return what pip is asked for to install this edgeface with an extra, or several with commas between them.

    See https://packaging.python.org/en/latest/specifications/direct-url/ for how pip records where it installed from.
    """
    import importlib.metadata
    import json
    import urllib.parse
    import urllib.request

    if clone := _clone():
        return f"{clone}[{extra}]"
    wanted = f"edgeface[{extra}]"
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        record = json.loads(importlib.metadata.distribution("edgeface").read_text("direct_url.json") or "null")
        if "dir_info" in record:
            return urllib.request.url2pathname(urllib.parse.urlsplit(record["url"]).path) + f"[{extra}]"
        kind = record["vcs_info"]["vcs"] + "+" if "vcs_info" in record else ""
        return f"{wanted} @ {kind}{record['url']}"
    return wanted


def _clone() -> Path | None:
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").is_file() else None


class ExtraNotInstalledError(MissingError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, *, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs the optional extra {extra!r}; install it with: {install_line(extra)}")
        self.extra = extra


class DeviceError(MissingError):
    """An inference device is absent or cannot run the model."""


class NotSupportedError(MissingError):
    """Edgeface cannot do this yet."""
