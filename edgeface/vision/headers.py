"""Read the size and orientation of an encoded image, and check that it is complete, without decoding it.

OpenCV allocates what a header asks for, and decodes a truncated JPEG to a half-gray image without an error. Whatever
OpenCV could understand in another way than this module is refused: a limit holds only if both read the same size.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from edgeface.errors import ImageError
from edgeface.vision.formats import FileKind, kind_of

T = TypeVar("T")

_ORIENTATION_TAG = 0x0112
"""EXIF 2.32, table 4: Orientation, 1 (upright) to 8."""
_WHOLE_NUMBERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""TIFF 6.0, section 2: type of a field -> its format; EXIF asks for 3 (SHORT), some cameras write another."""

_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff\x01\xd0-\xd7])")
"""A marker that begins something: not a stuffed 0xFF00, a restart marker or TEM (ITU T.81, table B.1). What begins
with one certain byte is searched several times as fast."""
_JPEG_END, _JPEG_SCAN, _JPEG_APP1 = 0xD9, 0xDA, 0xE1
_MOST_SCANS, _ANY_SCANS, _SCANNED_PIXELS = 100, 12, 200_000_000
"""Scans of one component of a JPEG, of which encoders write up to seven: the most, those that a photo of any size may
have, and, in between, pixels times scans. Each scan covers the whole image, however short it is."""
_MOST_PARTS = 100_000
"""Segments or chunks of one file; a file of empty ones would take minutes."""
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WIDTH, _HEIGHT = 256, 257
_TIFF_TAGS = frozenset((_WIDTH, _HEIGHT, 258, 273, 274, 277, 279, 322, 323, 324, 325))
"""Size, bits, offsets of strips, orientation, samples, lengths of strips, size, offsets and lengths of tiles."""
_TIFF_TILE = 1024
"""Side of a tile that an image of any size may have; larger ones must not be larger than the image."""
_TIFF_TYPES = {1: "u1", 3: "u2", 4: "u4"}
_PNM_NUMBER = rb"\s*(?:#[^\r\n]*[\r\n]\s*)*(\d{1,9})"
"""Comments, which for OpenCV end at a carriage return too, and a number, before whose end no comment begins."""
_PNM_BITMAP = re.compile(rb"P\d" + rb"\s".join([_PNM_NUMBER] * 2) + rb"\s")
_PNM_HEADER = re.compile(rb"P\d" + rb"\s".join([_PNM_NUMBER] * 3) + rb"\s")
_BMP_UNCOMPRESSED = (0, 3)
"""BI_RGB and BI_BITFIELDS: their size follows from the header."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image file."""

    format: str  # JPEG, PNG, WebP, BMP, TIFF or PNM, from the first bytes, not from the file's name
    width: int  # pixels as OpenCV gives them, before the orientation is applied
    height: int
    orientation: int = 1  # of EXIF, 1 to 8; 1 if it is absent or invalid, or applied by OpenCV
    white: int = 0  # value of white, where it is not the largest of 8 or 16 bits
    decoding: int = 16  # bytes a pixel that decoding needs at most, the decoded image among them


def read_header(data: bytes) -> ImageHeader:
    """Read the header of a JPEG, PNG, WebP, BMP, TIFF or PNM, and check that the bytes are complete.

    Raises
    ------
    ImageError
        If it has another format, is truncated, or its structure is damaged.
    """
    if not data:
        raise ImageError("expected an image, found 0 bytes")
    kind = kind_of(data)
    if kind is None or kind.name not in _READERS:
        found = kind or FileKind(f"bytes that begin with {data[:4]!r}", remedy="")
        raise found.refusal()
    try:
        header = _READERS[kind.name](data)
    except (struct.error, IndexError) as error:
        raise ImageError("truncated: the file ends inside its header") from error
    if header.width < 1 or header.height < 1:
        raise ImageError(f"damaged {header.format}: expected a positive size, found {header.width}x{header.height}")
    return header


def _read_jpeg(data: bytes) -> ImageHeader:
    size: tuple[int, int] | None = None
    exif, frame, components, passes = bytearray(), 0, 3, 0
    scans: Counter[int] = Counter()
    for marker, position, length in _counted("JPEG", _jpeg_segments(data)):
        if marker in _JPEG_FRAMES and size is None:
            size, frame, components = struct.unpack_from(">HH", data, position + 3), marker, data[position + 7]
        elif marker == _JPEG_SCAN:
            passes += 1
            scans.update(data[position + 3 : position + 3 + 2 * data[position + 2] : 2])
        elif marker == _JPEG_APP1 and data.startswith(b"Exif\0\0", position + 2):
            exif += data[position + 8 : position + length]  # further blocks continue the first one
    if size is None or not scans:
        raise ImageError("damaged JPEG: it has no image data")
    most = max(_ANY_SCANS, min(_MOST_SCANS, _SCANNED_PIXELS // max(1, size[0] * size[1])))
    if max(scans.values()) > most:
        raise ImageError(
            f"damaged JPEG: expected at most {most} scans of a component for {size[1]}x{size[0]} pixels, found more"
        )
    kept = frame in _JPEG_PROGRESSIVE or passes > 1  # all coefficients until the last scan, 16 bits each
    return ImageHeader("JPEG", size[1], size[0], _orientation(bytes(exif)), decoding=3 + max(3, 2 * components * kept))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, position and length of each segment."""
    position = 2
    while match := _JPEG_MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == _JPEG_END:
            return
        (length,) = struct.unpack_from(">H", data, position)
        yield marker, position, length
        position += length
    raise ImageError("truncated JPEG: its end marker is missing")


def _counted(name: str, parts: Iterable[T]) -> Iterator[T]:
    for number, part in enumerate(parts):
        if number >= _MOST_PARTS:
            raise ImageError(f"damaged {name}: expected at most {_MOST_PARTS:,} segments, found more")
        yield part


def _read_png(data: bytes) -> ImageHeader:
    size: tuple[int, int] | None = None
    orientation, has_data, decoding = 1, False, 0
    for kind, body in _counted("PNG", _png_chunks(data)):
        if size is None:
            if kind != b"IHDR":
                raise ImageError(f"damaged PNG: expected the chunk IHDR first, found {kind!r}")
            size = struct.unpack_from(">II", body)
            decoding = (6 if body[9] == 2 else 8) * (2 if body[8] == 16 else 1)
        elif kind == b"acTL":
            decoding += 6  # animated
        elif kind == b"IDAT":
            has_data = True
        elif kind == b"eXIf":
            orientation = _orientation(bytes(body))
    if size is None or not has_data:
        raise ImageError("damaged PNG: it has no image data")
    return ImageHeader("PNG", *size, orientation, decoding=decoding)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    view = memoryview(data)
    position, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ImageError(f"truncated PNG: the file ends inside its chunk {kind!r}")
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ImageError(f"damaged PNG: the checksum of its chunk {kind!r} is wrong")
        yield kind, view[position + 8 : end]
        position = end + 4


def _read_webp(data: bytes) -> ImageHeader:
    (stated,) = struct.unpack_from("<I", data, 4)
    if len(data) < stated + 8:
        raise ImageError(f"truncated WebP: expected {stated + 8} bytes, found {len(data)}")
    size: tuple[int, int] | None = None
    orientation = 1
    for kind, body in _counted("WebP", _webp_chunks(data, stated + 8)):
        if size is None and (size := _webp_size(kind, body)) is None:
            raise ImageError(f"damaged WebP: expected VP8X, VP8 or VP8L as its first chunk, found {kind!r}")
        if kind == b"EXIF":
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
    if size is None:
        raise ImageError("damaged WebP: it has no image data")
    return ImageHeader("WebP", *size, orientation, decoding=12)


def _webp_chunks(data: bytes, end: int) -> Iterator[tuple[bytes, bytes]]:
    position = 12
    while position + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, position)
        yield kind, data[position + 8 : position + 8 + length]
        position += 8 + length + length % 2


def _webp_size(kind: bytes, body: bytes) -> tuple[int, int] | None:
    """Read width and height of a VP8X, VP8 or VP8L chunk (RFC 9649, sections 2.5 to 2.7); None for other chunks."""
    if kind == b"VP8X":
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None


def _read_bmp(data: bytes) -> ImageHeader:
    pixels, header_size = struct.unpack_from("<II", data, 10)
    if header_size == 12:  # the OS/2 form
        width, height, _, depth = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _, depth, compression = struct.unpack_from("<iiHHI", data, 18)
    height = abs(height)  # negative: rows from the top down
    needed = pixels + (width * depth + 31) // 32 * 4 * height
    if compression in _BMP_UNCOMPRESSED and len(data) < needed:
        raise ImageError(f"truncated BMP: expected {needed} bytes, found {len(data)}")
    return ImageHeader("BMP", width, height, decoding=8)


def _read_tiff(data: bytes) -> ImageHeader:
    """Read the first directory of a TIFF (TIFF 6.0, section 2); OpenCV applies its orientation itself."""
    order = "<" if data.startswith(b"II") else ">"
    (table,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, table)
    fields: dict[int, np.ndarray] = {}
    for at in range(table + 2, table + 2 + 12 * entries, 12):
        tag, kind, count, place = struct.unpack_from(order + "HHII", data, at)
        if tag in _TIFF_TAGS:
            if tag in fields or kind not in _TIFF_TYPES or not count:  # OpenCV might take another value
                raise ImageError(f"damaged TIFF: expected one value of field {tag}, as bytes, short or long numbers")
            item = np.dtype(order + _TIFF_TYPES[kind])
            place = place if count * item.itemsize > 4 else at + 8
            if place + count * item.itemsize > len(data):
                raise ImageError("truncated TIFF: the file ends inside its directory")
            fields[tag] = np.frombuffer(data, item, count, place)
    if not {_WIDTH, _HEIGHT} <= fields.keys():
        raise ImageError("damaged TIFF: it has no size")
    width, height, orientation, samples = (int(fields.get(tag, (1,))[0]) for tag in (_WIDTH, _HEIGHT, 274, 277))
    bits = int(fields.get(258, np.ones(1)).max())
    if bits > 16 or samples > 4:
        raise ImageError(
            expected="a TIFF of up to 16 bits and 4 channels",
            found=f"{bits} bits, {samples} channels",
            remedy="save it as PNG",
        )
    for side, tile in ((width, fields.get(322)), (height, fields.get(323))):
        if tile is not None and tile[0] > max(_TIFF_TILE, side + 15):
            raise ImageError(
                f"damaged TIFF: expected tiles no larger than its {width}x{height} pixels, found {tile[0]}"
            )
    for offsets, lengths in ((273, 279), (324, 325)):
        ends = [fields[tag].astype(np.int64) for tag in (offsets, lengths) if tag in fields]
        if len(ends) == 2 and len(ends[0]) == len(ends[1]) and (ends[0] + ends[1]).max() > len(data):
            raise ImageError(f"truncated TIFF: expected {(ends[0] + ends[1]).max()} bytes, found {len(data)}")
    size = (height, width) if orientation > 4 else (width, height)
    return ImageHeader("TIFF", *size, decoding=max(6, 2 * samples * (1 + (bits > 8))))


def _read_pnm(data: bytes) -> ImageHeader:
    """Read the header of a PBM, PGM or PPM (the netpbm manual pages of these names)."""
    kind = data[1] - ord("0")
    match = (_PNM_BITMAP if kind in (1, 4) else _PNM_HEADER).match(data)
    if match is None:
        raise ImageError("damaged PNM: expected width, height and the value of white in its header")
    width, height, white = (int(number) for number in (*match.groups(), b"1")[:3])
    if not 1 <= white <= 65535:
        raise ImageError(f"damaged PNM: expected a value of white from 1 to 65535, found {white}")
    values = width * height * (3 if kind in (3, 6) else 1)
    least = {1: values, 4: (width + 7) // 8 * height}.get(
        kind, values * 2 - 1 if kind < 4 else values * (1 + (white > 255))
    )
    if len(data) - match.end() < least:
        raise ImageError(f"truncated PNM: expected at least {match.end() + least} bytes, found {len(data)}")
    scaled = kind in (1, 4) or white in (255, 65535) or (kind < 4 and white < 256)  # OpenCV scales text of 8 bits
    return ImageHeader("PNM", width, height, white=0 if scaled else white, decoding=6 * (1 + (white > 255)))


def _orientation(exif: bytes) -> int:
    """Read the orientation from an EXIF block; 1 if it is absent or damaged."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (table,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, table)
        for index in range(entries):
            at = table + 2 + 12 * index
            tag, kind, count, offset = struct.unpack_from(order + "HHII", exif, at)
            if tag == _ORIENTATION_TAG and kind in _WHOLE_NUMBERS and count:
                size = struct.calcsize(form := order + _WHOLE_NUMBERS[kind]) * count
                at = at + 8 if size <= 4 else offset  # small values stand in place of their offset
                (value,) = struct.unpack_from(form, exif, at)
                return value if 1 <= value <= 8 and at + size <= len(exif) else 1
    except struct.error:
        pass
    return 1


_READERS: dict[str, Callable[[bytes], ImageHeader]] = {
    "a JPEG": _read_jpeg,
    "a PNG": _read_png,
    "a WebP": _read_webp,
    "a BMP": _read_bmp,
    "a TIFF": _read_tiff,
    "a PNM": _read_pnm,
}
