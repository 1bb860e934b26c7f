"""Everything that edgeface raises on purpose: one tree, each class with the exit code it means.

::

    EdgeFaceError                    4  an internal failure
    ├── RequestError                 4  a running engine did not answer a request
    │   ├── InferenceError              the device failed while it computed
    │   ├── DeadlineExceeded            the answer was not there in time; a TimeoutError too
    │   ├── Overloaded                  the queue was full and the policy was not to wait
    │   └── EngineClosed                closed, or inherited by a forked child
    ├── NegativeResult               1  the answer is no: a gate failed, a match was refused
    │   └── EnrolmentRefused            a face that is somebody else's already, or no picture that is fit
    ├── InputError                   2  wrong use or bad input
    │   ├── ModelFormatError            a model file is not what it should be
    │   ├── ConversionError             a model was read but cannot become a correct IR
    │   ├── ContractError               an IR, array or embedding does not fit a contract
    │   ├── CatalogError                a model_zoo.yml or model.yml is malformed
    │   ├── ChecksumError               bytes differ from what was published or recorded
    │   ├── ArchiveError                an archive is unsafe or damaged
    │   ├── ImageError                  a picture is truncated, damaged, too large or no picture
    │   ├── FaceError                   there is no face, or not one that can be aligned
    │   ├── GalleryError                no gallery, or one that cannot do what is asked
    │   │   ├── GalleryKeyError         the key is another one, missing, or no key
    │   │   ├── GalleryDamagedError     a gallery's bytes are not those that were written
    │   │   ├── GalleryBusyError        somebody else kept it locked for too long; a TimeoutError too
    │   │   └── GalleryServerError      the server that keeps it cannot be reached, or went away
    │   └── OutputError                 the result cannot be written where it was asked for
    └── MissingError                 3  something needed is not there
        ├── ModelNotFoundError          no such model in the zoo, or not downloaded
        ├── DownloadError               no source delivered the file
        ├── ExtraNotInstalledError      an optional dependency is not installed
        ├── DeviceError                 an inference device is absent or unusable
        └── NotSupportedError           edgeface cannot do this yet

Every message says what was expected, what was found and what to do next.
"""

from __future__ import annotations

from os import PathLike
from typing import ClassVar


class EdgeFaceError(Exception):
    """Base of every error that edgeface raises on purpose.

    Give either a whole sentence, or the parts, from which the text is composed:
    ``path: expected ..., found ...; remedy``.

    Attributes
    ----------
    expected, found, remedy : str or None
        What was needed, what was there instead, and what to do next.
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
                f"{word} {part}"
                for word, part in (("expected", expected), ("found", found))
                if part is not None
            )
            message = "; ".join(part for part in (fact, remedy) if part)
            message = f"{path}: {message}" if path is not None else message
        super().__init__(message)


class NegativeResult(EdgeFaceError):  # noqa: N818 - the program worked; its answer is no
    """The work was done and the answer is no: a gate failed, a comparison was lost."""

    exit_code = 1


class EnrolmentRefused(NegativeResult):
    """Nobody was enrolled: the face is that of somebody else who is, or no picture was fit."""


class RequestError(EdgeFaceError):
    """A running engine did not answer a request."""


class InferenceError(RequestError):
    """The device failed while it computed this request."""


class DeadlineExceeded(RequestError, TimeoutError):  # noqa: N818 - names what happened, as gRPC does
    """The answer was not there by the request's deadline."""


class Overloaded(RequestError):  # noqa: N818 - the engine is well; there is too much of it wanted
    """The queue was full: this request was rejected, or a newer one took its place."""


class EngineClosed(RequestError):  # noqa: N818 - a state, not a fault
    """The engine was closed, or belongs to the parent of this forked process."""


class InputError(EdgeFaceError):
    """Wrong use or bad input."""

    exit_code = 2


class ModelFormatError(InputError):
    """A model file is truncated, damaged, or not of the format its name promises."""


class ConversionError(InputError):
    """A model was read, but cannot be turned into an IR that is known to be right."""


class ContractError(InputError):
    """An IR, an array or an embedding does not fit the contract it is used with."""


class CatalogError(InputError):
    """A model_zoo.yml or Open Model Zoo model.yml is malformed."""


class ChecksumError(InputError):
    """A file's bytes differ from what was published or recorded for it."""


class ArchiveError(InputError):
    """An archive is damaged, or would write outside its folder, or is too large."""


class ImageError(InputError):
    """A picture is truncated, damaged, too large, or no picture at all."""


class FaceError(InputError):
    """There is no face where one was expected, or its box or landmarks cannot be aligned."""


class GalleryError(InputError):
    """There is no gallery, no such person in it, or it cannot do what is asked of it."""


class GalleryKeyError(GalleryError):
    """The key is another one than the gallery was encrypted with, is missing, or is no key."""


class GalleryDamagedError(GalleryError):
    """Bytes of a gallery are not those that were written, or not where they were written."""


class GalleryBusyError(GalleryError, TimeoutError):
    """Another process kept the gallery locked for longer than was agreed to wait."""


class GalleryServerError(GalleryError, ConnectionError):
    """The server that keeps a gallery cannot be reached, or the connection to it was lost."""


class OutputError(InputError):
    """The result cannot be written where it was asked for: no space, no permission."""


class MissingError(EdgeFaceError):
    """Something needed is not there."""

    exit_code = 3


class ModelNotFoundError(MissingError):
    """No model of this name in the zoo, or it is not downloaded."""


class DownloadError(MissingError):
    """No source delivered the file."""


class ExtraNotInstalledError(MissingError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, *, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the optional extra {extra!r}; install it with: pip install 'edgeface[{extra}]'"
        )
        self.extra = extra


class DeviceError(MissingError):
    """An inference device is absent or cannot run the model."""


class NotSupportedError(MissingError):
    """Edgeface cannot do this yet."""
