"""Read an image from a file, bytes or an array as (H, W, 3) uint8 BGR; all images are read here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeface.errors import ImageError
from edgeface.files import FileIdentity
from edgeface.limits import memory_available
from edgeface.vision.formats import decode_heif, kind_of, open_heif
from edgeface.vision.headers import read_header

Image = NDArray[np.uint8]
"""(H, W, 3), BGR, 0-255."""
DecodedFile = tuple[Image, FileIdentity, int]
"""An image, the bytes that it was made of, and how many times more pixels its file has on each side."""

_REDUCED = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}
_LEAST_REDUCED = 640
"""Longer side that a reduced image has at least: detectors look at so many pixels of a larger one."""

_UPRIGHT = {2: "m", 3: "mf", 4: "f", 5: "t", 6: "tm", 7: "tmf", 8: "tf"}
"""EXIF orientation -> steps that make it upright: t(ranspose), m(irror), f(lip upside down)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """Limits of an image, checked before it is decoded.

    Attributes
    ----------
    max_bytes
        Bytes of the encoded file.
    max_pixels
        Width times height. Decoding needs 6 bytes a pixel for most photos, up to 16 (16 bits, four channels).
    """

    max_bytes: int = 64 << 20
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.max_pixels < 1:
            raise ImageError(f"image limits: expected positive numbers, found {self}")


_DEFAULT_LIMITS = ImageLimits()
_HEIF_DECODING = 20
"""Bytes a pixel that decoding HEIC and AVIF needs; of other formats the header tells."""
_UNCHECKED = 32 << 20
"""Bytes that are used without a look at how many there are, which takes as long as detection in a small image."""


def read_image(source: str | Path | bytes | np.ndarray, *, limits: ImageLimits = _DEFAULT_LIMITS) -> Image:
    """Read one image.

    Formats: JPEG (baseline and progressive, gray, YCbCr, CMYK), PNG, WebP, BMP, TIFF, PBM, PGM, PPM; with the extra
    `heif` also HEIC and AVIF. The orientation is applied, 16 bits become 8 by division by 257, gray becomes three
    equal channels, and transparency is laid over white.

    Parameters
    ----------
    source
        A file's path, its bytes, or pixels: (H, W), (H, W, 1), (H, W, 3) BGR or (H, W, 4) BGRA, uint8 or
        uint16. An (H, W, 3) uint8 array is returned without a copy.
    limits
        Largest file and image to accept.

    Returns
    -------
    (H, W, 3) uint8, BGR, 0-255

    Raises
    ------
    ImageError
        If there is no such file, or it is not an image, truncated, damaged, above the limits, or needs more memory
        than this process may still use. The message begins with the file's path. JPEG has no checksum: changed bits
        that keep the structure intact go unnoticed.
    """
    if isinstance(source, str):
        source = Path(source)
    try:
        if isinstance(source, np.ndarray):
            return _to_bgr8(source, limits)
        data = _read_file(source, limits)[0] if isinstance(source, Path) else bytes(source)
        return _decode(data, limits)[0]
    except ImageError as error:
        if isinstance(source, Path):
            raise error.with_path(source) from error
        raise


def require_photo(path: Path, *, limits: ImageLimits = _DEFAULT_LIMITS) -> None:
    """Raise the ImageError that `read_image` would raise of a file's path, size and kind, without decoding it."""
    try:
        if kind_of(data := _read_file(path, limits)[0]) is None:
            read_header(data)
    except ImageError as error:
        raise error.with_path(path) from error


def read_photo_file(path: Path, *, reduced: int = 1, limits: ImageLimits = _DEFAULT_LIMITS) -> DecodedFile:
    """Read an image file, as `read_image` does, and identify the bytes that the image was made of.

    `reduced` is 1, 2, 4 or 8: the image may have so many times fewer pixels on each side, rounded up. A JPEG's are then
    computed from its lowest frequencies, in half of the time, while the longer side keeps 640; other formats are read
    whole.
    """
    try:
        return decode_photo(*_read_file(path, limits), reduced=reduced, limits=limits)
    except ImageError as error:
        raise error.with_path(path) from error


def decode_photo(data: bytes, modified: int, *, reduced: int = 1, limits: ImageLimits = _DEFAULT_LIMITS) -> DecodedFile:
    """Read an image from the bytes of a file that was modified then, and identify them; see `read_photo_file`."""
    image, reduced = _decode(data, limits, reduced)
    return image, FileIdentity(len(data), modified, hashlib.sha256(data).hexdigest()), reduced


def _read_file(path: Path, limits: ImageLimits) -> tuple[bytes, int]:
    """Return the bytes of a file, at most one more than the limit, and its modification time in nanoseconds."""
    try:
        if path.is_dir():
            raise ImageError(expected="a photo", found="a folder", remedy="name one of the photos in it")
        if path.exists() and not path.is_file():
            raise ImageError("expected an image file, found something else")
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError as error:
        if str(path).startswith(("http:/", "https:/")):
            raise ImageError(expected="a file", found="an address", remedy="download the photo first") from error
        raise ImageError(expected="a photo", found="no such file", remedy="check its path") from error
    except OSError as error:
        raise ImageError(f"cannot read: {error.strerror or error}") from error
    except ValueError as error:  # a name that no file can have
        raise ImageError(f"cannot read: {error}") from error


def _decode(data: bytes, limits: ImageLimits, reduced: int = 1) -> tuple[Image, int]:
    if len(data) > limits.max_bytes:
        raise ImageError(f"expected at most {limits.max_bytes:,} bytes, found more; raise ImageLimits.max_bytes")
    kind = kind_of(data)
    if kind is not None and kind.readable and kind.name in ("an HEIC", "an AVIF"):
        opened = open_heif(data, kind)
        _check_pixels(opened.width, opened.height, limits)
        check_memory(_HEIF_DECODING * opened.width * opened.height, f"to decode {opened.width}x{opened.height} pixels")
        return _to_bgr8(decode_heif(opened), limits), 1
    header = read_header(data)
    _check_pixels(header.width, header.height, limits)
    purpose = f"to decode {header.width}x{header.height} pixels"
    needed = header.decoding * header.width * header.height
    check_memory(needed, purpose)
    while reduced > 1 and (header.format != "JPEG" or max(header.width, header.height) < _LEAST_REDUCED * reduced):
        reduced //= 2
    flags = cv2.IMREAD_UNCHANGED if reduced == 1 else _REDUCED[reduced] | cv2.IMREAD_IGNORE_ORIENTATION
    width, height = (-(-side // reduced) for side in (header.width, header.height))
    try:
        # Every other flag drops transparency, and treats orientation differently in each format and version.
        # OpenCV wants a line's end after the last number of a PNM in text.
        pixels = cv2.imdecode(np.frombuffer(data + b"\n" * (header.format == "PNM"), np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise _short_of_memory(needed, purpose, "less") from error
        raise ImageError(f"damaged {header.format}: OpenCV cannot decode it: {error.err}") from error
    except MemoryError as error:
        raise _short_of_memory(needed, purpose, "less") from error
    if pixels is None:
        raise ImageError(f"damaged {header.format}: OpenCV cannot decode it")
    if pixels.shape[:2] != (height, width):
        raise ImageError(
            f"damaged {header.format}: expected {width}x{height} pixels as its header says, "
            f"found {pixels.shape[1]}x{pixels.shape[0]}"
        )
    if header.white:
        largest = 255 if pixels.dtype == np.uint8 else 65535
        for band in _bands(pixels):
            band[:] = np.minimum(band * np.float32(largest / header.white) + 0.5, largest)
    return _set_upright(_to_bgr8(pixels, limits), header.orientation), reduced


def check_memory(needed: int, purpose: str) -> None:
    """Raise `ImageError` if this process may not use as many bytes more: it would be killed without a word."""
    if needed < _UNCHECKED:
        return
    left = memory_available()
    if left is not None and left < needed:
        raise _short_of_memory(needed, purpose, f"{left >> 20} MB left of what this process may use")


def _short_of_memory(needed: int, purpose: str, found: str) -> ImageError:
    return ImageError(
        expected=f"about {(needed >> 20) + 1} MB of free memory {purpose}",
        found=found,
        remedy="scale the photo down, or allow more memory",
    )


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise ImageError(
            f"expected at most {limits.max_pixels:,} pixels, found {width}x{height}; "
            "scale the image down, or raise ImageLimits.max_pixels"
        )


def _to_bgr8(pixels: np.ndarray, limits: ImageLimits) -> Image:
    depth = 1 if pixels.ndim == 2 else pixels.shape[2] if pixels.ndim == 3 else 0
    if depth not in (1, 3, 4) or pixels.size == 0 or pixels.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            expected="pixels of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) and type uint8 or uint16",
            found=f"{pixels.shape} {pixels.dtype}",
            remedy="convert the array; for floats from 0 to 1: (255 * pixels).astype('uint8')",
        )
    _check_pixels(pixels.shape[1], pixels.shape[0], limits)
    if pixels.dtype == np.uint8 and depth == 3:
        return np.asarray(pixels, np.uint8)
    image = np.empty((*pixels.shape[:2], 3), np.uint8)
    for band, into in zip(_bands(pixels), _bands(image), strict=True):
        if band.dtype == np.uint16:
            band = cv2.convertScaleAbs(band, alpha=1 / 257)
        if depth == 1:
            cv2.cvtColor(band, cv2.COLOR_GRAY2BGR, dst=into)
        else:
            into[:] = _lay_over_background(band) if depth == 4 else band
    return image


def _bands(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Divide an image into rows of about a million pixels, so that what is computed from them stays small."""
    step = max(1, (1 << 20) // pixels.shape[1])
    return (pixels[start : start + step] for start in range(0, len(pixels), step))


def _lay_over_background(pixels: np.ndarray) -> Image:
    """Composite BGRA with straight alpha, rounded to nearest."""
    alpha = cv2.cvtColor(np.ascontiguousarray(pixels[:, :, 3]), cv2.COLOR_GRAY2BGR)
    color = cv2.multiply(np.ascontiguousarray(pixels[:, :, :3]), alpha, scale=1 / 255)
    return np.asarray(cv2.add(color, cv2.bitwise_not(alpha)), np.uint8)


def _set_upright(image: Image, orientation: int) -> Image:
    """Turn a decoded image, in its own memory where it keeps its shape."""
    for step in _UPRIGHT.get(orientation, ""):
        if step == "t":
            image = np.asarray(cv2.transpose(image), np.uint8)
        else:
            cv2.flip(image, 1 if step == "m" else 0, dst=image)
    return image
