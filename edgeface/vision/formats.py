"""Tell what a file is by its first bytes: a photo that can be read, another kind of photo, a video, or neither."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

from edgeface.errors import ImageError, install_line

if TYPE_CHECKING:
    import numpy as np

HEAD = 192
"""Bytes that `kind_of` looks at."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib"}
    | {".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".pbm", ".heic", ".heif", ".hif", ".avif"}
)
"""Lower-case endings of photos that are read. The format of a file is told by its bytes."""

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mkv", ".avi", ".mov", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".3gp", ".wmv", ".flv"}
)
"""Lower-case endings that are opened as videos."""

_SAVE = "save it as JPEG or PNG"
_RAW_SUFFIXES = frozenset(
    {".dng", ".nef", ".nrw", ".arw", ".sr2", ".cr2", ".cr3", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr", ".iiq"}
)
_OTHER_SUFFIXES = frozenset(
    {".gif", ".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".psd", ".pam", ".pfm", ".hdr", ".exr", ".ras", ".tga"}
)


@dataclass(frozen=True, slots=True)
class FileKind:
    """A photo or a video: its name with an article; whether it is read as a photo; what to do if it is not."""

    name: str
    readable: bool = False
    remedy: str = _SAVE
    is_video: bool = False

    def refusal(self) -> ImageError:
        """Return the error of a file of this kind where a photo is expected."""
        return ImageError(
            expected="a JPEG, PNG, WebP, BMP, TIFF, PGM or PPM image", found=self.name, remedy=self.remedy or None
        )


def _readable(name: str) -> FileKind:
    return FileKind(name, readable=True)


def _video(name: str) -> FileKind:
    return FileKind(f"a video ({name})", remedy="extract frames: ffmpeg -i VIDEO frame-%05d.png", is_video=True)


_RAW = FileKind("a camera's raw file", remedy="export it as JPEG")
_VIDEO = _video("by its name")
_BEGINNINGS = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (rb"\xff\xd8\xff", _readable("a JPEG")),
        (rb"\x89PNG\r\n\x1a\n", _readable("a PNG")),
        (rb"RIFF....WEBP", _readable("a WebP")),
        (rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", _readable("a BMP")),
        (rb"II\*\0.{4}CR\x02|IIU\0|IIR[OS]|MMOR|FUJIFILMCCD-RAW", _RAW),
        (rb"II\*\0|MM\0\*", _readable("a TIFF")),
        (rb"P[1-6](\s*#|\s+\d)", _readable("a PNM")),
        (rb"GIF8[79]a", FileKind("a GIF")),
        (rb"\0\0\0\x0cjP  \r\n|\xff\x4f\xff\x51", FileKind("a JPEG 2000")),
        (rb"\0\0\0\x0cJXL \r\n|\xff\x0a", FileKind("a JPEG XL")),
        (rb"II\+\0|MM\0\+", FileKind("a BigTIFF")),
        (rb"8BPS\0", FileKind("a Photoshop file")),
        (
            rb"P7\n|P[Ff]\s+\d|\x76\x2f\x31\x01|#\?RADIANCE|\x59\xa6\x6a\x95",
            FileKind("a PAM, PFM, OpenEXR, HDR or Sun raster"),
        ),
        (rb"\x1a\x45\xdf\xa3", _video("Matroska or WebM")),
        (rb"RIFF....AVI ", _video("AVI")),
        (rb"\0\0\x01[\xb3\xba]|G(?=.{0,186}[\0\xff]).{187}G", _video("MPEG")),
        (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|FLV\x01", _video("WMV or FLV")),
        (rb"....(moov|mdat|wide)", _video("QuickTime")),
    )
)
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_AUDIO_BRANDS = frozenset((b"M4A ", b"M4B ", b"M4P "))


def kind_of(head: bytes, suffix: str = "") -> FileKind | None:
    """Tell what a file is by its first `HEAD` bytes, or by its lower-case suffix; None if it is no photo and no video.

    A file that is a photo by its suffix only is taken for one: reading it says what is wrong with it.

    Examples
    --------
    >>> kind_of(b"GIF89a").name, kind_of(b"P5 640 480 255").readable, kind_of(b"Dear Ada")
    ('a GIF', True, None)
    """
    if head[4:8] == b"ftyp":
        return _kind_of_boxes(head)
    kind = next((kind for pattern, kind in _BEGINNINGS if pattern.match(head)), None)
    if suffix in _RAW_SUFFIXES and (kind is None or kind.name == "a TIFF"):  # most of them are built like a TIFF
        return _RAW
    if kind is None and suffix in VIDEO_SUFFIXES - {".ts"}:  # .ts may be a program
        return _VIDEO
    if kind is None and suffix in IMAGE_SUFFIXES | _OTHER_SUFFIXES:
        return _readable("a photo by its name")
    return kind


def _kind_of_boxes(head: bytes) -> FileKind | None:
    """Tell the formats that begin with the box ``ftyp`` apart by its brands (ISO/IEC 14496-12, section 4.3)."""
    major, end = head[8:12], min(int.from_bytes(head[:4], "big"), len(head))
    brands = {major, *(head[at : at + 4] for at in range(16, end, 4))}
    if major in _AUDIO_BRANDS:
        return None
    if major == b"crx ":
        return _RAW
    name = "an AVIF" if brands & _AVIF_BRANDS else "an HEIC" if brands & _HEIC_BRANDS else ""
    if not name or (brands & {b"isom", b"mp42", b"qt  "} and major not in _AVIF_BRANDS | _HEIC_BRANDS):
        return _video("QuickTime" if major == b"qt  " else "MP4")
    installed = importlib.util.find_spec("pillow_heif") is not None
    return FileKind(name, readable=installed, remedy=f"{_SAVE}, or: {install_line('heif')}")


def open_heif(data: bytes, kind: FileKind) -> Any:
    """Open an HEIC or AVIF, whose pixels are not decoded before `decode_heif`: a Pillow image with `size`.

    Raises `ImageError` if it is damaged.
    """
    try:
        if kind.name == "an AVIF":
            from PIL.AvifImagePlugin import AvifImageFile

            return AvifImageFile(BytesIO(data))
        from pillow_heif import HeifImageFile

        return HeifImageFile(BytesIO(data))
    except Exception as error:
        raise ImageError(f"damaged: cannot read {kind.name}: {error}") from error


def decode_heif(opened: Any) -> np.ndarray:
    """Decode what `open_heif` opened, upright: (H, W, 4) uint8, BGRA. Raises `ImageError` if it is damaged."""
    import cv2  # here, because who lists photos decodes none
    import numpy as np
    from PIL import ImageOps

    try:
        pixels = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA"))
    except Exception as error:
        raise ImageError(f"damaged: cannot decode it: {error}") from error
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2BGRA))
