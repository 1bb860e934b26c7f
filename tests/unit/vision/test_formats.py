"""What a file is, by its bytes: every photo is read or named as what it is."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeface.errors import ImageError
from edgeface.vision import formats
from edgeface.vision.formats import kind_of
from edgeface.vision.image import ImageLimits, read_image

X, Y = np.meshgrid(np.arange(80), np.arange(60))
GRAY = (X * 3 + Y // 4).astype(np.uint8)
COLORS = np.stack([GRAY, np.flipud(GRAY), 255 - GRAY], axis=2)


def pnm(kind: int, white: int) -> tuple[bytes, np.ndarray]:
    """A PNM of text or bytes with the samples 0 to `white`, and the (60, 80, 3) BGR that it shows."""
    shown = np.repeat(GRAY[:, :, None], 3, axis=2) if kind in (2, 5) else COLORS
    samples = np.round(shown[:, :, ::-1].astype(float) * white / 255).astype(int)
    samples = samples[:, :, :1] if kind in (2, 5) else samples
    head = b"P%d\n# a comment\n80 60\n%d\n" % (kind, white)
    body = (
        b" ".join(b"%d" % each for each in samples.ravel())
        if kind < 4
        else samples.astype(">u2" if white > 255 else "u1").tobytes()
    )
    return head + body, np.round(samples[:, :, ::-1] * 255 / white) + np.zeros((1, 1, 3))


@pytest.mark.parametrize("kind", [2, 3, 5, 6])
@pytest.mark.parametrize("white", [15, 100, 255, 1023, 65535])
def test_the_largest_value_of_a_pgm_and_ppm_is_white(kind: int, white: int) -> None:
    data, shown = pnm(kind, white)
    assert np.abs(read_image(data) - shown).max() <= 1
    for cut in (data[:20], data[: len(data) // 3]):
        with pytest.raises(ImageError, match=r"truncated|damaged"):
            read_image(cut)


def test_a_bitmap_of_text_or_bits_is_read() -> None:
    bits = (GRAY > 100).astype(int)
    for data in (
        b"P4\n80 60\n" + np.packbits(bits, axis=1).tobytes(),
        b"P1 80 60\n" + b" ".join(b"%d" % bit for bit in bits.ravel()),
    ):
        assert np.array_equal(read_image(data)[:, :, 0], np.where(bits, 0, 255))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_read_upright_as_pillow_reads_it(mode: str, orientation: int) -> None:
    image, ops = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageOps")
    made = image.fromarray(GRAY.astype(np.uint16) * 257) if mode == "I;16" else image.fromarray(COLORS).convert(mode)
    stream, exif = io.BytesIO(), image.Exif()
    exif[0x112] = orientation
    made.save(stream, "TIFF", exif=exif)
    upright = ops.exif_transpose(image.open(io.BytesIO(stream.getvalue())))
    expected = (
        np.asarray(upright).astype(int) // 257 if mode == "I;16" else np.asarray(upright.convert("RGB"))[:, :, ::-1]
    )
    found = read_image(stream.getvalue())
    assert np.array_equal(found if expected.ndim == 3 else found[:, :, 0], expected)


def test_a_tiff_that_says_webp_is_measured_as_the_tiff_that_is_decoded() -> None:
    entries = [(256, 4, 1, 30_000), (257, 4, 1, 30_000), (258, 3, 1, 8), (277, 3, 1, 1)]
    table = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    data = b"II*\0" + struct.pack("<I", 16) + b"WEBP" + bytes(4) + table
    with pytest.raises(ImageError, match="at most 64,000,000 pixels, found 30000x30000"):
        read_image(data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({258: 32}, "up to 16 bits and 4 channels, found 32 bits, 1 channels"),
        ({277: 5}, "found 8 bits, 5 channels"),
        ({273: 60, 279: 9_000}, "truncated TIFF: expected 9060 bytes"),
        ({257: 0}, "expected a positive size, found 80x0"),
        ({}, "OpenCV cannot decode it"),
    ],
)
def test_a_tiff_that_cannot_be_decoded_is_named(fields: dict[int, int], message: str) -> None:
    entries = {256: 80, 257: 60, 258: 8, 277: 1} | fields
    table = struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items())
    )
    with pytest.raises(ImageError, match=message):
        read_image(b"II*\0" + struct.pack("<I", 8) + table)


NAMED = {
    b"GIF89a": "found a GIF; save it as JPEG or PNG",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000",
    b"\xff\x4f\xff\x51\0": "a JPEG 2000",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL",
    b"II+\0\x08\0\0\0": "a BigTIFF",
    b"II*\0\x10\0\0\0CR\x02\0": "a camera's raw file; export it as JPEG",
    b"\0\0\0\x18ftypcrx \0\0\0\0": "a camera's raw file",
    b"8BPS\0\x01": "a Photoshop file",
    b"P7\nWIDTH 4": "a PAM, PFM",
    b"\0\0\0\x18ftypisom\0\0\0\0isomavc1": r"a video \(MP4\); extract frames",
    b"\0\0\0\x14ftypqt  \0\0\0\0": r"a video \(QuickTime\)",
    b"\x1a\x45\xdf\xa3": r"a video \(Matroska or WebM\)",
    b"RIFF\0\0\0\0AVI LIST": r"a video \(AVI\)",
    b"G" + bytes(187) + b"G": r"a video \(MPEG\)",
}


@pytest.mark.parametrize("beginning", NAMED, ids=lambda each: repr(each[:16]))
def test_what_is_no_photo_that_is_read_is_named_as_what_it_is(beginning: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(beginning + bytes(64))
    with pytest.raises(ImageError, match=f"a.jpg: expected a JPEG.*, found {NAMED[beginning].removeprefix('found ')}"):
        read_image(path)


@pytest.mark.parametrize(
    ("head", "suffix", "name"),
    [
        (b"II*\0\x08\0\0\0", ".dng", "a camera's raw file"),
        (b"", ".mp4", "a video (by its name)"),
        (b"", ".gif", "a photo by its name"),  # reading it says that it is empty
        (b"import { a } from 'b'", ".ts", None),
        (b"BMW and P5 are words", ".txt", None),
        (b"G" * 189, ".txt", None),
        (b"\0\0\0\x20ftypM4A \0\0\0\0isom", ".m4a", None),
    ],
)
def test_the_name_decides_only_what_the_bytes_do_not(head: bytes, suffix: str, name: str | None) -> None:
    kind = kind_of(head, suffix)
    assert (kind and kind.name) == name


@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_heic_and_avif_are_read_with_the_extra_upright_and_within_the_limits(suffix: str) -> None:
    heif, image = pytest.importorskip("pillow_heif"), pytest.importorskip("PIL.Image")
    stream, exif = io.BytesIO(), image.Exif()
    exif[0x112] = 6
    made = image.fromarray(np.ascontiguousarray(COLORS[:, :, ::-1]))
    if suffix == "heic":
        heif.register_heif_opener()
        made.save(stream, "HEIF", quality=-1, exif=exif.tobytes())
    else:
        made.save(stream, "AVIF", quality=100, exif=exif)
    data = stream.getvalue()
    assert np.abs(read_image(data).astype(int) - np.rot90(COLORS, -1)).mean() < 4
    with pytest.raises(ImageError, match="at most 4,000 pixels"):
        read_image(data, limits=ImageLimits(max_pixels=4000))
    with pytest.raises(ImageError, match="damaged"):
        read_image(data[: len(data) * 2 // 3])


def test_heic_without_the_extra_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImageError, match=r"found an HEIC; save it as JPEG or PNG, or: pip install .*\[heif\]"):
        read_image(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(200))


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"II*\0", b"MM\0*", b"P5 4 4 255\n", b"P1\n", b"\0\0\0\x1cftyp", b"BM"])
)
def test_bytes_of_any_kind_are_read_or_refused_by_name(body: bytes, beginning: bytes) -> None:
    try:
        assert read_image(beginning + body).dtype == np.uint8
    except ImageError as error:
        assert str(error)  # noqa: PT017 - either outcome is right


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_tiff_is_read_or_refused_by_name(data: st.DataObject) -> None:
    raw = bytearray(cv2.imencode(".tiff", COLORS[:20, :20])[1].tobytes())
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert read_image(bytes(raw)).dtype == np.uint8
    except ImageError as error:
        assert str(error)  # noqa: PT017
